"""Weights that correct for a sampler whose probabilities differ from the trainer's."""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxalign.losses.masks import token_floats
from jaxalign.losses.policy import MAX_LOG_RATIO


def importance_weights(
    logp: jax.Array,
    sampler_logp: jax.Array,
    mask: jax.Array,
    *,
    level: Literal["token", "sequence"] = "token",
    outside: Literal["truncate", "mask"] = "truncate",
    max_weight: float = 2.0,
    min_weight: float | None = None,
) -> jax.Array:
    """How much likelier the trainer finds what the sampler drew, bounded.

    level="token":     w_t = exp(logp_t − sampler_t)
    level="sequence":  w = exp( Σ_s mask_s·(logp_s − sampler_s) ), one product for the row
    outside="truncate": w ← min(max(w, min_weight), max_weight)
    outside="mask":     w ← 0 where w > max_weight or w < min_weight

    Multiply the per-token loss by it before adding a KL. Where one program samples and trains, as
    here, all weights are 1 up to rounding; another engine, precision or an older policy moves them.

    Source: truncated importance sampling: Ionides (2008); for language models Yao et al., "Your
    efficient RL framework secretly brings you off-policy RL training" (2025). |log w| above 20 is
    cut.
    TRL: `vllm_importance_sampling_mode` "token_truncate", "token_mask", "sequence_truncate",
    "sequence_mask" (default), `vllm_importance_sampling_clip_max` 3.0. tunix (agentic):
    `sampler_is="token"` is token, truncate, 2.0. verl: `rollout_is` with `rollout_is_threshold`
    2.0.

    Args:
      logp: `[B, T]` the trainer's log-probs before the first update; constants.
      sampler_logp: `[B, T]` the sampler's; constants.
      mask: bool or 0/1 `[B, T]`, the trained tokens.
      level: one weight per token or one per completion.
      outside: what becomes of a weight outside of the bounds.
      max_weight: upper bound, above 0.
      min_weight: lower bound, or None.

    Returns:
      float32 `[B, T]`, 1 where masked.

    Raises:
      ValueError: an unknown level or outside, or bounds of which the lower one is not lower.
    """
    if level not in ("token", "sequence"):
        raise ValueError(f"level must be 'token' or 'sequence', got {level!r}")
    if outside not in ("truncate", "mask"):
        raise ValueError(f"outside must be 'truncate' or 'mask', got {outside!r}")
    if max_weight <= (min_weight or 0.0):
        raise ValueError(f"max_weight must be above {min_weight or 0.0}, got {max_weight}")
    logp, sampler_logp = jax.lax.stop_gradient(token_floats(logp, sampler_logp, mask=mask))
    log_weight = logp - sampler_logp
    if level == "sequence":
        log_weight = jnp.sum(log_weight, axis=1, keepdims=True)
    weight = jnp.exp(jnp.clip(log_weight, -MAX_LOG_RATIO, MAX_LOG_RATIO))
    if outside == "truncate":
        weight = jnp.clip(weight, min_weight, max_weight)
    else:
        inside = (weight <= max_weight) & (weight >= (min_weight or 0.0))
        weight = jnp.where(inside, weight, 0.0)
    return jnp.where(jnp.asarray(mask, bool), weight, 1.0)
