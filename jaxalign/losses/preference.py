"""Losses on pairs of answers of which one is preferred: no sampling, no reward model.

Log-probs are `[B]`, one for each pair; those under the reference are constants. Every loss is
float32 `[B]`, unreduced.
"""

import chex
import jax
import jax.numpy as jnp


def preference_loss(
    chosen_logp: jax.Array,
    rejected_logp: jax.Array,
    ref_chosen_logp: jax.Array,
    ref_rejected_logp: jax.Array,
    *,
    beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """DPO: logistic loss of the margin by which the policy, more than the reference, prefers.

    h = (logp_c − ref_c) − (logp_r − ref_r)
    ℓ = −(1 − s)·log σ(β·h) − s·log σ(−β·h)

    Source: DPO (arXiv 2305.18290), equation 7; s > 0: the conservative form of Mitchell (2023).
    TRL: `loss_type="sigmoid"` is s = 0; its `label_smoothing` enters other losses only ("robust" is
    (ℓ₊·(1 − s) − ℓ₋·s)/(1 − 2s)). tunix: `DPOTrainer`, `label_smoothing`. verl: none.

    Args:
      chosen_logp: `[B]` sums of the chosen answers' token log-probs under the policy.
      rejected_logp: `[B]` the same of the rejected answers.
      ref_chosen_logp: `[B]` under the frozen reference; constants.
      ref_rejected_logp: `[B]`; constants.
      beta: how far the policy may leave the reference; small is far.
      label_smoothing: s, the share of labels believed to be wrong; from 0 to below ½.

    Raises:
      ValueError: label_smoothing outside [0, ½).
    """
    _check_smoothing(label_smoothing)
    margin = _margin(chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp)
    return _logistic(beta * margin, label_smoothing)


def identity_preference_loss(
    chosen_logp: jax.Array,
    rejected_logp: jax.Array,
    ref_chosen_logp: jax.Array,
    ref_rejected_logp: jax.Array,
    *,
    beta: float = 0.1,
) -> jax.Array:
    """IPO: the margin is pulled to a finite target, so that certain pairs are not overdone.

    ℓ = (h − 1/(2β))²,  h as in `preference_loss`

    Source: IPO (arXiv 2310.12036), equation 17, whose τ is β.
    TRL: `loss_type="ipo"`, which takes log-probs divided by the answers' lengths: pass those.
    tunix, verl: none.

    Log-probs are sums as in the paper, or means over tokens as in TRL.

    Raises:
      ValueError: a beta of 0 or less.
    """
    if beta <= 0:
        raise ValueError(f"beta must be above 0, got {beta}")
    margin = _margin(chosen_logp, rejected_logp, ref_chosen_logp, ref_rejected_logp)
    return (margin - 1 / (2 * beta)) ** 2


def simple_preference_loss(
    chosen_logp: jax.Array,
    rejected_logp: jax.Array,
    *,
    beta: float = 2.0,
    target_margin: float = 1.0,
    label_smoothing: float = 0.0,
) -> jax.Array:
    """SimPO: DPO without a reference, on log-probs per token, with a margin to reach.

    z = β·(mean logp_c − mean logp_r) − γ
    ℓ = −(1 − s)·log σ(z) − s·log σ(−z)

    Source: SimPO (arXiv 2405.14734), equation 6; γ is `target_margin`.
    TRL: `CPOTrainer` with `loss_type="simpo"`, `cpo_alpha=0`, `simpo_gamma=γ`. tunix, verl: none.

    Args:
      chosen_logp: `[B]` *means* over tokens of the chosen answers' log-probs.
      rejected_logp: `[B]` the same of the rejected answers.
      beta: scale of the difference.
      target_margin: γ.
      label_smoothing: s, from 0 to below ½.

    Raises:
      ValueError: label_smoothing outside [0, ½).
    """
    _check_smoothing(label_smoothing)
    chosen, rejected = _floats(chosen_logp, rejected_logp)
    return _logistic(beta * (chosen - rejected) - target_margin, label_smoothing)


def odds_ratio_loss(chosen_logp: jax.Array, rejected_logp: jax.Array) -> jax.Array:
    """ORPO's term: the odds of the chosen answer against those of the rejected one.

    ℓ = −log σ( log odds_c − log odds_r ),  odds = p/(1 − p),  p = exp(mean log-prob per token)

    ORPO's whole loss is the supervised loss on the chosen answer plus λ times this.

    Source: ORPO (arXiv 2403.07691), equation 7. TRL: `ORPOTrainer`, whose `beta` is λ. tunix:
    `DPOTrainer` with `algorithm="orpo"`, which passes sums in place of means. verl: none.

    Args:
      chosen_logp: `[B]` *means* over tokens of the chosen answers' log-probs, below 0; at 0, where
        the odds are infinite, they count as −10⁻⁶.
      rejected_logp: `[B]` the same of the rejected answers.
    """
    chosen, rejected = _floats(chosen_logp, rejected_logp)
    return -jax.nn.log_sigmoid(_log_odds(chosen) - _log_odds(rejected))


def _floats(*logps: jax.Array) -> list[jax.Array]:
    chex.assert_rank(logps, 1)
    chex.assert_equal_shape(logps)
    return [jnp.asarray(x, jnp.float32) for x in logps]


def _log_odds(logp: jax.Array) -> jax.Array:
    logp = jnp.minimum(logp, -1e-6)
    return logp - jnp.log(-jnp.expm1(logp))  # expm1 keeps the digits of a small 1 − p


def _margin(*logps: jax.Array) -> jax.Array:
    """(logp_c − ref_c) − (logp_r − ref_r), `[B]` float32, with a gradient to the policy alone."""
    chosen, rejected, *reference = _floats(*logps)
    ref_chosen, ref_rejected = jax.lax.stop_gradient(reference)
    return (chosen - ref_chosen) - (rejected - ref_rejected)


def _logistic(z: jax.Array, smoothing: float) -> jax.Array:
    return -(1 - smoothing) * jax.nn.log_sigmoid(z) - smoothing * jax.nn.log_sigmoid(-z)


def _check_smoothing(label_smoothing: float) -> None:
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be from 0 to below 0.5, got {label_smoothing}")
