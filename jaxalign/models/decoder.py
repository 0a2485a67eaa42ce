"""What sampling and training ask of a network, and the plainest answer to it.

The library owns the loops, the user the network. `jaxalign.models.Transformer` is a `Decoder`;
`plain_decoder` makes one of any function from tokens to logits.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import chex
import jax
import jax.numpy as jnp
from flax import struct

from jaxalign.models.shared_rows import Layout
from jaxalign.records import Params


class Decoder(Protocol):
    """A language model as pure functions of its parameters.

    N prompts `[N, P]`, G samples of each, B = N·G rows with those of one prompt next to each other,
    T completion tokens, V words. The first input of a completion is its prompt's last token.
    """

    @property
    def max_positions(self) -> int:
        """The longest row, prefix, prompt and completion together."""

    def prefill(
        self,
        params: Params,
        prompts: jax.Array,
        prompt_mask: jax.Array,
        prefix: jax.Array | None = None,
    ) -> Any:
        """The context of N prompts, computed once a prompt; any pytree.

        Args:
          params: the network's.
          prompts: `[N, P]` int32, padded on either side.
          prompt_mask: `[N, P]` bool, at least one True in each row.
          prefix: `[P0]` int32, tokens that open every prompt; may be empty, or None for none.
        """

    def start(
        self, params: Params, context: Any, samples_per_prompt: int, max_new_tokens: int
    ) -> Any:
        """An empty cache of B = N·G completions of up to T tokens; any pytree."""

    def next_logits(
        self, params: Params, context: Any, cache: Any, token: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Logits `[B, V]` float32 of token number `step`, after the input `token` `[B]`.

        At step 0 the input is the prompt's last token, afterwards what was drawn before.
        """

    def take(self, context: Any, cache: Any, rows: jax.Array) -> tuple[Any, Any]:
        """The context and cache of some rows `[M]`, for a loop that goes on with these alone.

        Row m is then the only sample of prompt m.
        """

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
    ) -> jax.Array:
        """Log-probabilities of completions, differentiable in `params`.

        Args:
          params: the network's.
          prompts: `[N, P]` int32.
          prompt_mask: `[N, P]` bool.
          tokens: `[B, T]` int32 completions.
          mask: `[B, T]` bool, a prefix of each row: which tokens exist.
          prefix: as for `prefill`.
          temperature: of the policy, as it sampled.

        Returns:
          `[B, T]` float32 log π(tokens) under softmax(z / temperature); values where `mask` is
          False mean nothing.
        """


@runtime_checkable
class StatesDecoder(Decoder, Protocol):
    """A `Decoder` that also gives hidden states, which critics, reward heads and entropies need."""

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
        """`[B, T, D]` last hidden states; state t has seen the prompt and the tokens before t."""

    def output_weight(self, params: Params) -> jax.Array:
        """`[V, D]`; logits are its products with the states."""


@runtime_checkable
class SharingDecoder(StatesDecoder, Protocol):
    """A `StatesDecoder` whose completions can share rows (`jaxalign.models.shared_rows`)."""

    def prefix_block(self, params: Params, prefix: jax.Array) -> Any:
        """What all rows need of the prefix `[P0]`, of one token at least; differentiable.

        Parameters of `jaxalign.models.completion.with_prefix` bring it along.
        """

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
        """`[S·R, L, D]`: `states` of what lies in a layout's rows, which has it `back`."""

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
        """`[B, T]`: `logps` of the tokens that a layout's rows hold, 0 of others."""


Apply = Callable[[Params, jax.Array, jax.Array], jax.Array]
"""`(params, tokens [B, S], mask [B, S]) -> logits [B, S, V]`, causal, rows padded on the right."""


@struct.dataclass
class PlainRows:
    """Rows of tokens without gaps: prefix, prompt, and the completion as far as it goes.

    Attributes:
      tokens: `[M, S]` int32.
      lengths: `[M]` int32, tokens before the completion.
    """

    tokens: jax.Array
    lengths: jax.Array


@dataclasses.dataclass(frozen=True)
class PlainDecoder:
    """See `plain_decoder`."""

    apply: Apply
    max_positions: int

    def prefill(
        self,
        params: Params,
        prompts: jax.Array,
        prompt_mask: jax.Array,
        prefix: jax.Array | None = None,
    ) -> PlainRows:
        """The prompts without gaps; nothing is computed."""
        del params
        chex.assert_rank([prompts, prompt_mask], 2)
        # Real tokens first, in their order; what is behind them is not read.
        order = jnp.argsort(~prompt_mask, axis=1, stable=True)
        tokens = jnp.take_along_axis(jnp.where(prompt_mask, prompts, 0), order, axis=1)
        lengths = prompt_mask.sum(axis=1)
        if prefix is not None:
            shared = jnp.broadcast_to(prefix, (prompts.shape[0], prefix.shape[0]))
            tokens = jnp.concatenate([shared, tokens], axis=1)
            lengths = lengths + prefix.shape[0]
        return PlainRows(tokens, lengths.astype(jnp.int32))

    def start(
        self, params: Params, context: PlainRows, samples_per_prompt: int, max_new_tokens: int
    ) -> PlainRows:
        """The rows, with room for the completions."""
        del params
        tokens = jnp.pad(context.tokens, ((0, 0), (0, max_new_tokens)))
        return jax.tree.map(
            lambda x: jnp.repeat(x, samples_per_prompt, axis=0), PlainRows(tokens, context.lengths)
        )

    def next_logits(
        self,
        params: Params,
        context: PlainRows,
        cache: PlainRows,
        token: jax.Array,
        step: jax.Array,
    ) -> tuple[jax.Array, PlainRows]:
        """Runs the whole rows, and takes the last token's logits."""
        del context
        place = cache.lengths - 1 + step
        tokens = jax.vmap(lambda row, at, new: row.at[at].set(new))(cache.tokens, place, token)
        mask = jnp.arange(tokens.shape[1]) <= place[:, None]
        scores = self.apply(params, tokens, mask)
        last = jnp.take_along_axis(scores, place[:, None, None], axis=1)[:, 0]
        return last.astype(jnp.float32), PlainRows(tokens, cache.lengths)

    def take(
        self, context: PlainRows, cache: PlainRows, rows: jax.Array
    ) -> tuple[PlainRows, PlainRows]:
        """See `Decoder.take`."""
        group = cache.lengths.shape[0] // context.lengths.shape[0]
        prompts = jax.tree.map(lambda x: x[rows // group], context)
        return prompts, jax.tree.map(lambda x: x[rows], cache)

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
    ) -> jax.Array:
        """Runs the whole rows once."""
        context = self.prefill(params, prompts, prompt_mask, prefix)
        group, length = tokens.shape[0] // prompts.shape[0], tokens.shape[1]
        rows = self.start(params, context, group, length)
        place = rows.lengths[:, None] + jnp.arange(length)
        put = jax.vmap(lambda row, at, new: row.at[at].set(new))
        whole = put(rows.tokens, place, jnp.where(mask, tokens, 0))
        exists = jnp.arange(whole.shape[1]) < (rows.lengths + mask.sum(axis=1))[:, None]
        scores = self.apply(params, whole, exists).astype(jnp.float32) / temperature
        before = jnp.take_along_axis(scores, (place - 1)[:, :, None], axis=1)
        chosen = jnp.take_along_axis(before, tokens[:, :, None], axis=2)[:, :, 0]
        return chosen - jax.nn.logsumexp(before, axis=2)


def plain_decoder(apply: Apply, *, max_positions: int) -> PlainDecoder:
    """A `Decoder` of any network. It has no cache: every token runs the whole row. Slow, right.

    Args:
      apply: `(params, tokens [B, S], mask [B, S]) -> logits [B, S, V]`; causal. Rows have no gaps
        and are padded on the right, where `mask` is False. Of flax.linen it is
        `lambda params, tokens, mask: module.apply({"params": params}, tokens)`; of flax.nnx and
        equinox docs/engine.md has it.
      max_positions: the longest row that it takes.
    """
    return PlainDecoder(apply, max_positions)
