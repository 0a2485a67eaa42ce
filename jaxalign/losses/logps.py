"""Log-probabilities of given tokens from full logits."""

import chex
import jax
import jax.numpy as jnp


def token_logps(logits: jax.Array, tokens: jax.Array, *, temperature: float = 1.0) -> jax.Array:
    """Log-probability of each token under softmax(logits / temperature).

    log π(y_t) = z_{y_t} − log Σ_v exp z_v,  z = logits / temperature

    Use the sampler's temperature, or the ratio to its log-probs compares two distributions even
    before the first update. This holds `[B, T, V]` in float32; the training step never does.

    Source: definition of the softmax.
    TRL: `selective_log_softmax(logits / temperature, tokens)`. tunix: `compute_per_token_logps` at
    the same `temperature`. verl: `logprobs_from_logits(logits / temperature, tokens)`.

    Args:
      logits: `[B, T, V]`; `logits[:, t]` is the prediction *of* `tokens[:, t]`. −inf bars a token.
      tokens: int `[B, T]`, each in [0, V), at padded positions too.
      temperature: above 0.

    Returns:
      float32 `[B, T]`.

    Raises:
      ValueError: a temperature of 0 or less.
    """
    chex.assert_rank([logits, tokens], [3, 2])
    chex.assert_equal_shape_prefix([logits, tokens], 2)
    if isinstance(temperature, int | float) and temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    scaled = jnp.asarray(logits, jnp.float32) / temperature
    chosen = jnp.take_along_axis(scaled, jnp.asarray(tokens)[..., None], axis=-1)[..., 0]
    return chosen - jax.nn.logsumexp(scaled, axis=-1)
