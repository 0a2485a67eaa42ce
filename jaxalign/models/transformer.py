"""The decoder of Llama 3, Mistral, Qwen2.5, Qwen3 and SmolLM2: `Network` as a `Decoder`."""

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from jaxalign.models.attention import KeyValues
from jaxalign.models.completion import (
    PromptContext,
    compute_params,
    encode_prefix,
    prompt_context,
    run_block,
)
from jaxalign.models.heads import hidden_token_logps, logits, output_weight
from jaxalign.models.layout import lay_out
from jaxalign.models.network import Network
from jaxalign.models.sharding import constrain
from jaxalign.models.shared_rows import Layout, rows_of
from jaxalign.records import Params


@struct.dataclass
class Context:
    """Prompts as sampling needs them.

    Attributes:
      prompts: their keys and values, each once.
      weights: the parameters, cast and laid out for decoding once, before the loop of tokens.
    """

    prompts: PromptContext
    weights: Params


@struct.dataclass
class Cache:
    """Keys and values of completions.

    Attributes:
      keys: `[L, B, K, T, d]`, compute dtype.
      values: as keys.
      positions: `[B]` int32, the position of each row's first input, its prompt's last token.
    """

    keys: jax.Array
    values: jax.Array
    positions: jax.Array


class Transformer(Network):
    """A Llama-family decoder: `Network` with the functions of `jaxalign.models.decoder.Decoder`.

    Its attributes are `Network`'s; parameters are arguments of every method.
    """

    @property
    def max_positions(self) -> int:
        """The longest row, prefix, prompt and completion together."""
        return self.config.max_positions

    @nn.nowrap
    def prefill(
        self,
        params: Params,
        prompts: jax.Array,
        prompt_mask: jax.Array,
        prefix: jax.Array | None = None,
    ) -> Context:
        """See `Decoder.prefill`; the parameters are cast to the compute dtype once, here."""
        weights = lay_out(self, compute_params(params, self.dtype), decoding=True)
        return Context(prompt_context(self, weights, prompts, prompt_mask, prefix), weights)

    @nn.nowrap
    def start(
        self, params: Params, context: Context, samples_per_prompt: int, max_new_tokens: int
    ) -> Cache:
        """See `Decoder.start`."""
        config = self.config
        positions = jnp.repeat(context.prompts.last_positions, samples_per_prompt)
        shape = (
            config.num_layers,
            positions.shape[0],
            config.num_kv_heads,
            max_new_tokens,
            config.head_dim,
        )
        empty = constrain(
            jnp.zeros(shape, self.dtype), self.mesh, None, "batch", "kv_heads", None, None
        )
        return Cache(empty, empty, positions)

    @nn.nowrap
    def next_logits(
        self, params: Params, context: Context, cache: Cache, token: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Cache]:
        """See `Decoder.next_logits`."""
        batch, length = token.shape[0], cache.keys.shape[3]
        written = jnp.broadcast_to(jnp.arange(length) < step, (batch, length))
        hidden, block = run_block(
            self,
            context.weights,
            token[:, None],
            (cache.positions + step)[:, None],
            jnp.ones((batch, 1), bool),
            (*context.prompts.blocks, KeyValues(cache.keys, cache.values, written)),
        )
        put = lambda x, new: jax.lax.dynamic_update_slice(x, new, (0, 0, 0, step, 0))  # noqa: E731
        cache = Cache(put(cache.keys, block.keys), put(cache.values, block.values), cache.positions)
        scores = logits(hidden[:, 0], output_weight(context.weights))
        return constrain(scores, self.mesh, "batch", "vocab"), cache

    @nn.nowrap
    def take(self, context: Context, cache: Cache, rows: jax.Array) -> tuple[Context, Cache]:
        """See `Decoder.take`; a prompt's keys are copied for each row, the prefix stays shared."""
        prompts = context.prompts
        of_row = rows // (cache.positions.shape[0] // prompts.last_tokens.shape[0])
        blocks = tuple(
            block
            if block.mask.shape[0] == 1
            else KeyValues(block.keys[:, of_row], block.values[:, of_row], block.mask[of_row])
            for block in prompts.blocks
        )
        taken = PromptContext(blocks, prompts.last_tokens[of_row], prompts.last_positions[of_row])
        cache = Cache(cache.keys[:, rows], cache.values[:, rows], cache.positions[rows])
        return Context(taken, context.weights), cache

    @nn.nowrap
    def states(
        self,
        params: Params,
        prompts: jax.Array,
        prompt_mask: jax.Array,
        tokens: jax.Array,
        mask: jax.Array,
        *,
        prefix: jax.Array | None = None,
    ) -> jax.Array:
        """See `Decoder.states`; in the compute dtype, every prompt computed once."""
        chex.assert_equal_shape([tokens, mask])
        params = compute_params(params, self.dtype, learned=True)
        context = prompt_context(self, params, prompts, prompt_mask, prefix)
        batch, length = tokens.shape
        group = batch // prompts.shape[0]
        first = jnp.repeat(context.last_tokens, group)
        inputs = jnp.concatenate([first[:, None], tokens[:, :-1]], axis=1)
        positions = jnp.repeat(context.last_positions, group)[:, None] + jnp.arange(length)
        return run_block(self, params, inputs, positions, mask, context.blocks)[0]

    @nn.nowrap
    def output_weight(self, params: Params) -> jax.Array:
        """See `Decoder.output_weight`: `lm_head` where there is one, else the tied embedding."""
        return output_weight(params)

    @nn.nowrap
    def logps(
        self,
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
        """See `Decoder.logps`; no more than a tile of the vocabulary's logits is held at once.

        `tile` is the words of one, by default as many as `hidden_token_logps` says.
        """
        params = compute_params(params, self.dtype, learned=True)
        return hidden_token_logps(
            self.states(params, prompts, prompt_mask, tokens, mask, prefix=prefix),
            output_weight(params),
            tokens,
            temperature=temperature,
            tile=tile,
            mesh=self.mesh,
        )

    @nn.nowrap
    def prefix_block(self, params: Params, prefix: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See `SharingDecoder.prefix_block`."""
        params = compute_params(params, self.dtype, learned=True)
        (block,) = encode_prefix(self, params, prefix)
        return block.keys, block.values

    @nn.nowrap
    def shared_states(
        self,
        params: Params,
        prompts: jax.Array,
        prompt_mask: jax.Array,
        tokens: jax.Array,
        layout: Layout,
        *,
        prefix: jax.Array | None = None,
    ) -> jax.Array:
        """See `SharingDecoder.shared_states`."""
        params = compute_params(params, self.dtype, learned=True)
        blocks = encode_prefix(self, params, prefix)
        offset = blocks[0].mask.shape[1] if blocks else 0
        rows = rows_of(layout, prompts, prompt_mask, tokens, offset=offset)
        hidden, _ = run_block(self, params, rows.tokens, rows.positions, rows.documents, blocks)
        return hidden

    @nn.nowrap
    def shared_logps(
        self,
        params: Params,
        prompts: jax.Array,
        prompt_mask: jax.Array,
        tokens: jax.Array,
        layout: Layout,
        *,
        prefix: jax.Array | None = None,
        temperature: float = 1.0,
    ) -> jax.Array:
        """See `SharingDecoder.shared_logps`."""
        params = compute_params(params, self.dtype, learned=True)
        hidden = self.shared_states(params, prompts, prompt_mask, tokens, layout, prefix=prefix)
        targets = layout.take(jnp.zeros_like(prompts), tokens)
        return layout.back(
            hidden_token_logps(
                hidden, output_weight(params), targets, temperature=temperature, mesh=self.mesh
            )
        )
