"""The clipped policy-gradient loss of PPO and its descendants: float32 `[B, T]`, unreduced."""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses.aggregate import aggregate
from jaxalign.losses.masks import token_floats, zero_where_masked

# exp(20) ≈ 5e8. Beyond it the ratio is constant, so that no stray position overflows to inf.
MAX_LOG_RATIO = 20.0


def clipped_surrogate(
    logp: jax.Array,
    old_logp: jax.Array,
    advantages: jax.Array,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
    ratio: Literal["token", "sequence"] = "token",
    mask: jax.Array | None = None,
) -> jax.Array:
    """Per-token loss to *minimize*: the negative of PPO's clipped surrogate objective.

    ℓ_t = −min( ρ_t·A_t, clip(ρ_t, 1 − clip_low, 1 + clip_high)·A_t )
    dual clip, where A_t < 0:  ℓ_t ← min( ℓ_t, −dual_clip·A_t )

    ratio="token":     ρ_t = exp(logp_t − old_t)
    ratio="sequence":  ρ_t = exp( sg(m) + logp_t − sg(logp_t) ),
                       m = Σ_s mask_s·(logp_s − old_s) / Σ_s mask_s

    sg stops the gradient. The sequence ratio has one value per row, the geometric mean of its token
    ratios, and each token's gradient goes to its own log-prob: GSPO in value and gradient for
    advantages `[B]`, GSPO-token for `[B, T]`. Reduce it with mode="sequence_mean", as the paper
    does.

    Only `logp` receives a gradient: `old_logp` and `advantages` are constants. For the first update
    after sampling `old_logp=logp` will do; then ρ = 1 and the gradient is REINFORCE's. |log ρ|
    above 20 is cut, without gradient.

    Source: PPO (arXiv 1707.06347), equation 7; unequal bounds: DAPO (arXiv 2503.14476), equation 8,
    clip_high=0.28; dual clip: arXiv 1912.09729; sequence ratio: GSPO (arXiv 2507.18071),
    equation 5.
    TRL: `epsilon`, `epsilon_high` are clip_low, clip_high; `delta=c` is dual_clip=c when
    c ≥ 1 + clip_high; `importance_sampling_level` is ratio. tunix: `epsilon`, `epsilon_high`,
    `epsilon_c`; `loss_algo="gspo-token"` is ratio="sequence". verl: `clip_ratio_low`,
    `clip_ratio_high`, and `clip_ratio_c`, which is dual_clip=3.0 by default. tunix and verl cap a
    sequence ratio at e¹⁰.

    Args:
      logp: `[B, T]` log-probs of the tokens under the policy being trained.
      old_logp: `[B, T]` log-probs under the policy that sampled them.
      advantages: `[B]`, one per completion, or `[B, T]`.
      clip_low: the ratio gains nothing below 1 − clip_low.
      clip_high: the ratio gains nothing above 1 + clip_high.
      dual_clip: above 1; bounds the loss at dual_clip·|A| where A < 0. None: off.
      ratio: one ratio per token or one per completion.
      mask: bool or 0/1 `[B, T]`, the trained tokens. Needed for ratio="sequence". With it the loss
        is 0 elsewhere, and log-probs there may be anything, NaN included.

    Raises:
      ValueError: an unknown ratio, ratio="sequence" without a mask, or dual_clip of 1 or less.
    """
    if dual_clip is not None and dual_clip <= 1:
        raise ValueError(f"dual_clip must be above 1 or None, got {dual_clip}")
    rho, advantages = _ratio_and_advantages(logp, old_logp, advantages, ratio, mask)
    clipped = jnp.clip(rho, 1 - clip_low, 1 + clip_high)
    loss = -jnp.minimum(rho * advantages, clipped * advantages)
    if dual_clip is not None:
        loss = jnp.where(advantages < 0, jnp.minimum(loss, -dual_clip * advantages), loss)
    return zero_where_masked(loss, mask)


def clipped_importance_loss(
    logp: jax.Array,
    old_logp: jax.Array,
    advantages: jax.Array,
    *,
    max_ratio: float = 5.0,
    min_ratio: float = 0.0,
    mask: jax.Array | None = None,
) -> jax.Array:
    """CISPO: REINFORCE with a clipped, constant importance ratio, so that no token is left out.

    ℓ_t = −sg( clip(ρ_t, min_ratio, max_ratio) )·A_t·logp_t,  ρ_t = exp(logp_t − old_t)

    Where PPO's clip drops a token's gradient, this bounds its size.

    Source: CISPO (MiniMax-M1, arXiv 2506.13585), equations 4 and 5.
    TRL: `loss_type="cispo"`, whose `epsilon_high` is max_ratio. verl: "cispo" is min_ratio =
    1 − clip_ratio_low, max_ratio = 1 + clip_ratio_high. tunix: none.

    `max_ratio` and `min_ratio` bound the ratio itself, not its distance from 1; the other arguments
    are those of `clipped_surrogate`.

    Raises:
      ValueError: min_ratio is not below max_ratio.
    """
    if min_ratio >= max_ratio:
        raise ValueError(f"min_ratio must be below max_ratio={max_ratio}, got {min_ratio}")
    rho, advantages = _ratio_and_advantages(logp, old_logp, advantages, "token", mask)
    (logp,) = token_floats(logp, mask=mask)
    weight = jax.lax.stop_gradient(jnp.clip(rho, min_ratio, max_ratio))
    loss = -weight * advantages * logp
    return zero_where_masked(loss, mask)


def soft_gated_surrogate(
    logp: jax.Array,
    old_logp: jax.Array,
    advantages: jax.Array,
    *,
    temperature_positive: float = 1.0,
    temperature_negative: float = 1.05,
    mask: jax.Array | None = None,
) -> jax.Array:
    """SAPO: a smooth gate in place of PPO's hard clip.

    ℓ_t = −(4/τ)·σ( τ·(ρ_t − 1) )·A_t,  τ = τ⁺ where A_t > 0, else τ⁻

    Its slope in ρ is that of PPO at ρ = 1 and fades on both sides, faster for larger τ.

    Source: SAPO (arXiv 2511.20347). TRL: `loss_type="sapo"`, `sapo_temperature_pos`,
    `sapo_temperature_neg`, reduced by sequence_mean. verl: "sapo". tunix: none.

    `temperature_positive` is τ⁺, `temperature_negative` τ⁻, both above 0; the other arguments are
    those of `clipped_surrogate`.

    Raises:
      ValueError: a temperature of 0 or less.
    """
    if min(temperature_positive, temperature_negative) <= 0:
        raise ValueError(
            "temperature_positive and temperature_negative must be above 0, got "
            f"{temperature_positive} and {temperature_negative}"
        )
    rho, advantages = _ratio_and_advantages(logp, old_logp, advantages, "token", mask)
    tau = jnp.where(advantages > 0, temperature_positive, temperature_negative)
    loss = -4.0 / tau * jax.nn.sigmoid(tau * (rho - 1.0)) * advantages
    return zero_where_masked(loss, mask)


def clip_fraction(
    logp: jax.Array,
    old_logp: jax.Array,
    advantages: jax.Array,
    mask: jax.Array,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    ratio: Literal["token", "sequence"] = "token",
    normalizer: jax.Array | float | None = None,
) -> dict[str, jax.Array]:
    """Share of the trained tokens on which a clipped branch, which has no gradient, is active.

    low  = Σ mask·[ρ < 1 − clip_low and A < 0] / Σ mask
    high = Σ mask·[ρ > 1 + clip_high and A > 0] / Σ mask

    Source: PPO (arXiv 1707.06347), as commonly logged.
    TRL: "clip_ratio/low_mean" and "clip_ratio/high_mean"; with one ratio per row it averages over
    rows. tunix, verl: low + high is "pg_clipfrac". Tokens that only dual_clip bounds are not
    counted (their "pg_clipfrac_lower").

    Takes what `clipped_surrogate` was given, and `aggregate`'s `normalizer`: of a micro-batch the
    global number of trained tokens.

    Returns:
      {"clip_low": float32 scalar, "clip_high": float32 scalar}.

    Raises:
      ValueError: an unknown ratio.
    """
    rho, advantages = _ratio_and_advantages(logp, old_logp, advantages, ratio, mask)
    low = (rho < 1 - clip_low) & (advantages < 0)
    high = (rho > 1 + clip_high) & (advantages > 0)
    return {
        "clip_low": aggregate(low, mask, mode="token_mean", normalizer=normalizer),
        "clip_high": aggregate(high, mask, mode="token_mean", normalizer=normalizer),
    }


def _ratio_and_advantages(
    logp: jax.Array,
    old_logp: jax.Array,
    advantages: jax.Array,
    ratio: str,
    mask: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """Importance ratio `[B, T]` and constant advantages `[B, 1]` or `[B, T]`, float32."""
    chex.assert_rank(advantages, {1, 2})
    chex.assert_shape(advantages, logp.shape[: advantages.ndim])
    if ratio not in ("token", "sequence"):
        raise ValueError(f"ratio must be 'token' or 'sequence', got {ratio!r}")
    if ratio == "sequence" and mask is None:
        raise ValueError("ratio='sequence' averages over a completion's tokens and needs mask")

    logp, old_logp = token_floats(logp, old_logp, mask=mask)
    log_ratio = logp - jax.lax.stop_gradient(old_logp)
    if ratio == "sequence":
        lengths = jnp.sum(jnp.asarray(mask, bool), axis=-1, keepdims=True)
        means = jnp.sum(log_ratio, axis=-1, keepdims=True) / jnp.maximum(lengths, 1)
        log_ratio = log_ratio - jax.lax.stop_gradient(log_ratio) + jax.lax.stop_gradient(means)

    rho = jnp.exp(jnp.clip(log_ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    advantages = jax.lax.stop_gradient(jnp.asarray(advantages, jnp.float32))
    return rho, advantages if advantages.ndim == 2 else advantages[:, None]
