"""Keeping what stands at masked positions out of values and gradients."""

import chex
import jax
import jax.numpy as jnp


def zero_where_masked(values: jax.Array, mask: jax.Array | None) -> jax.Array:
    """`values` where the mask is set and 0 elsewhere; all of them without a mask.

    Select before the arithmetic: a NaN that is selected away afterwards still has a NaN gradient.

    Args:
      values: `[B, T]`, or what broadcasts to it.
      mask: bool or 0/1 `[B, T]`, the trained tokens; None for all.

    Returns:
      the dtype of `values`.
    """
    if mask is None:
        return values
    chex.assert_rank(mask, 2)
    return jnp.where(jnp.asarray(mask, bool), values, 0)


def token_floats(*values: jax.Array, mask: jax.Array | None) -> list[jax.Array]:
    """Arrays of one number a token, checked to be alike: float32, 0 where masked.

    Args:
      values: `[B, T]` each, any real dtype.
      mask: as in `zero_where_masked`.
    """
    chex.assert_rank(values, 2)
    chex.assert_equal_shape(values if mask is None else [*values, mask])
    return [zero_where_masked(jnp.asarray(x, jnp.float32), mask) for x in values]
