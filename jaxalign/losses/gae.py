"""Generalized advantage estimation: from rewards per token and a critic to advantages per token."""

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses.masks import token_floats, zero_where_masked


def gae(
    rewards: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    *,
    discount: float = 1.0,
    lambda_: float = 0.95,
) -> tuple[jax.Array, jax.Array]:
    """Exponentially weighted sums of temporal-difference errors, over the trained tokens alone.

    δ_t = r_t + γ·V_t' − V_t
    A_t = δ_t + γλ·A_t'            t' the row's next trained token; V and A are 0 after the last
    R_t = A_t + V_t

    Masked positions (a tool's answer, padding) are skipped: time does not pass there, so a reward
    after a tool's answer is not discounted by the answer's length.

    Source: Schulman et al., "High-dimensional continuous control using generalized advantage
    estimation" (arXiv 1506.02438), equation 16.
    TRL: no PPO in its wheel. tunix: `compute_gae_advantages`; verl: `compute_gae_advantage_return`:
    both also whiten the advantages, which is `whiten` here.

    Args:
      rewards: `[B, T]`; constants.
      values: `[B, T]` the critic's values of the states before each token; constants.
      mask: bool or 0/1 `[B, T]`, the trained tokens. What stands elsewhere does not matter.
      discount: γ.
      lambda_: λ; 1 gives the returns minus values, 0 the one-step errors.

    Returns:
      advantages and returns, float32 `[B, T]`, both 0 where masked.
    """
    rewards, values = jax.lax.stop_gradient(token_floats(rewards, values, mask=mask))
    mask = jnp.asarray(mask, bool)

    def back(
        later: tuple[jax.Array, jax.Array], token: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        next_value, next_advantage = later
        reward, value, trained = token
        advantage = reward + discount * (next_value + lambda_ * next_advantage) - value
        kept = jnp.where(trained, value, next_value), jnp.where(trained, advantage, next_advantage)
        return kept, advantage

    nothing = jnp.zeros(rewards.shape[0], jnp.float32)
    _, advantages = jax.lax.scan(
        back, (nothing, nothing), (rewards.T, values.T, mask.T), reverse=True
    )
    advantages = zero_where_masked(advantages.T, mask)
    return advantages, advantages + values


def token_rewards(
    rewards: jax.Array, kl: jax.Array, mask: jax.Array, *, kl_coefficient: float
) -> jax.Array:
    """Rewards per token for `gae`: the KL's price at every token, the reward at the last one.

    r_t = −β·kl_t + [t is the row's last trained token]·reward

    Source: the usual PPO for language models (arXiv 1909.08593). verl: `use_kl_in_reward`.
    tunix: PPO's `beta`, whose learner rounds the reward to an integer in 0.1.7. TRL: no PPO in its
    wheel.

    Args:
      rewards: `[B]`, one per completion.
      kl: `[B, T]` from `kl_divergence`, "k1" or "k3".
      mask: bool or 0/1 `[B, T]`, the trained tokens.
      kl_coefficient: β.

    Returns:
      float32 `[B, T]`, 0 where masked. A row without a trained token loses its reward.
    """
    chex.assert_rank([rewards, kl, mask], [1, 2, 2])
    chex.assert_equal_shape([kl, mask])
    chex.assert_equal_shape_prefix([rewards, mask], 1)
    mask = jnp.asarray(mask, bool)
    left = jnp.cumsum(mask[:, ::-1], axis=1)[:, ::-1]  # trained tokens from here to the end
    last = mask & (left == 1)
    rewards, kl = (jnp.asarray(x, jnp.float32) for x in (rewards, kl))
    priced = jnp.where(mask, -kl_coefficient * kl, 0.0)
    return jax.lax.stop_gradient(priced + last * rewards[:, None])


def whiten(advantages: jax.Array, mask: jax.Array, *, eps: float = 1e-8) -> jax.Array:
    """Advantages with mean 0 and variance 1 over the trained tokens of the batch.

    (A − mean A) / √(var A + eps),  mean and variance over Σ mask tokens, divisor Σ mask − 1

    The batch must be the global one.

    Source: the usual companion of PPO. tunix and verl do the same inside their GAE. REINFORCE++
    (arXiv 2501.03262) with rewards per token is, for `zero = jnp.zeros_like(rewards)`,
    `whiten(gae(rewards, zero, mask, lambda_=1.0)[0], mask)`: verl's "reinforce_plus_plus" where no
    mask has a hole. TRL: none.

    Args:
      advantages: `[B, T]`; constants.
      mask: bool or 0/1 `[B, T]`, the trained tokens.
      eps: added to the variance.

    Returns:
      float32 `[B, T]`, 0 where masked and everywhere if fewer than two tokens are trained.
    """
    (advantages,) = jax.lax.stop_gradient(token_floats(advantages, mask=mask))
    mask = jnp.asarray(mask, bool)
    count = jnp.sum(mask)
    mean = jnp.sum(advantages) / jnp.maximum(count, 1)
    centred = jnp.where(mask, advantages - mean, 0.0)
    variance = jnp.sum(centred**2) / jnp.maximum(count - 1, 1)
    return jnp.where(count > 1, centred * jax.lax.rsqrt(variance + eps), 0.0)
