"""What passes between the floors: prompts, completions, scores. Knows jax alone.

N prompts, G samples of each, B = N·G rows, T completion tokens. What has a row of each prompt or
completion (`Prompts`, `Rollout`) and what a batch shares (its prefix, its tool, its endings) are
different types, so that micro-batches split the one and keep the other.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

Params = Any
"""A pytree of arrays, as the network has it."""

Metrics = dict[str, jax.Array]
"""Scalars to log, by name."""

KINDS: tuple[Literal["harmful", "benign", "lookalike"], ...] = ("harmful", "benign", "lookalike")
"""Every kind of prompt, in the order of a batch. A look-alike is safe and reads like a harmful one.
"""


@struct.dataclass
class Prompts:
    """N prompts, a row of each.

    Attributes:
      tokens: `[N, P]` int32, padded on either side.
      mask: `[N, P]` bool, at least one True in each row.
    """

    tokens: jax.Array
    mask: jax.Array


@struct.dataclass
class Batch:
    """N prompts, what the reward knows of them, and what they share.

    Attributes:
      prompts: the rows that the policy reads.
      kind: `[N]` int32 index into `KINDS`; None where prompts have no kinds.
      facts: whatever else the reward needs to know of the prompts, or None.
      prefix: `[P0]` int32, the tokens that open every prompt; may be empty, or None for none.
      tool: what a completion may call, a `jaxalign.sampling.Tool`; None for nothing.
      endings: words that end a completion, a `jaxalign.sampling.Endings`; None for none.
    """

    prompts: Prompts
    kind: jax.Array | None = None
    facts: Any = None
    prefix: jax.Array | None = None
    tool: Any = None
    endings: Any = None


@struct.dataclass
class Rollout:
    """Completions of N prompts, G each: B = N·G rows, those of one prompt next to each other.

    Attributes:
      tokens: `[B, T]` int32; zero where `present` is False.
      mask: `[B, T]` bool, the generated tokens, included what ended the row.
      present: `[B, T]` bool, the tokens that later ones attend to: those generated and a tool's.
      logps: `[B, T]` float32 log-probabilities under softmax(z / temperature); zero where masked.
      mode: `[B]` int32, which kind of action the row took: 1 if it called a tool, else 0.
      finished: `[B]` bool, whether the row ended by a stop token or by words.
      cut: `[B]` bool, whether a tool's answer did not fit into T tokens, in part or at all.
      prompt_of_row: `[B]` int32, which of the N prompts each row answers; None: equally many rows
        each, in order.
      ending: `[B, T]` bool, the generated tokens of the words that ended the row, which are no part
        of its text (`readable`); None where no words do.
      temperature: of `logps`; static.
    """

    tokens: jax.Array
    mask: jax.Array
    present: jax.Array
    logps: jax.Array
    mode: jax.Array
    finished: jax.Array
    cut: jax.Array
    prompt_of_row: jax.Array | None = None
    ending: jax.Array | None = None
    temperature: float = struct.field(pytree_node=False, default=1.0)

    def readable(self, where: jax.Array) -> jax.Array:
        """Those of the tokens `where`, `mask` or `present`, whose text is read."""
        return where if self.ending is None else where & ~self.ending


def of_rows(per_prompt: jax.Array, samples: Rollout) -> jax.Array:
    """What `[N, …]` says of each row's prompt, `[B, …]`."""
    if samples.prompt_of_row is not None:
        return per_prompt[samples.prompt_of_row]
    return jnp.repeat(per_prompt, samples.tokens.shape[0] // per_prompt.shape[0], axis=0)


class Credit(NamedTuple):
    """What each of K parts of a completion learns from, where they earn apart.

    Attributes:
      rewards: `[K, N, G]` float32, what the tokens of each part learn from.
      part: `[B, T]` int32, the part that each token belongs to, below K. None, with K = 2, in a
        term of a sum: rewards[0] is for all parts but the last and rewards[1] for the last, and
        another term says which tokens those are; without one all tokens earn the term's rewards.
    """

    rewards: jax.Array
    part: jax.Array | None


class Score(NamedTuple):
    """What a reward makes of a rollout.

    Attributes:
      rewards: `[N, G]` float32, what the policy learns from.
      outcome: `[N, G]` float32, what came out before weights and shaping, such as whether the
        verdict was right; None: the rewards themselves.
      terms: name to the `[N, G]` value of each part of a sum, before its weight.
      details: arrays `[B]` to write beside the transcripts.
      metrics: scalars to log.
      credit: what the parts of completions learn from; None: all tokens from the rewards.
    """

    rewards: jax.Array
    outcome: jax.Array | None = None
    terms: dict[str, jax.Array] = {}
    details: dict[str, jax.Array] = {}
    metrics: Metrics = {}
    credit: Credit | None = None
