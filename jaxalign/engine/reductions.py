"""Which tokens count, and how their losses become a scalar: callable dataclasses.

    aggregation  (values [B, T], mask [B, T], totals) -> scalar
    keep         (score, samples) -> [B, T] bool

From Python any function of the same form takes their place.
"""

import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxalign.host.fields import Checked, Count
from jaxalign.losses import aggregate, denominator, finished_mask, informative_groups
from jaxalign.records import Rollout, Score, of_rows


class Totals(NamedTuple):
    """Counts over all micro-batches of an update, so that their losses add up to the whole's.

    Attributes:
      tokens: scalar float32, trained tokens, at least 1.
      rows: scalar float32, completions with a trained token, at least 1.
      samples: scalar float32, all completions.
    """

    tokens: jax.Array
    rows: jax.Array
    samples: jax.Array

    @classmethod
    def of(cls, mask: jax.Array) -> "Totals":
        """Of the trained tokens `[B, T]` of a whole update."""
        rows = denominator(mask, mode="sequence_mean")
        return cls(
            jnp.maximum(denominator(mask), 1.0),
            jnp.maximum(rows, 1.0),
            jnp.asarray(mask.shape[0], jnp.float32),
        )


@runtime_checkable
class Aggregation(Protocol):
    """`(values [B, T], mask [B, T], totals) -> scalar`; micro-batches' results add up."""

    def __call__(  # noqa: D102
        self, values: jax.Array, mask: jax.Array, totals: Totals
    ) -> jax.Array: ...


@dataclasses.dataclass(frozen=True)
class TokenMean:
    """Every trained token of the batch weighs the same (DAPO)."""

    def __call__(self, values: jax.Array, mask: jax.Array, totals: Totals) -> jax.Array:
        """Scalar."""
        return aggregate(values, mask, normalizer=totals.tokens)


@dataclasses.dataclass(frozen=True)
class SequenceMean:
    """Every completion weighs the same, whatever its length (GRPO, GSPO)."""

    def __call__(self, values: jax.Array, mask: jax.Array, totals: Totals) -> jax.Array:
        """Scalar."""
        return aggregate(values, mask, mode="sequence_mean", normalizer=totals.rows)


@dataclasses.dataclass(frozen=True)
class SequenceSum:
    """The mean over completions of the sums over their tokens."""

    def __call__(self, values: jax.Array, mask: jax.Array, totals: Totals) -> jax.Array:
        """Scalar."""
        return aggregate(values, mask, mode="sequence_sum", normalizer=totals.rows)


@dataclasses.dataclass(frozen=True)
class Constant(Checked):
    """A token's weight does not depend on the batch (Dr.GRPO): completions x `length` divide."""

    length: Count | None = None
    """Tokens that each completion counts for; None: as many as it may have."""

    def __call__(self, values: jax.Array, mask: jax.Array, totals: Totals) -> jax.Array:
        """Scalar."""
        length = mask.shape[1] if self.length is None else self.length
        return aggregate(values, mask, mode="constant", normalizer=totals.samples * length)


@runtime_checkable
class Keep(Protocol):
    """`(score, samples) -> [B, T]` bool, which of the generated tokens are learned from."""

    def __call__(self, score: Score, samples: Rollout) -> jax.Array: ...  # noqa: D102


@dataclasses.dataclass(frozen=True)
class Finished:
    """Leaves out completions that were cut off (`finished_mask`)."""

    def __call__(self, score: Score, samples: Rollout) -> jax.Array:
        """`[B, T]`."""
        return finished_mask(samples.mask, samples.finished)


@dataclasses.dataclass(frozen=True)
class Informative:
    """Leaves out prompts whose samples all have one reward (`informative_groups`)."""

    def __call__(self, score: Score, samples: Rollout) -> jax.Array:
        """`[B, T]`."""
        return samples.mask & of_rows(informative_groups(score.rewards), samples)[:, None]
