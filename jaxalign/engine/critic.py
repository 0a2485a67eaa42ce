"""PPO's part of a step: advantages per token from a critic's values, and the critic's loss."""

import chex
import jax
import jax.numpy as jnp
from flax import struct

from jaxalign.losses import (
    aggregate,
    explained_variance,
    gae,
    token_rewards,
    value_clip_fraction,
    value_loss,
    whiten,
)
from jaxalign.records import Metrics


@struct.dataclass
class Estimate:
    """What a critic makes of a rollout; `[B, T]` float32 each, constants of the updates.

    Attributes:
      advantages: per token, of the policy's loss.
      values: the critic's when the tokens were drawn.
      returns: what the critic learns.
    """

    advantages: jax.Array
    values: jax.Array
    returns: jax.Array


def estimate_advantages(
    rewards: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    *,
    discount: float,
    lambda_: float,
    scale: bool,
) -> tuple[Estimate, Metrics]:
    """Advantages per token of rewards per completion.

        r_t = [t is the row's last generated token]·R
        δ_t = r_t + γ V_{t'} − V_t,    A_t = δ_t + γλ A_{t'},    returns_t = A_t + V_t

    with t' the row's next generated token: what a tool wrote is passed over, so the token before a
    tool's answer is judged by the value after it. With `scale` the advantages are whitened over the
    batch's tokens.

    Source: PPO (arXiv 1707.06347), GAE (arXiv 1506.02438), the reward on the last token as in
    AlphaAlign (arXiv 2507.14987).

    Args:
      rewards: `[B]`.
      values: `[B, T]` of `completion_values`.
      mask: `[B, T]` bool, the generated tokens of the whole batch.
      discount: γ.
      lambda_: λ.
      scale: whether to whiten.

    Returns:
      the estimate, and `explained_variance` to log.
    """
    chex.assert_rank([rewards, values, mask], [1, 2, 2])
    chex.assert_equal_shape([values, mask])
    no_kl = jnp.zeros_like(values)  # its price is in the policy's loss
    placed = token_rewards(rewards, no_kl, mask, kl_coefficient=0.0)
    advantages, returns = gae(placed, values, mask, discount=discount, lambda_=lambda_)
    if scale:
        advantages = whiten(advantages, mask)
    metrics = {"explained_variance": explained_variance(values, returns, mask)}
    return Estimate(advantages, values, returns), metrics


def critic_loss(
    values: jax.Array,
    estimate: Estimate,
    mask: jax.Array,
    *,
    clip: float | None,
    normalizer: jax.Array,
) -> tuple[jax.Array, Metrics]:
    """The critic's loss of one micro-batch, a mean over generated tokens.

        L = Σ_it m_it ℓ_it / normalizer,    ℓ = `jaxalign.losses.value_loss`

    Args:
      values: `[B', T]`, being trained.
      estimate: of these rows.
      mask: `[B', T]` bool, the generated tokens.
      clip: how far values may move from those of the rollout; None for no bound.
      normalizer: scalar, generated tokens of the whole batch.

    Returns:
      the scalar loss, and `value_loss` and, with a clip, `value_clip_fraction` to log, whose sums
      over micro-batches are the batch's.
    """
    old, returns = estimate.values, estimate.returns
    loss = value_loss(values, old, returns, clip=clip, mask=mask)
    total = aggregate(loss, mask, normalizer=normalizer)
    metrics = {"value_loss": total}
    if clip is not None:
        metrics["value_clip_fraction"] = value_clip_fraction(
            values, old, returns, mask, clip=clip, normalizer=normalizer
        )
    return total, metrics
