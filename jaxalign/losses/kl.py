"""Estimates of the KL divergence from the reference policy, from one sampled token each."""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

# exp(20) ≈ 5e8. Beyond it k3 is constant, so that no stray position overflows to inf.
_MAX_LOG_RATIO = 20.0


def kl_divergence(
    logp: jax.Array, ref_logp: jax.Array, *, estimator: Literal["k1", "k2", "k3"] = "k2"
) -> jax.Array:
    """Per-token estimate of KL(π‖π_ref) for tokens sampled from π.

    With d_t = ref_t − logp_t:

    k1 = −d            gradient of logp: 1          unbiased value, can be negative
    k2 = d²/2          gradient of logp: −d         biased value, small variance
    k3 = e^d − d − 1   gradient of logp: 1 − e^d    unbiased value, never negative

    As a *loss* use k2: averaged over tokens sampled from π, its gradient is that of the KL at each
    position (what a token does to later positions is left out, as in every per-token loss). For
    several updates on the same samples use k3 times a differentiable importance ratio, whose
    gradient ρ·(logp − ref) stays right off-policy and is k2's at ρ = 1::

        ratio = jnp.exp(logp - jax.lax.stop_gradient(old_logp))
        kl = ratio * kl_divergence(logp, ref_logp, estimator="k3")

    Do not minimize k1: the reference drops out of its gradient, which only lowers the log-prob of
    whatever was sampled and averages to zero. k3 alone pulls along the KL the other way round,
    KL(π_ref‖π). As a *reward penalty*, without gradient, k1 and k3 are both sound.

    `ref_logp` is a constant. k3 cuts d above 20, without gradient. `aggregate` hides the values at
    masked positions, but their gradient is free of NaN only where both log-probs are finite.

    Source: estimators: J. Schulman, "Approximating KL divergence" (2020); their gradients: arXiv
    2506.09477; ratio times k3: DeepSeek-V3.2 (arXiv 2512.02556).
    TRL: ratio·k3 is the default, `use_bias_correction_kl=False` is k3. tunix: `kl_loss_mode` "kl"
    (its default), "mse_kl", "low_var_kl" are k1, k2, k3. verl: "kl", "mse", "low_var_kl"; the last
    also clips d to ±20 and the result to ±10.

    Args:
      logp: `[B, T]` log-probs of the tokens under the policy being trained.
      ref_logp: `[B, T]` log-probs under the frozen reference, at the same temperature.
      estimator: "k1", "k2" or "k3".

    Returns:
      float32 `[B, T]`, unreduced.

    Raises:
      ValueError: an unknown estimator.
    """
    chex.assert_rank([logp, ref_logp], 2)
    chex.assert_equal_shape([logp, ref_logp])
    ref_logp = jax.lax.stop_gradient(jnp.asarray(ref_logp, jnp.float32))
    d = ref_logp - jnp.asarray(logp, jnp.float32)
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return 0.5 * d**2
    if estimator == "k3":
        d = jnp.minimum(d, _MAX_LOG_RATIO)
        return jnp.expm1(d) - d  # expm1 keeps the digits of a small d
    raise ValueError(f"estimator must be 'k1', 'k2' or 'k3', got {estimator!r}")
