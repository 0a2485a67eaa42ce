"""Losses of tokens, as callable dataclasses that flags can choose and fill.

    (logps, old_logps, advantages, mask=…) -> [B, T], unreduced

From Python any function of the same form takes their place.
"""

import dataclasses
from typing import Annotated, Literal, Protocol, runtime_checkable

import jax

from jaxalign.host.errors import InputError
from jaxalign.host.fields import Checked, Positive, Rule, Share, Weight
from jaxalign.losses import (
    clip_fraction,
    clipped_importance_loss,
    clipped_surrogate,
    soft_gated_surrogate,
)
from jaxalign.records import Metrics


@runtime_checkable
class Surrogate(Protocol):
    """`(logps, old_logps, advantages, *, mask) -> [B, T]` per-token loss, unreduced."""

    def __call__(  # noqa: D102
        self,
        logps: jax.Array,
        old_logps: jax.Array,
        advantages: jax.Array,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array: ...


@dataclasses.dataclass(frozen=True)
class Clipped(Checked):
    """PPO's clipped surrogate (`clipped_surrogate`), of GRPO, DAPO, GSPO and Dr.GRPO too."""

    low: Share = 0.2
    """The ratio gains nothing below 1 - low."""
    high: Weight = 0.2
    """The ratio gains nothing above 1 + high; DAPO takes 0.28."""
    dual: Annotated[float, Rule(lambda x: x > 1, "must be a number above 1, or None")] | None = None
    """Above 1: bounds the loss where the advantage is negative; None for no bound."""
    ratio: Literal["token", "sequence"] = "token"
    """One ratio per token, or one per completion as in GSPO."""

    def __call__(
        self,
        logps: jax.Array,
        old_logps: jax.Array,
        advantages: jax.Array,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """`[B, T]`."""
        return clipped_surrogate(
            logps,
            old_logps,
            advantages,
            clip_low=self.low,
            clip_high=self.high,
            dual_clip=self.dual,
            ratio=self.ratio,
            mask=mask,
        )

    def fractions(
        self,
        logps: jax.Array,
        old_logps: jax.Array,
        advantages: jax.Array,
        mask: jax.Array,
        *,
        normalizer: jax.Array,
    ) -> Metrics:
        """`clip_low` and `clip_high`: shares of the tokens on which a bound is active."""
        return clip_fraction(
            logps,
            old_logps,
            advantages,
            mask,
            clip_low=self.low,
            clip_high=self.high,
            ratio=self.ratio,
            normalizer=normalizer,
        )


@dataclasses.dataclass(frozen=True)
class Cispo(Checked):
    """CISPO: REINFORCE with a clipped, constant ratio (`clipped_importance_loss`)."""

    max_ratio: Positive = 5.0
    """Upper bound of the ratio itself."""
    min_ratio: Weight = 0.0
    """Lower bound of the ratio."""

    def check_fields(self, above: str) -> None:
        """Also that there is something between the bounds."""
        super().check_fields(above)
        if self.min_ratio >= self.max_ratio:
            raise InputError(f"{above}max_ratio={self.max_ratio} must be above min_ratio")

    def __call__(
        self,
        logps: jax.Array,
        old_logps: jax.Array,
        advantages: jax.Array,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """`[B, T]`."""
        return clipped_importance_loss(logps, old_logps, advantages, mask=mask, **vars(self))


@dataclasses.dataclass(frozen=True)
class SoftGated(Checked):
    """SAPO: a smooth gate in place of the hard clip (`soft_gated_surrogate`)."""

    temperature_positive: Positive = 1.0
    """Temperature of the gate where the advantage is positive, above 0."""
    temperature_negative: Positive = 1.05
    """Temperature of the gate where it is not, above 0."""

    def __call__(
        self,
        logps: jax.Array,
        old_logps: jax.Array,
        advantages: jax.Array,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """`[B, T]`."""
        return soft_gated_surrogate(logps, old_logps, advantages, mask=mask, **vars(self))
