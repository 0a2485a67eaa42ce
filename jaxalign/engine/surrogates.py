"""Losses of tokens, as callable dataclasses that flags can choose and fill.

    (logps, old_logps, advantages, mask=…) -> [B, T], unreduced

From Python any function of the same form takes their place.
"""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, Literal, Protocol, runtime_checkable

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


class _OfLosses(Checked):
    """A surrogate that is a function of `jaxalign.losses`; its fields become arguments of it."""

    _loss: ClassVar[Callable[..., jax.Array]]

    def _options(self) -> dict[str, Any]:
        return vars(self)

    def __call__(
        self,
        logps: jax.Array,
        old_logps: jax.Array,
        advantages: jax.Array,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """`[B, T]`."""
        return type(self)._loss(logps, old_logps, advantages, mask=mask, **self._options())


@dataclasses.dataclass(frozen=True)
class Clipped(_OfLosses):
    """PPO's clipped surrogate (`clipped_surrogate`), of GRPO, DAPO, GSPO and Dr.GRPO too."""

    low: Share = 0.2
    """The ratio gains nothing below 1 - low."""
    high: Weight = 0.2
    """The ratio gains nothing above 1 + high; DAPO takes 0.28."""
    dual: Annotated[float, Rule(lambda x: x > 1, "must be a number above 1, or None")] | None = None
    """Above 1: bounds the loss where the advantage is negative; None for no bound."""
    ratio: Literal["token", "sequence"] = "token"
    """One ratio per token, or one per completion as in GSPO."""

    _loss = staticmethod(clipped_surrogate)

    def _options(self) -> dict[str, Any]:
        return self._bounds() | {"dual_clip": self.dual}

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
        given = logps, old_logps, advantages, mask
        return clip_fraction(*given, normalizer=normalizer, **self._bounds())

    def _bounds(self) -> dict[str, Any]:
        return {"clip_low": self.low, "clip_high": self.high, "ratio": self.ratio}


@dataclasses.dataclass(frozen=True)
class Cispo(_OfLosses):
    """CISPO: REINFORCE with a clipped, constant ratio (`clipped_importance_loss`)."""

    _loss = staticmethod(clipped_importance_loss)
    max_ratio: Positive = 5.0
    """Upper bound of the ratio itself."""
    min_ratio: Weight = 0.0
    """Lower bound of the ratio."""

    def check_fields(self, above: str) -> None:
        """Also that there is something between the bounds."""
        super().check_fields(above)
        if self.min_ratio >= self.max_ratio:
            raise InputError(f"{above}max_ratio={self.max_ratio} must be above min_ratio")


@dataclasses.dataclass(frozen=True)
class SoftGated(_OfLosses):
    """SAPO: a smooth gate in place of the hard clip (`soft_gated_surrogate`)."""

    _loss = staticmethod(soft_gated_surrogate)
    temperature_positive: Positive = 1.0
    """Temperature of the gate where the advantage is positive, above 0."""
    temperature_negative: Positive = 1.05
    """Temperature of the gate where it is not, above 0."""
