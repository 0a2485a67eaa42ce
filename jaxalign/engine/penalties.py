"""The KL to the reference in the loss, as callable dataclasses that flags can choose and fill.

    (logps, reference_logps, old_logps, mask=…) -> [B, T], added with its `coefficient`

From Python any callable of the same form takes their place.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax

from jaxalign.host.fields import Checked, Weight
from jaxalign.losses import kl_divergence


@runtime_checkable
class Penalty(Protocol):
    """`(logps, reference_logps, old_logps, *, mask) -> [B, T]`, an estimate of each token's KL.

    Not a bare function: its attribute `coefficient` says how much of it is added to the loss. (It
    is not declared, so that flags can tell what is a penalty by its method.)
    """

    def __call__(  # noqa: D102
        self,
        logps: jax.Array,
        reference_logps: jax.Array,
        old_logps: jax.Array,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array: ...


@dataclasses.dataclass(frozen=True)
class KL(Checked):
    """k3 times the ratio to the sampling policy, whose gradient is the KL's after updates too.

    With several updates to a rollout the policy moves off the one that sampled: K2 is biased then,
    by 9 to 60 % of the gradient in our tests (docs/losses.md). With one update both have the same
    gradient.
    """

    coefficient: Weight = 0.02
    """Weight of the KL to the start model in the loss."""

    def __call__(
        self,
        logps: jax.Array,
        reference_logps: jax.Array,
        old_logps: jax.Array,
        *,
        mask: jax.Array | None = None,
    ) -> jax.Array:
        """`[B, T]`."""
        return kl_divergence(logps, reference_logps, mask=mask, **self._estimator(old_logps))

    def _estimator(self, old_logps: jax.Array) -> dict[str, Any]:
        """Which of `kl_divergence`'s estimates it is."""
        return {"estimator": "k3", "old_logp": old_logps}


@dataclasses.dataclass(frozen=True)
class K2(KL):
    """The estimate d²/2, whose gradient is the KL's for the first update to a rollout alone."""

    def _estimator(self, old_logps: jax.Array) -> dict[str, Any]:
        return {"estimator": "k2"}


@dataclasses.dataclass(frozen=True)
class K3(KL):
    """The estimate e^d - d - 1, with the gradient of TRL's older versions, tunix and verl."""

    def _estimator(self, old_logps: jax.Array) -> dict[str, Any]:
        return {"estimator": "k3"}
