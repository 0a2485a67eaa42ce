"""What the updates of a step learn from: a rollout with its advantages, row by row."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import struct

from jaxalign.engine.gradients import map_parts
from jaxalign.models.decoder import Decoder
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
    """

    rows: Rows
    prefix: jax.Array | None

    def logps(self, model: Decoder, params: Params) -> jax.Array:
        """Log-probabilities of the completions `[B, T]`, differentiable in the parameters."""
        samples = self.rows.samples
        return model.logps(
            params, *self._tokens(), prefix=self.prefix, temperature=samples.temperature
        )

    def states(self, model: Any, params: Params) -> jax.Array:
        """Hidden states before each token `[B, T, D]`; the model is a `StatesDecoder`."""
        states: jax.Array = model.states(params, *self._tokens(), prefix=self.prefix)
        return states

    def map(self, function: Callable[["Experience"], jax.Array], parts: int) -> jax.Array:
        """A function's rows, computed for one part of the prompts after the other, for memory."""
        return map_parts(lambda rows: function(Experience(rows, self.prefix)), self.rows, parts)

    def _tokens(self) -> tuple[jax.Array, ...]:
        prompts, samples = self.rows.prompts, self.rows.samples
        return prompts.tokens, prompts.mask, samples.tokens, samples.present


def experience_of(
    batch: Batch, samples: Rollout, advantages: jax.Array, mask: jax.Array | None = None
) -> Experience:
    """The experience of a rollout; by default all generated tokens are trained."""
    mask = samples.mask if mask is None else mask
    # A part's rows are counted from its own prompts, so numbers of the whole batch would mislead.
    samples = dataclasses.replace(samples, prompt_of_row=None)
    return Experience(Rows(batch.prompts, samples, mask, advantages), batch.prefix)
