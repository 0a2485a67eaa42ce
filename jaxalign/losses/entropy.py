"""Entropy of the policy, for a bonus that keeps it from settling too soon."""

import chex
import jax
import jax.numpy as jnp


def token_entropies(logits: jax.Array, *, temperature: float = 1.0) -> jax.Array:
    """Entropy in nats of each next-token distribution.

    H_t = log Σ_v exp z_v − Σ_v softmax(z)_v·z_v,  z = logits / temperature

    As a bonus: `loss − coefficient · aggregate(token_entropies(logits), mask)`, a mean over tokens
    whatever the loss's own reduction is. This holds `[B, T, V]` in float32.

    Source: definition; bonus: Mnih et al. (arXiv 1602.01783).
    TRL: `entropy_from_logits`, `entropy_coef`. tunix: `compute_entropy_from_logits`, PPO's
    `entropy_coef`. verl: `entropy_from_logits`, `entropy_coeff`, reduced as the loss is.

    Args:
      logits: `[B, T, V]`. −inf bars a token; one token at least must be finite.
      temperature: above 0, the sampler's.

    Returns:
      float32 `[B, T]`, from 0 to log V.

    Raises:
      ValueError: a temperature of 0 or less.
    """
    chex.assert_rank(logits, 3)
    if isinstance(temperature, int | float) and temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    scaled = jnp.asarray(logits, jnp.float32) / temperature
    scaled = scaled - jax.lax.stop_gradient(jnp.max(scaled, axis=-1, keepdims=True))
    # A barred token has probability 0 and adds nothing; 0·(−inf) would be NaN, in the gradient too.
    finite = jnp.where(jnp.isneginf(scaled), 0.0, scaled)
    mean = jnp.sum(jax.nn.softmax(scaled, axis=-1) * finite, axis=-1)
    return jax.nn.logsumexp(scaled, axis=-1) - mean
