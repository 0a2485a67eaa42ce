"""Advantages from one scalar reward per sampled completion (no critic).

N prompts, G samples of each. Advantage functions take rewards `[N, G]` of any real dtype, compute
in float32 and return float32 `[N, G]`. Rewards are constants: no gradient flows through them.
Rewards that are all equal, and a single sample (G = 1, or N·G = 1 for the batch form), give exact
zeros. Rewards must be finite: a NaN spreads over its group, or the batch. What looks beyond a
prompt's own samples wants the rewards of the global batch, not one device's or one micro-batch's.
"""

import math

import chex
import jax
import jax.numpy as jnp


def group_advantages(
    rewards: jax.Array, *, scale: bool = True, ddof: int = 1, eps: float = 1e-4
) -> jax.Array:
    """Rewards relative to the mean, and in units of the deviation, of their own prompt's samples.

    A_ij = (r_ij − mean_j r_ij) / (std_j r_ij + eps),  std with divisor G − ddof

    The division gives prompts on which the samples nearly agree as much say as those on which they
    differ; `scale=False` leaves it out.

    Source: GRPO (DeepSeekMath, arXiv 2402.03300), section 4.1.2; `scale=False`: Dr.GRPO (arXiv
    2503.20783).
    TRL: the defaults are `scale_rewards="group"`; `scale=False` is `"none"`.
    tunix: `eps=1e-6` is "grpo", `scale=False` is "drgrpo".
    verl: `eps=1e-6` is "grpo", `scale=False` is `norm_adv_by_std_in_grpo=False`; it keeps the
    reward of a lone sample (G = 1), which is 0 here.

    Args:
      rewards: `[N, G]`.
      scale: whether to divide by the standard deviation.
      ddof: 1 for the sample deviation, 0 for the population deviation.
      eps: added to the deviation.
    """
    return _standardize(rewards, axis=(1,), scale=scale, ddof=ddof, eps=eps)


def batch_advantages(
    rewards: jax.Array, *, scale: bool = True, ddof: int = 1, eps: float = 1e-4
) -> jax.Array:
    """Rewards relative to the mean, and in units of the deviation, of the whole batch.

    A_ij = (r_ij − mean r) / (std r + eps),  mean and std over all N·G rewards, divisor N·G − ddof

    Why not the group's mean: under it "refuse everything" is an absorbing state. Once all samples
    of a benign prompt refuse, their rewards are equal, their advantages zero, and nothing pulls the
    policy back. A baseline over harmful and benign prompts, balanced in each batch, still shows
    that those refusals earn less than the rest.

    Source: REINFORCE++ (arXiv 2501.03262), for one reward at the end of each completion.
    TRL, tunix: no setting gives it (TRL's `scale_rewards="batch"` divides by this deviation but
    keeps the group's mean). verl: "reinforce_plus_plus" is near; its mean and variance run over
    tokens, so that long completions weigh more.

    The arguments are those of `group_advantages`.
    """
    return _standardize(rewards, axis=(0, 1), scale=scale, ddof=ddof, eps=eps)


def shrinkage_advantages(
    rewards: jax.Array,
    *,
    weight: float = 0.5,
    scale: bool = True,
    ddof: int = 1,
    eps: float = 1e-4,
) -> jax.Array:
    """Rewards relative to a baseline between the prompt's own mean and the batch's.

    A_ij = (r_ij − (1 − w)·mean_j r_ij − w·mean r) / (std r + eps),  mean r and std r over all N·G

    w = 1 is `batch_advantages`; w = 0 has the group's baseline and the batch's deviation. Between
    the two, differences among a prompt's samples count in full and differences among prompts by w:
    less noise than the batch's mean, and a prompt whose samples agree still has a say. So a policy
    that refuses everything is still pushed, but only weakly where it is sure of itself.

    Source: the baseline is that of shrinkage estimators (arXiv 2511.03710), which estimate w from
    the batch and leave the sample itself out of the means. The fixed w, plain means and division by
    the batch's deviation are ours.
    TRL: w = 0 is `scale_rewards="batch"`. tunix, verl: no setting gives it.

    `weight` is w, from 0 to 1; the other arguments are those of `group_advantages`.

    Raises:
      ValueError: a weight outside [0, 1].
    """
    chex.assert_rank(rewards, 2)
    if not 0 <= weight <= 1:
        raise ValueError(f"weight must be from 0 to 1, got {weight}")
    whole = centre(rewards, (0, 1))
    centred = weight * whole + (1.0 - weight) * centre(rewards, (1,))
    return centred / deviation(whole, (0, 1), ddof=ddof, eps=eps) if scale else centred


def leave_one_out_advantages(rewards: jax.Array) -> jax.Array:
    """Each reward minus the mean reward of the prompt's other samples.

    A_ij = r_ij − 1/(G−1) · Σ_{k≠j} r_ik = (r_ij − mean_k r_ik) · G/(G−1)

    The baseline does not depend on the sample itself, hence an unbiased gradient.

    Source: Kool et al., "Buy 4 REINFORCE samples, get a baseline for free!" (2019); for language
    models RLOO (arXiv 2402.14740).
    tunix: "rloo". verl: "rloo". TRL: `RLOOTrainer`, which first takes a KL off the reward (`beta`)
    and whose ratio is that of whole completions, a product; in `GRPOTrainer` it is
    `scale_rewards="none"`, times G/(G−1).

    Args:
      rewards: `[N, G]`; with G = 1 there are no others and the advantage is 0.
    """
    chex.assert_rank(rewards, 2)
    samples = rewards.shape[1]
    return centre(rewards, axis=(1,)) * (samples / max(samples - 1, 1))


def multi_reward_advantages(
    rewards: jax.Array, weights: jax.Array, *, ddof: int = 1, eps: float = 1e-4
) -> jax.Array:
    """Each reward normalised by itself within its group, then their weighted sum in the batch.

    a_ijk = (r_ijk − mean_j r_ijk) / (std_j r_ijk + eps),  s_ij = Σ_k weight_k·a_ijk
    A_ij = (s_ij − mean s) / (std s + eps),  mean and std over all N·G

    A reward with a large spread thus doesn't drown the others, and two sums that are equal by
    chance of different parts are told apart.

    Source: GDPO (arXiv 2601.05242). TRL: `multi_objective_aggregation="normalize_then_sum"`.
    tunix, verl: no setting gives it.

    Args:
      rewards: `[N, G, K]`, K kinds of reward; constants.
      weights: `[K]`.
      ddof: 1 for the sample deviation, 0 for the population deviation.
      eps: added to each deviation.
    """
    chex.assert_rank([rewards, weights], [3, 1])
    chex.assert_axis_dimension(rewards, 2, weights.shape[0])
    apart = jax.vmap(lambda r: group_advantages(r, ddof=ddof, eps=eps), 2, 2)(rewards)
    total = jnp.sum(apart * jnp.asarray(weights, jnp.float32), axis=-1)
    return batch_advantages(total, ddof=ddof, eps=eps)


def informative_groups(rewards: jax.Array) -> jax.Array:
    """Which prompts have samples that differ in reward, and so anything to say under GRPO.

    keep_i = max_j r_ij > min_j r_ij

    Dynamic sampling draws further prompts in place of the others, or leaves them out of the loss:
    `mask & jnp.repeat(informative_groups(rewards), G)[:, None]`.

    Source: dynamic sampling, DAPO (arXiv 2503.14476), section 3.2. TRL: logged only, as
    "frac_reward_zero_std". verl: `filter_groups`. tunix (agentic): `degenerate_group_masking`.

    Args:
      rewards: `[N, G]`.

    Returns:
      bool `[N]`; False for G = 1.
    """
    chex.assert_rank(rewards, 2)
    return jnp.max(rewards, axis=1) > jnp.min(rewards, axis=1)


def _standardize(
    rewards: jax.Array, *, axis: tuple[int, ...], scale: bool, ddof: int, eps: float
) -> jax.Array:
    """Subtract the mean over `axis` and, with `scale`, divide by the deviation plus `eps`."""
    chex.assert_rank(rewards, 2)
    centred = centre(rewards, axis)
    return centred / deviation(centred, axis, ddof=ddof, eps=eps) if scale else centred


def deviation(
    centred: jax.Array,
    axis: tuple[int, ...],
    *,
    ddof: int,
    eps: float,
    weights: jax.Array | float = 1.0,
) -> jax.Array:
    """Weighted root mean square over `axis` plus `eps`; 1 for equal rewards with eps = 0."""
    count = math.prod(centred.shape[i] for i in axis)
    variance = jnp.sum(weights * centred**2, axis, keepdims=True) / max(count - ddof, 1)
    root = jnp.sqrt(variance) + eps
    return jnp.where(root > 0, root, 1.0)


def centre(
    rewards: jax.Array, axis: tuple[int, ...], *, weights: jax.Array | float = 1.0
) -> jax.Array:
    """Subtract the mean over `axis`, in float32, no gradient; the weights' own mean must be 1."""
    rewards = jax.lax.stop_gradient(jnp.asarray(rewards, jnp.float32))
    # The float mean of equal numbers need not be that number, and dividing by a tiny deviation
    # would magnify the rest. Measured from the largest, equal rewards are exact zeros throughout.
    rewards = rewards - jnp.max(rewards, axis, keepdims=True)
    return rewards - jnp.mean(weights * rewards, axis, keepdims=True)
