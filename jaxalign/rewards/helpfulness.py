"""AlphaAlign's helpfulness reward."""

import chex
import jax
import jax.numpy as jnp


def helpfulness_reward(
    scores: jax.Array, refused: jax.Array, *, normalise: bool = True, eps: float = 1e-6
) -> jax.Array:
    """Rewards the answers that are better than the average answer to their prompt.

        z_i = (r_i − mean r) / (std r + ε)
        R_h = max(z_i, 0) if V_r(y_i) = 0, else 0

    Mean and standard deviation are over all G rollouts of a prompt, the refusals among them too.
    The paper leaves the standard deviation open; ours has G − 1 in the denominator, with which
    z is at most (G − 1)/√G: 2.47 for G = 8. A group of equal scores gets 0.

    The reward is for benign prompts only: the caller leaves it out where the prompt is harmful.
    Source: AlphaAlign (arXiv 2507.14987).

    Args:
      scores: `[N, G]` float, a reward model's score r of each answer; G ≥ 2.
      refused: `[N, G]` bool, whether the answer is a refusal.
      normalise: False is the paper's ablation: R_h is the score r itself, and 0 for a refusal.
      eps: ε, which keeps the quotient finite.

    Returns:
      `[N, G]` float32.

    Raises:
      ValueError: a group has a single rollout, so that it has no standard deviation.
    """
    chex.assert_rank([scores, refused], 2)
    chex.assert_equal_shape([scores, refused])
    if scores.shape[1] < 2:
        raise ValueError("helpfulness_reward needs at least two rollouts of each prompt")
    scores = scores.astype(jnp.float32)
    if not normalise:
        return jnp.where(refused, 0.0, scores)
    scores = scores - scores[:, :1]  # so that equal scores are exactly zero, also when large
    deviation = scores - jnp.mean(scores, axis=1, keepdims=True)
    z = deviation / (jnp.std(scores, axis=1, keepdims=True, ddof=1) + eps)
    return jnp.where(refused, 0.0, jnp.maximum(z, 0.0))
