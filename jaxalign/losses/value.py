"""The critic's loss."""

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses.masks import zero_where_masked


def value_loss(
    values: jax.Array,
    old_values: jax.Array,
    returns: jax.Array,
    *,
    clip: float | None = None,
    mask: jax.Array | None = None,
) -> jax.Array:
    """Half the squared error of the values, optionally no better than a clipped change earns.

    ℓ_t = ½ (V_t − R_t)²
    clip = c:  ℓ_t = ½ max( (V_t − R_t)², (V'_t − R_t)² ),  V'_t = old_t + clip(V_t − old_t, −c, c)

    The maximum leaves no gradient once a value moved by more than c towards its return.

    Source: (V − R)²: PPO (arXiv 1707.06347), equation 9; the clip is that of its public code, the ½
    that of tunix and verl.
    TRL: no PPO in its wheel. tunix: `ppo_value_loss_fn` and verl: `compute_value_loss` are
    `aggregate(value_loss(..., clip=cliprange_value), mask, mode="token_mean")`.

    Args:
      values: `[B, T]` the critic's, being trained.
      old_values: `[B, T]` the critic's when the samples were drawn; constants.
      returns: `[B, T]` from `gae`; constants.
      clip: c above 0, or None for the plain square.
      mask: bool or 0/1 `[B, T]`, the trained tokens; with it value and gradient are 0 elsewhere,
        whatever stands there, NaN included.

    Returns:
      float32 `[B, T]`, unreduced.

    Raises:
      ValueError: a clip of 0 or less.
    """
    chex.assert_rank([values, old_values, returns], 2)
    chex.assert_equal_shape([values, old_values, returns])
    if clip is not None and clip <= 0:
        raise ValueError(f"clip must be above 0 or None, got {clip}")
    values = jnp.asarray(values, jnp.float32)
    old_values = jax.lax.stop_gradient(jnp.asarray(old_values, jnp.float32))
    returns = jax.lax.stop_gradient(jnp.asarray(returns, jnp.float32))
    if mask is not None:
        chex.assert_equal_shape([values, mask])
    values, old_values, returns = (
        zero_where_masked(x, mask) for x in (values, old_values, returns)
    )
    loss = (values - returns) ** 2
    if clip is not None:
        near = old_values + jnp.clip(values - old_values, -clip, clip)
        loss = jnp.maximum(loss, (near - returns) ** 2)
    return 0.5 * loss
