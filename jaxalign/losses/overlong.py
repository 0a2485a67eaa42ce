"""What to do about completions that were cut off or nearly so; lengths count tokens."""

import chex
import jax
import jax.numpy as jnp


def finished_mask(mask: jax.Array, finished: jax.Array) -> jax.Array:
    """The trained tokens of completions that ended by themselves; none of those cut off.

    m_it ← m_it·[i finished]. A cut-off completion's reward says little about its tokens.

    Source: overlong filtering, DAPO (arXiv 2503.14476), section 3.4.
    TRL: `mask_truncated_completions=True`; its "grpo" still counts such rows, `aggregate` does not.
    tunix (agentic): by the trajectory's status. verl: none.

    Args:
      mask: bool or 0/1 `[B, T]`, the trained tokens.
      finished: bool `[B]`, whether a stop token was drawn.

    Returns:
      bool `[B, T]`.
    """
    chex.assert_rank([mask, finished], [2, 1])
    chex.assert_equal_shape_prefix([mask, finished], 1)
    return jnp.asarray(mask, bool) & jnp.asarray(finished, bool)[:, None]


def overlong_penalty(
    lengths: jax.Array, *, max_length: int, buffer: int, factor: float = 1.0
) -> jax.Array:
    """A penalty that falls linearly to −factor over the last `buffer` tokens before the limit.

    p = −factor·clip( (length − (max_length − buffer)) / buffer, 0, 1 )

    Source: soft overlong punishment, DAPO (arXiv 2503.14476), equation 13; it stays at −factor
    beyond the limit, as there. TRL: `get_soft_overlong_punishment` (factor 1). verl:
    `DAPORewardManager`, whose penalty goes on growing. tunix counts characters.

    Args:
      lengths: int `[B]`, in tokens.
      max_length: the longest that a completion may be.
      buffer: 1 to max_length.
      factor: the largest penalty, not below 0.

    Returns:
      float32 `[B]`, 0 or below; add it to the rewards.

    Raises:
      ValueError: a buffer outside 1 … max_length, or a factor below 0.
    """
    chex.assert_rank(lengths, 1)
    if not 1 <= buffer <= max_length:
        raise ValueError(f"buffer must be from 1 to max_length={max_length}, got {buffer}")
    if factor < 0:
        raise ValueError(f"factor must not be below 0, got {factor}")
    excess = (jnp.asarray(lengths, jnp.float32) - (max_length - buffer)) / buffer
    return -factor * jnp.clip(excess, 0.0, 1.0)
