"""AlphaAlign's safety reward."""

import chex
import jax
import jax.numpy as jnp


def safety_reward(
    is_harmful: jax.Array,
    well_formed: jax.Array,
    refused: jax.Array,
    *,
    format_weight: float = 1.0,
    refusal_weight: float | jax.Array = 1.0,
) -> jax.Array:
    """Rewards the format always, and a refusal of harmful prompts only.

        R_s = r_f V_f + r_a V_r   on a harmful prompt
        R_s = r_f V_f − r_a V_r   on a benign one

    Source: AlphaAlign (arXiv 2507.14987). The weights are ours; the paper does not state them.

    Args:
      is_harmful: `[B]` bool, whether the row's prompt ought to be refused.
      well_formed: `[B]` bool, V_f of the output.
      refused: `[B]` bool, V_r of the answer.
      format_weight: r_f.
      refusal_weight: r_a, one for all rows or `[B]`.

    Returns:
      `[B]` float32.
    """
    chex.assert_rank([is_harmful, well_formed, refused], 1)
    chex.assert_equal_shape([is_harmful, well_formed, refused])
    sign = jnp.where(is_harmful, 1.0, -1.0)
    return (format_weight * well_formed + refusal_weight * sign * refused).astype(jnp.float32)
