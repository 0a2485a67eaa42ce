"""What rewards are held to, as callable dataclasses that flags can choose and fill.

    advantages   (rewards [N, G]) -> [N, G]
    adjust       (advantages [N, G], score, samples) -> [N, G]

From Python any function of the same form takes their place.
"""

import dataclasses
import math
from typing import Annotated, Literal, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxalign.host.errors import InputError
from jaxalign.host.fields import Checked, Rule, Share, Weight, at_least
from jaxalign.losses import (
    batch_advantages,
    group_advantages,
    inverse_frequency_advantages,
    leave_one_out_advantages,
    mode_weights,
    multi_reward_advantages,
    shrinkage_advantages,
)
from jaxalign.records import Rollout, Score

_Ddof = Annotated[int, Rule(lambda x: x in (0, 1), "must be 0 or 1")]
_FINITE = Rule(
    lambda x: len(x) > 0 and all(map(math.isfinite, x)), "must be a number for each term"
)


@runtime_checkable
class Advantages(Protocol):
    """`(rewards [N, G]) -> advantages [N, G]` float32, of the whole batch.

    Of a reward with `Credit` for K parts it gets `[K·N, G]`: K times the batch, each less its mean.
    """

    def __call__(self, rewards: jax.Array) -> jax.Array: ...  # noqa: D102


@dataclasses.dataclass(frozen=True)
class Group(Checked):
    """GRPO: rewards are held to the mean of the prompt's own samples (`group_advantages`)."""

    scale: bool = True
    """Divide by the standard deviation; without it, Dr.GRPO."""
    ddof: _Ddof = 1
    """1 for the sample deviation, 0 for the population deviation."""
    eps: Weight = 1e-4
    """Added to the deviation."""

    def __call__(self, rewards: jax.Array) -> jax.Array:
        """`[N, G]`."""
        return group_advantages(rewards, **vars(self))


@dataclasses.dataclass(frozen=True)
class WholeBatch(Checked):
    """REINFORCE++: rewards are held to the mean of the whole batch (`batch_advantages`).

    Under it "refuse everything" is not an absorbing state.
    """

    scale: bool = True
    """Divide by the standard deviation."""
    ddof: _Ddof = 1
    """1 for the sample deviation, 0 for the population deviation."""
    eps: Weight = 1e-4
    """Added to the deviation."""

    def __call__(self, rewards: jax.Array) -> jax.Array:
        """`[N, G]`."""
        return batch_advantages(rewards, **vars(self))


@dataclasses.dataclass(frozen=True)
class Shrinkage(Checked):
    """Rewards are held to a mean between the prompt's own and the batch's. Ours.

    Less noise than the whole batch's mean, and a weaker push out of "refuse everything"
    (`shrinkage_advantages`).
    """

    weight: Share = 0.5
    """Weight of the batch's mean, from 0 to 1."""
    scale: bool = True
    """Divide by the batch's standard deviation."""
    ddof: _Ddof = 1
    """1 for the sample deviation, 0 for the population deviation."""
    eps: Weight = 1e-4
    """Added to the deviation."""

    def __call__(self, rewards: jax.Array) -> jax.Array:
        """`[N, G]`."""
        return shrinkage_advantages(rewards, **vars(self))


@dataclasses.dataclass(frozen=True)
class LeaveOneOut:
    """RLOO: each reward is held to the prompt's other samples (`leave_one_out_advantages`)."""

    def __call__(self, rewards: jax.Array) -> jax.Array:
        """`[N, G]`."""
        return leave_one_out_advantages(rewards)


@runtime_checkable
class Adjust(Protocol):
    """`(advantages [N, G], score, samples) -> advantages [N, G]`, of the whole batch.

    Of a reward with `Credit` it is called for each part, with that part's `score.rewards`.
    """

    def __call__(  # noqa: D102
        self, advantages: jax.Array, score: Score, samples: Rollout
    ) -> jax.Array: ...


@dataclasses.dataclass(frozen=True)
class InverseFrequency(Checked):
    """IFPO: rebalances advantages by how often each sample's mode occurs.

    With IFPO's weights w and the mean Ā of a prompt's advantages, which is 0 for `Group`,

        A_i + (w_i − 1)(A_i − Ā)        form "weight"

    Ā is the same for all samples of a prompt. Weighed like the rest it would move a prompt's modes
    towards ½ or away from it, by no merit of theirs. Leaving it alone is ours. The form "baseline"
    takes the place of GRPO's mean and deviation, so it goes with `Group` alone, whose advantages it
    computes anew from the rewards (`inverse_frequency_advantages`).
    """

    form: Literal["weight", "baseline"] = "weight"
    """Whether the weights multiply advantages or make the baseline."""
    scope: Literal["group", "batch"] = "group"
    """Whether a mode's frequency is counted in a prompt's samples or in the whole step."""
    max_weight: Annotated[float, at_least(1, ", or None")] | None = None
    """The most that a rare sample counts, at least 1; None for no bound. Within a prompt's samples
    the weights are at most G/2 by themselves."""
    num_modes: Annotated[int, at_least(2)] = 2
    """How many modes there may be."""
    scale: bool = True
    """Form "baseline": divide by the standard deviation."""

    def __call__(self, advantages: jax.Array, score: Score, samples: Rollout) -> jax.Array:
        """`[N, G]`."""
        modes = samples.mode.reshape(advantages.shape)
        if self.form == "baseline":
            return inverse_frequency_advantages(score.rewards, modes, **vars(self))
        weights = mode_weights(
            modes, num_modes=self.num_modes, scope=self.scope, max_weight=self.max_weight
        )
        shared = advantages.mean(axis=1, keepdims=True)
        return advantages + (weights - 1.0) * (advantages - shared)


@dataclasses.dataclass(frozen=True)
class PerTerm(Checked):
    """GDPO: each term of the reward is normalised by itself (`multi_reward_advantages`).

    It computes advantages anew, from `Score.terms` in the order in which they were added, and
    gives all tokens the same: what parts of a completion earned apart is left aside.
    """

    weights: Annotated[tuple[float, ...], _FINITE] | None = None
    """Weights of the terms; None weighs all alike. Those of the sum are left aside."""

    def __call__(self, advantages: jax.Array, score: Score, samples: Rollout) -> jax.Array:
        """`[N, G]`.

        Raises:
          InputError: as many weights as terms are needed.
        """
        del advantages, samples
        terms = list(score.terms.values())
        weights = (1.0,) * len(terms) if self.weights is None else self.weights
        if not terms or len(weights) != len(terms):
            names = ", ".join(score.terms) or "(none)"
            raise InputError(
                f"{len(weights)} weights for the reward's terms {names}: give one for each"
            )
        return multi_reward_advantages(jnp.stack(terms, axis=-1), jnp.asarray(weights))
