"""The critic's loss, and two numbers that say how it does."""

import jax
import jax.numpy as jnp

from jaxalign.losses.aggregate import aggregate
from jaxalign.losses.masks import token_floats


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
    if clip is not None and clip <= 0:
        raise ValueError(f"clip must be above 0 or None, got {clip}")
    values, *constants = token_floats(values, old_values, returns, mask=mask)
    old_values, returns = jax.lax.stop_gradient(constants)
    loss = (values - returns) ** 2
    if clip is not None:
        loss = jnp.maximum(loss, (_near(values, old_values, clip) - returns) ** 2)
    return 0.5 * loss


def value_clip_fraction(
    values: jax.Array,
    old_values: jax.Array,
    returns: jax.Array,
    mask: jax.Array,
    *,
    clip: float,
    normalizer: jax.Array | float | None = None,
) -> jax.Array:
    """Share of the trained tokens whose value loss is the clipped one, which has no gradient.

    Σ mask·[ (V'_t − R_t)² > (V_t − R_t)² ] / Σ mask,  V' as in `value_loss`

    Source: as commonly logged. TRL: no PPO in its wheel. tunix, verl: "vf_clipfrac".

    Takes what `value_loss` was given, and `aggregate`'s `normalizer`: of a micro-batch the global
    number of trained tokens.

    Returns:
      float32 scalar.
    """
    values, old_values, returns = token_floats(values, old_values, returns, mask=mask)
    clipped = (_near(values, old_values, clip) - returns) ** 2 > (values - returns) ** 2
    return aggregate(clipped, mask, normalizer=normalizer)


def explained_variance(values: jax.Array, returns: jax.Array, mask: jax.Array) -> jax.Array:
    """How much of the returns' variance the critic accounts for.

    1 − Var(R − V) / Var(R),  over the trained tokens

    1 is a perfect critic, 0 is as good as a constant, below 0 is worse.

    Source: as commonly logged. TRL, tunix: none. verl: "critic/vf_explained_var".

    Args:
      values: `[B, T]`, those that the advantages were computed with.
      returns: `[B, T]` from `gae`.
      mask: bool or 0/1 `[B, T]`, the trained tokens of the whole batch.

    Returns:
      float32 scalar, NaN where the returns are all equal.
    """
    values, returns = token_floats(values, returns, mask=mask)

    def variance(x: jax.Array) -> jax.Array:
        return aggregate((x - aggregate(x, mask)) ** 2, mask)

    whole = variance(returns)
    return jnp.where(whole > 0, 1.0 - variance(returns - values) / whole, jnp.nan)


def _near(values: jax.Array, old_values: jax.Array, clip: float) -> jax.Array:
    """The values, moved by no more than `clip` from the old ones."""
    return old_values + jnp.clip(values - old_values, -clip, clip)
