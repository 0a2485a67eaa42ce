"""Estimates of the KL divergence from the reference policy, from one sampled token each."""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxalign.losses.masks import token_floats
from jaxalign.losses.policy import MAX_LOG_RATIO


def kl_divergence(
    logp: jax.Array,
    ref_logp: jax.Array,
    *,
    estimator: Literal["k1", "k2", "k3"] = "k2",
    old_logp: jax.Array | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Per-token estimate of KL(π‖π_ref) for tokens sampled from π.

    With d_t = ref_t − logp_t:

    k1 = −d              gradient of logp: 1            unbiased value, can be negative
    k2 = d²/2            gradient of logp: −d           biased value, small variance
    k3 = e^d − d − 1     gradient of logp: 1 − e^d      unbiased value, never negative
    ρ·k3, ρ = exp(logp − old)          gradient: −ρ·d   k3 with old_logp; unbiased off-policy too

    As a *loss* use k2: averaged over tokens sampled from π, its gradient is that of the KL at each
    position (what a token does to later positions is left out, as in every per-token loss). For
    several updates on the same samples use ρ·k3 (estimator="k3" with `old_logp`): ρ is
    differentiated too, so that its gradient stays right off-policy and is k2's at ρ = 1.

    Do not minimize k1: the reference drops out of its gradient, which only lowers the log-prob of
    whatever was sampled and averages to zero. k3 alone pulls along the KL the other way round,
    KL(π_ref‖π). As a *reward penalty*, without gradient, k1 and k3 are both sound.

    `ref_logp` and `old_logp` are constants. k3 cuts d above 20; k3 alone then has no gradient, ρ·k3
    still has −ρ·d. |log ρ| above 20 is cut.

    Source: estimators: J. Schulman, "Approximating KL divergence" (2020); their gradients: arXiv
    2506.09477; ratio times k3: DeepSeek-V3.2 (arXiv 2512.02556).
    TRL: ρ·k3 is the default, with the row's ratio if `importance_sampling_level="sequence"` (which
    no argument gives here); `use_bias_correction_kl=False` is k3. tunix: `kl_loss_mode` "kl" (its
    default), "mse_kl", "low_var_kl" are k1, k2, k3. verl: "kl", "mse", "low_var_kl"; the last also
    clips d to ±20 and the result to ±10.

    Args:
      logp: `[B, T]` log-probs of the tokens under the policy being trained.
      ref_logp: `[B, T]` log-probs under the frozen reference, at the same temperature.
      estimator: "k1", "k2" or "k3".
      old_logp: `[B, T]` log-probs under the policy that sampled the tokens; with "k3" only.
      mask: bool or 0/1 `[B, T]`, the trained tokens; with it value and gradient are 0 elsewhere,
        whatever stands there, NaN included.

    Returns:
      float32 `[B, T]`, unreduced.

    Raises:
      ValueError: an unknown estimator, or old_logp with another than "k3".
    """
    if old_logp is not None and estimator != "k3":
        raise ValueError(f"old_logp weighs estimator='k3' alone, got estimator={estimator!r}")
    logp, ref_logp = token_floats(logp, ref_logp, mask=mask)
    d = jax.lax.stop_gradient(ref_logp) - logp
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return 0.5 * d**2
    if estimator != "k3":
        raise ValueError(f"estimator must be 'k1', 'k2' or 'k3', got {estimator!r}")
    cut = jnp.minimum(d, MAX_LOG_RATIO)
    k3 = jnp.expm1(cut) - cut  # expm1 keeps the digits of a small d
    if old_logp is None:
        return k3

    logp, old_logp = token_floats(logp, old_logp, mask=mask)
    log_ratio = jax.lax.stop_gradient(logp - old_logp)
    ratio = jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    # Differentiated term by term, ρ·k3 + ρ·(1 − e^d) loses the digits of −ρ·d when e^d is large.
    value, slope = jax.lax.stop_gradient((ratio * k3, ratio * d))
    return value + slope * (d - jax.lax.stop_gradient(d))
