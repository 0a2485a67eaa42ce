"""Prompts computed once, completions on top of them: what sampling and training have in common.

The last token of each prompt is not part of the prompt's block; it opens the completion's block,
whose inputs are (last prompt token, completion tokens but the last) and whose outputs predict
exactly the completion tokens. So a prompt `[N, P]` and a prefix `[P0]` exist once, in the sampler
and in the differentiable pass, and the two compute the same numbers.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from jaxalign.models.attention import KeyValues
from jaxalign.models.network import Network
from jaxalign.records import Params


@struct.dataclass
class PromptContext:
    """What completions need to know of their prompts.

    Attributes:
      blocks: keys and values of the prefix (if any) and of the prompts, leading sizes 1 and N.
      last_tokens: `[N]` int32, each prompt's last token.
      last_positions: `[N]` int32, its absolute position.
    """

    blocks: tuple[KeyValues, ...]
    last_tokens: jax.Array
    last_positions: jax.Array


def compute_params(params: Params, dtype: Any, *, learned: bool = False) -> Params:
    """Casts the matrices to the compute dtype once; norm scales stay as they are.

    Where gradients are wanted (`learned`), embedding rows and biases stay as they are too, for
    `Network` casts what it took of them: the gradient of an entry that many positions share is
    summed in the entry's dtype, and a sum in bfloat16 stands still at 256 times its terms. A base
    has no gradients.
    """
    if "prefix" in params:
        rest = {name: leaves for name, leaves in params.items() if name != "prefix"}
        return with_prefix(compute_params(rest, dtype, learned=learned), params["prefix"])
    if "base" in params:
        return {
            "base": compute_params(params["base"], dtype),
            "adapter": compute_params(params["adapter"], dtype),
        }
    kept = ("scale", "bias", "embedding") if learned else ("scale",)

    def cast(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        whole = not jnp.issubdtype(leaf.dtype, jnp.floating)  # a quantised matrix's
        return leaf if whole or path[-1].key.endswith(kept) else leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


def run_block(model: Network, params: Params, *arguments: Any) -> tuple[jax.Array, KeyValues]:
    """`Network.__call__` with its types, of plain parameters or of an adapter on its base."""
    variables = {"params": {name: x for name, x in params.items() if name != "prefix"}}
    if "base" in params:
        variables = {"params": params["base"], "adapter": params["adapter"]}
    output: Any = model.apply(variables, *arguments)
    return output


def last_place(mask: jax.Array) -> jax.Array:
    """Where each row of `[B, T]` has its last True, `[B]` int32."""
    return mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)


def encode_prefix(
    model: Network, params: Params, prefix: jax.Array | None
) -> tuple[KeyValues, ...]:
    """Runs the tokens `[P0]` that open every row, once, at positions 0..P0−1.

    Returns:
      one block of leading size 1, or of no tokens or None no block. Parameters of `with_prefix`
      bring it along.
    """
    if prefix is None or not prefix.shape[0]:
        return ()
    chex.assert_rank(prefix, 1)
    if "prefix" in params:
        keys, values = params["prefix"]
        return (KeyValues(keys, values, jnp.ones((1, prefix.shape[0]), bool)),)
    row = prefix[None]
    positions = jnp.arange(row.shape[1])[None]
    return (run_block(model, params, row, positions, jnp.ones(row.shape, bool))[1],)


def with_prefix(params: Params, keys_values: tuple[jax.Array, jax.Array]) -> Params:
    """Parameters that bring along what `encode_prefix` would compute by them: keys and values.

    So several passes by the same parameters run a prefix once, and a gradient goes through it once.
    """
    return params | {"prefix": keys_values}


def prompt_context(
    model: Network,
    params: Params,
    prompts: jax.Array,
    prompt_mask: jax.Array,
    prefix: jax.Array | None = None,
) -> PromptContext:
    """Runs the prefix once and every prompt once, for their completions.

    Args:
      model: the decoder.
      params: its parameters.
      prompts: `[N, P]` int32, padded on either side.
      prompt_mask: `[N, P]` bool, at least one True in each row.
      prefix: `[P0]` int32, tokens that open every prompt of the batch; positions 0..P0−1.
    """
    chex.assert_rank([prompts, prompt_mask], 2)
    chex.assert_equal_shape([prompts, prompt_mask])
    blocks = encode_prefix(model, params, prefix)
    offset = blocks[0].mask.shape[1] if blocks else 0
    length = prompts.shape[1]
    positions = offset + jnp.cumsum(prompt_mask, axis=1) - 1
    last = last_place(prompt_mask)
    body = prompt_mask & (jnp.arange(length) != last[:, None])
    _, block = run_block(model, params, prompts, positions, body, blocks)
    take = lambda x: jnp.take_along_axis(x, last[:, None], axis=1)[:, 0]  # noqa: E731
    return PromptContext((*blocks, block), take(prompts), take(positions).astype(jnp.int32))
