"""What passes between the floors: prompts, completions, scores. Knows jax alone."""

from typing import Any, NamedTuple

import jax
from flax import struct

Metrics = dict[str, jax.Array]
"""Scalars to log, by name."""


@struct.dataclass
class Batch:
    """N prompts as arrays.

    Attributes:
      prompts: `[N, P]` int32.
      prompt_mask: `[N, P]` bool.
      prefix: `[P0]` int32, the tokens that open every prompt; may be empty, or None for none.
      extras: whatever the reward function needs to know of the prompts.
      tool: what a completion may call, a `jaxalign.sampling.Tool`; None for nothing.
    """

    prompts: jax.Array
    prompt_mask: jax.Array
    prefix: jax.Array | None = None
    extras: Any = None
    tool: Any = None


@struct.dataclass
class Rollout:
    """Completions of N prompts, G each: B = N·G rows, those of one prompt next to each other.

    Attributes:
      tokens: `[B, T]` int32; zero where `present` is False.
      mask: `[B, T]` bool, the generated tokens, stop token included.
      present: `[B, T]` bool, the tokens that later ones attend to: those generated and a tool's.
      logps: `[B, T]` float32 log-probabilities under softmax(z / temperature); zero where masked.
      mode: `[B]` int32, which kind of action the row took: 1 if it called a tool, else 0.
      finished: `[B]` bool, whether the row ended with a stop token.
      cut: `[B]` bool, whether a tool's answer did not fit into T tokens, in part or at all.
    """

    tokens: jax.Array
    mask: jax.Array
    present: jax.Array
    logps: jax.Array
    mode: jax.Array
    finished: jax.Array
    cut: jax.Array


class Score(NamedTuple):
    """What a reward function returns.

    Attributes:
      rewards: `[N, G]` float32.
      metrics: scalars to log.
      details: arrays `[B]` to write beside the transcripts.
    """

    rewards: jax.Array
    metrics: Metrics
    details: dict[str, jax.Array]
