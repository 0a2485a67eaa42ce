"""What the updates of a step learn from: a rollout with its advantages, row by row."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from jaxalign.engine.gradients import map_parts
from jaxalign.models.shared_rows import Layout
from jaxalign.records import Batch, Params, Prompts, Rollout


@struct.dataclass
class Rows:
    """N prompts and their B = N·G completions; updates take some of them.

    Attributes:
      prompts: the prompts.
      samples: their completions; `logps` are the old log-probabilities.
      mask: `[B, T]` bool, the trained tokens.
      advantages: `[B]`, or `[B, T]`, constants.
      reference_logps: `[B, T]` float32, where a KL is asked for; constants.
      more: whatever else an objective's loss needs of each row or prompt.
    """

    prompts: Prompts
    samples: Rollout
    mask: jax.Array
    advantages: jax.Array
    reference_logps: jax.Array | None = None
    more: Any = None


@struct.dataclass
class Experience:
    """Rows to learn from, and what they share.

    Attributes:
      rows: what has an entry for each prompt or completion.
      prefix: `[P0]` int32, the tokens that open every prompt, or None.
      layout: where completions share rows, those of this part; the mask is of their tokens.
    """

    rows: Rows
    prefix: jax.Array | None
    layout: Layout | None = None

    def logps(self, model: Any, params: Params) -> jax.Array:
        """Log-probabilities of the completions `[B, T]`, differentiable in the parameters."""
        samples, (prompts, tokens) = self.rows.samples, self._given()
        more = {"prefix": self.prefix, "temperature": samples.temperature}
        if self.layout is None:
            logps: jax.Array = model.logps(params, *prompts, tokens, samples.present, **more)
            return logps
        logps = model.shared_logps(params, *prompts, tokens, self.layout, **more)
        # Of a token of another part nothing is known: its ratio is 1.
        return jnp.where(self.layout.holds, logps, samples.logps)

    def of_states(
        self, model: Any, params: Params, function: Callable[[jax.Array], jax.Array]
    ) -> jax.Array:
        """What a function says of the hidden states before each token, `[B, T, …]`.

        Args:
          model: a `StatesDecoder`.
          params: its parameters, in which the result is differentiable.
          function: `[…, D]` states to `[…]` or more of each; called once, for all of them.
        """
        prompts, tokens = self._given()
        if self.layout is None:
            present = self.rows.samples.present
            return function(model.states(params, *prompts, tokens, present, prefix=self.prefix))
        states = model.shared_states(params, *prompts, tokens, self.layout, prefix=self.prefix)
        return self.layout.back(function(states))

    def states(self, model: Any, params: Params) -> jax.Array:
        """Hidden states before each token `[B, T, D]`; the model is a `StatesDecoder`."""
        return self.of_states(model, params, lambda states: states)

    def map(self, function: Callable[["Experience"], jax.Array], parts: int) -> jax.Array:
        """A function's rows, computed for one part of the prompts after the other, for memory."""
        return map_parts(lambda rows: function(Experience(rows, self.prefix)), self.rows, parts)

    def _given(self) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        prompts = self.rows.prompts
        return (prompts.tokens, prompts.mask), self.rows.samples.tokens


def experience_of(
    batch: Batch, samples: Rollout, advantages: jax.Array, mask: jax.Array | None = None
) -> Experience:
    """The experience of a rollout; by default all generated tokens are trained."""
    mask = samples.mask if mask is None else mask
    # A part's rows are counted from its own prompts, so numbers of the whole batch would mislead.
    samples = dataclasses.replace(samples, prompt_of_row=None)
    return Experience(Rows(batch.prompts, samples, mask, advantages), batch.prefix)
