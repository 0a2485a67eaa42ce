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
from jaxalign.models.heads import hidden_token_logps
from jaxalign.models.transformer import Params, Transformer, output_weight


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


def compute_params(params: Params, dtype: Any) -> Params:
    """Casts the matrices to the compute dtype once; norm scales stay as they are."""

    def cast(path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
        return leaf if path[-1].key == "scale" else leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, params)


def run_block(model: Transformer, params: Params, *arguments: Any) -> tuple[jax.Array, KeyValues]:
    """`Transformer.__call__` with its types."""
    output: Any = model.apply({"params": params}, *arguments)
    return output


def last_place(mask: jax.Array) -> jax.Array:
    """Where each row of `[B, T]` has its last True, `[B]` int32."""
    return mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)


def encode_prefix(
    model: Transformer, params: Params, prefix: jax.Array | None
) -> tuple[KeyValues, ...]:
    """Runs the tokens that open every row, once; positions 0..P0−1.

    Args:
      model: the decoder.
      params: its parameters.
      prefix: `[P0]` int32; may be empty, or None for none.

    Returns:
      one block of leading size 1, or no block.
    """
    if prefix is None or not prefix.shape[0]:
        return ()
    chex.assert_rank(prefix, 1)
    row = prefix[None]
    positions = jnp.arange(row.shape[1])[None]
    return (run_block(model, params, row, positions, jnp.ones(row.shape, bool))[1],)


def prompt_context(
    model: Transformer,
    params: Params,
    prompts: jax.Array,
    prompt_mask: jax.Array,
    prefix: jax.Array | None = None,
) -> PromptContext:
    """Runs the prefix once and every prompt once.

    Args:
      model: the decoder.
      params: its parameters.
      prompts: `[N, P]` int32, padded on either side.
      prompt_mask: `[N, P]` bool, at least one True in each row.
      prefix: `[P0]` int32, tokens that open every prompt of the batch; positions 0..P0−1.

    Returns:
      the context of the prompts' completions.
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


def completion_states(
    model: Transformer,
    params: Params,
    prompts: jax.Array,
    prompt_mask: jax.Array,
    tokens: jax.Array,
    mask: jax.Array,
    *,
    prefix: jax.Array | None = None,
) -> jax.Array:
    """Last hidden states before each completion token, every prompt computed once.

    Args:
      model: the decoder.
      params: its parameters in the compute dtype.
      prompts: `[N, P]` int32.
      prompt_mask: `[N, P]` bool.
      tokens: `[B, T]` int32 completions, B = N·G, the G of one prompt next to each other.
      mask: `[B, T]` bool, a prefix of each row: which tokens exist.
      prefix: `[P0]` int32 shared opening, or None.

    Returns:
      `[B, T, D]` in the compute dtype; state t has seen the prompt and the tokens before t.
    """
    chex.assert_equal_shape([tokens, mask])
    context = prompt_context(model, params, prompts, prompt_mask, prefix)
    batch, length = tokens.shape
    group = batch // prompts.shape[0]
    first = jnp.repeat(context.last_tokens, group)
    inputs = jnp.concatenate([first[:, None], tokens[:, :-1]], axis=1)
    positions = jnp.repeat(context.last_positions, group)[:, None] + jnp.arange(length)
    return run_block(model, params, inputs, positions, mask, context.blocks)[0]


def completion_logps(
    model: Transformer,
    params: Params,
    prompts: jax.Array,
    prompt_mask: jax.Array,
    tokens: jax.Array,
    mask: jax.Array,
    *,
    prefix: jax.Array | None = None,
    temperature: float = 1.0,
    tile: int | None = None,
) -> jax.Array:
    """Log-probabilities of completions given their prompts, differentiable in `params`.

    Args:
      model: the decoder.
      params: its parameters; matrices are cast to the model's compute dtype first.
      prompts: `[N, P]` int32.
      prompt_mask: `[N, P]` bool.
      tokens: `[B, T]` int32 completions, B = N·G, the G of one prompt next to each other.
      mask: `[B, T]` bool, a prefix of each row: which tokens exist.
      prefix: `[P0]` int32 shared opening, or None.
      temperature: of the policy, as it sampled.
      tile: words of the vocabulary whose logits are held at once; see `hidden_token_logps`.

    Returns:
      `[B, T]` float32 log π(tokens); values where `mask` is False mean nothing.
    """
    params = compute_params(params, model.dtype)
    hidden = completion_states(model, params, prompts, prompt_mask, tokens, mask, prefix=prefix)
    return hidden_token_logps(
        hidden,
        output_weight(params),
        tokens,
        temperature=temperature,
        tile=tile,
        mesh=model.mesh,
    )
