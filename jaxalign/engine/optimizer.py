"""The optimizer of the experiments: AdamW, warm-up, a held rate, decay; and a guard."""

import dataclasses
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax

from jaxalign.host.fields import BelowOne, Checked, Positive, Weight
from jaxalign.records import Params


@runtime_checkable
class Decay(Protocol):
    """`(peak, steps) -> schedule` that falls from the peak to 0 over so many steps."""

    def __call__(self, peak: float, steps: int) -> optax.Schedule: ...  # noqa: D102


@dataclasses.dataclass(frozen=True)
class Linear:
    """η_t = peak · (1 − t/steps)."""

    def __call__(self, peak: float, steps: int) -> optax.Schedule:
        """The schedule."""
        return optax.linear_schedule(peak, 0.0, steps)


@dataclasses.dataclass(frozen=True)
class Cosine:
    """η_t = peak · (1 + cos(π t/steps))/2."""

    def __call__(self, peak: float, steps: int) -> optax.Schedule:
        """The schedule."""
        return optax.cosine_decay_schedule(peak, max(steps, 1))


def learning_rates(
    peak: float,
    *,
    steps: int,
    warmup_steps: int,
    decay_steps: int,
    decay: Decay = Linear(),  # noqa: B008
) -> optax.Schedule:
    """Linear warm-up to `peak`, a constant rate, decay to zero.

        η_t = peak · (t + 1)/(warmup + 1)     t < warmup
        η_t = peak                            until steps − decay
        η_t = peak · (steps − t)/decay        after that, with `Linear`

    A warm-up or decay that does not fit into the run's steps is cut short.
    """
    warmup = min(warmup_steps, steps)
    last = min(decay_steps, steps - warmup)
    return optax.join_schedules(
        [
            optax.linear_schedule(peak / (warmup + 1), peak, warmup),
            optax.constant_schedule(peak),
            decay(peak, last),
        ],
        [warmup, steps - last],
    )


@dataclasses.dataclass(frozen=True)
class AdamW(Checked):
    """AdamW on gradients clipped to a global norm; short memories, no weight decay by default."""

    b1: BelowOne = 0.5
    """Decay rate of the mean of gradients (β₁). Ours: a run has tens of steps, and the pull to
    refuse turns within a few."""
    b2: BelowOne = 0.95
    """Decay rate of the mean of their squares (β₂); ours too."""
    eps: Positive = 1e-8
    """Added to the root of the mean of squares (ε)."""
    weight_decay: Weight = 0.0
    """Share of each parameter that an update takes off, times the learning rate."""

    def __call__(
        self, learning_rate: optax.ScalarOrSchedule, *, max_grad_norm: float
    ) -> optax.GradientTransformation:
        """The optax transformation."""
        return optax.chain(
            optax.clip_by_global_norm(max_grad_norm),
            optax.adamw(learning_rate, **vars(self)),
        )


class SkipState(NamedTuple):
    """Of `skip_nonfinite`.

    Attributes:
      inner: the wrapped optimizer's state.
      skipped: scalar int32, updates left out.
    """

    inner: Any
    skipped: jax.Array


def skip_nonfinite(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer that leaves an update out, and counts it, where the gradient is not finite.

    The gradient's norm decides, before anything is updated, so that every parameter and moment is
    written in its own place: a decision that looked at the update too would hold a second copy of
    all of them until it is made. This wrapper is the outermost one, where a step looks for the
    count.
    """

    def init(params: Params) -> SkipState:
        return SkipState(optimizer.init(params), jnp.zeros((), jnp.int32))

    def update(
        gradients: Params, state: SkipState, params: Params | None = None
    ) -> tuple[Params, SkipState]:
        changes, inner = optimizer.update(gradients, state.inner, params)
        finite = jnp.isfinite(optax.tree.norm(gradients))
        keep = lambda new, old: jnp.where(finite, new, old)  # noqa: E731
        changes = jax.tree.map(lambda change: jnp.where(finite, change, 0.0), changes)
        return changes, SkipState(jax.tree.map(keep, inner, state.inner), state.skipped + ~finite)

    return optax.GradientTransformation(init, update)


def skipped_updates(opt_state: Any) -> jax.Array:
    """How many updates `skip_nonfinite` has left out; 0 of any other optimizer's state."""
    return opt_state.skipped if isinstance(opt_state, SkipState) else jnp.zeros((), jnp.int32)


def with_critic_optimizer(
    policy: optax.GradientTransformation, critic: optax.GradientTransformation
) -> optax.GradientTransformation:
    """One optimizer for what PPO trains, each part by its own (`optax.partition`)."""
    names = {"policy": "policy", "critic": "critic"}
    return optax.partition({"policy": policy, "critic": critic}, names)
