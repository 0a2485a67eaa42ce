"""IFPO: advantages in which rare modes of behaviour have as much say as common ones."""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jaxalign.losses.advantages import centre, deviation, group_advantages


def inverse_frequency_advantages(
    rewards: jax.Array,
    modes: jax.Array,
    *,
    num_modes: int,
    form: Literal["weight", "baseline"] = "weight",
    scope: Literal["group", "batch"] = "group",
    max_weight: float | None = None,
    scale: bool = True,
    ddof: int = 1,
    eps: float = 1e-4,
) -> jax.Array:
    """GRPO's advantages, rebalanced by the inverse frequency of each sample's mode.

    A mode is a kind of action, such as consulting the rules or not. Of the S samples in the scope
    (a prompt's G, or the batch's N·G) n_m have mode m, and K modes occur:

    w_ij = S / (K·n_m(ij)),  cut off at max_weight

    "weight"     A_ij = w_ij · (r_ij − mean_j r_ij) / (std_j r_ij + eps)
    "baseline"   A_ij = (r_ij − μ_i) / (σ_i + eps),  p_ij = w_ij / Σ_j w_ij,
                 μ_i = Σ_j p_ij r_ij,  σ_i² = G/(G − ddof) · Σ_j p_ij (r_ij − μ_i)²

    The weights of a scope add up to S, and before the cap each mode's to S/K: the one sample in
    eight that has a mode weighs as much as the other seven together. In the baseline form (scope
    "group") μ is the mean of the modes' means. What that does to how often a mode occurs:
    docs/ascl.md.

    Where one mode occurs, the result is `group_advantages` to the bit.

    Source: our reading of IFPO (arXiv 2602.13562), whose abstract states the inverse frequency and
    no formula. TRL, tunix, verl: no setting gives it.

    Args:
      rewards: `[N, G]`, constants: no gradient flows through them.
      modes: int or bool `[N, G]`, each in [0, num_modes). A sample outside has weight and advantage
        0; in the form "weight" its reward still takes part in the group's mean and deviation.
      num_modes: how many modes there may be; static.
      form: where the weights go.
      scope: whether frequencies are a prompt's or the batch's. The batch must be the global one.
      max_weight: at least 1; bounds what a single rare sample can do. None: no bound.
      scale: whether to divide by the standard deviation.
      ddof: 1 for the sample deviation, 0 for the population deviation.
      eps: added to the deviation.

    Returns:
      float32 `[N, G]`.

    Raises:
      ValueError: an unknown form or scope, num_modes below 1, or max_weight below 1.
    """
    chex.assert_rank([rewards, modes], 2)
    chex.assert_equal_shape([rewards, modes])
    if form not in ("weight", "baseline"):
        raise ValueError(f"form must be 'weight' or 'baseline', got {form!r}")
    weights = mode_weights(modes, num_modes=num_modes, scope=scope, max_weight=max_weight)
    if form == "weight":
        return weights * group_advantages(rewards, scale=scale, ddof=ddof, eps=eps)

    samples = rewards.shape[1]
    # G·p, so that equal weights are ones and every product with them exact.
    total = jnp.sum(weights, axis=1, keepdims=True)
    share = weights * (samples / jnp.where(total > 0, total, 1.0))
    centred = jnp.where(weights > 0, centre(rewards, (1,), weights=share), 0.0)
    spread = deviation(centred, (1,), ddof=ddof, eps=eps, weights=share)
    return centred / spread if scale else centred


def mode_weights(
    modes: jax.Array,
    *,
    num_modes: int,
    scope: Literal["group", "batch"] = "group",
    max_weight: float | None = None,
) -> jax.Array:
    """IFPO's weights w_ij = S / (K·n_m(ij)), to weigh anything else by: a loss, a metric.

    Source and libraries: see `inverse_frequency_advantages`.

    The arguments are those of `inverse_frequency_advantages`; a sample whose mode is outside gets
    weight 0 and counts for no mode.

    Returns:
      float32 `[N, G]`. Exactly 1 where one mode occurs in the scope.

    Raises:
      ValueError: an unknown scope, num_modes below 1, or max_weight below 1.
    """
    chex.assert_rank(modes, 2)
    if scope not in ("group", "batch"):
        raise ValueError(f"scope must be 'group' or 'batch', got {scope!r}")
    if num_modes < 1:
        raise ValueError(f"num_modes must be at least 1, got {num_modes}")
    if max_weight is not None and max_weight < 1:
        raise ValueError(f"max_weight must be at least 1 or None, got {max_weight}")
    modes = jnp.asarray(modes)
    modes = modes.astype(jnp.int32) if modes.dtype == bool else modes
    chex.assert_type(modes, int)
    member = jax.nn.one_hot(modes, num_modes, dtype=jnp.float32)
    axes = 1 if scope == "group" else (0, 1)
    counts = jnp.sum(member, axis=axes, keepdims=True)  # [N or 1, 1, num_modes]
    own = jnp.sum(member * counts, axis=-1)
    occurring = jnp.sum(counts > 0, axis=-1)
    weights = jnp.sum(counts, axis=-1) / jnp.maximum(occurring * own, 1.0)
    weights = jnp.where(own > 0, weights, 0.0)
    return weights if max_weight is None else jnp.minimum(weights, max_weight)
