"""The optimizers of the experiments, with a warm-up, a held rate and a decay; and a guard."""

import dataclasses
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

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


@runtime_checkable
class Optimizer(Protocol):
    """`(learning_rate, max_grad_norm=…) -> optax.GradientTransformation`."""

    def __call__(  # noqa: D102
        self, learning_rate: optax.ScalarOrSchedule, *, max_grad_norm: float
    ) -> optax.GradientTransformation: ...


@dataclasses.dataclass(frozen=True)
class AdamW(Checked):
    """AdamW on gradients clipped to a global norm; short memories, no weight decay by default.

    Its two moments take 8 bytes a parameter, 6 with the first one in bfloat16.
    """

    b1: BelowOne = 0.5
    """Decay rate of the mean of gradients (β₁). Ours: a run has tens of steps, and the pull to
    refuse turns within a few."""
    b2: BelowOne = 0.95
    """Decay rate of the mean of their squares (β₂); ours too."""
    eps: Positive = 1e-8
    """Added to the root of the mean of squares (ε)."""
    weight_decay: Weight = 0.0
    """Share of each parameter that an update takes off, times the learning rate."""
    mu_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype that the mean of gradients is kept in. It is rounded anew at each update, so that with
    β₁ near 1 bfloat16 loses what a gradient adds; the mean of squares is always float32."""

    def __call__(
        self, learning_rate: optax.ScalarOrSchedule, *, max_grad_norm: float
    ) -> optax.GradientTransformation:
        """The optax transformation."""
        return optax.chain(
            optax.clip_by_global_norm(max_grad_norm),
            optax.adamw(learning_rate, **vars(self)),
        )


@dataclasses.dataclass(frozen=True)
class Adafactor(Checked):
    """Adafactor on gradients clipped to a global norm: of their squares a few means alone.

        R ← β R + (1 − β) rows' means of g²,   C ← β C + (1 − β) columns' means of g²
        u = g / √(R Cᵀ / mean R),   change = −η u / max(1, rms(u) / threshold),   β = 1 − t^−rate

    For a matrix of m rows and n columns that is m + n numbers in the place of Adam's 2 m n; for one
    with a side below 128, such as an adapter's, the mean of g² itself. A change is not scaled by
    the size of the parameter, as the paper's is, so that rates are as AdamW's (ours). Source:
    Shazeer and Stern 2018 (arXiv 1804.04235).
    """

    decay_rate: BelowOne = 0.8
    """How fast the means of squares grow longer: at update t, from 1 on, β is 1 − t^−rate."""
    clipping_threshold: Positive = 1.0
    """Bound on the root mean square of a parameter's change, of all layers, before the rate."""
    weight_decay: Weight = 0.0
    """Share of each parameter that an update takes off, times the learning rate."""

    def __call__(
        self, learning_rate: optax.ScalarOrSchedule, *, max_grad_norm: float
    ) -> optax.GradientTransformation:
        """The optax transformation."""
        return optax.chain(
            optax.clip_by_global_norm(max_grad_norm),
            optax.scale_by_factored_rms(decay_rate=self.decay_rate),
            optax.clip_by_block_rms(self.clipping_threshold),
            optax.add_decayed_weights(self.weight_decay),
            optax.scale_by_learning_rate(learning_rate),
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
