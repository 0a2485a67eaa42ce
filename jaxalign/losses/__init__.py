"""Losses and advantages of policy-gradient alignment: pure functions of arrays.

Every loss is per token and unreduced (`[B, T]`); `aggregate` alone reduces. Nothing here knows of
models, rewards or training, and importing it loads jax and chex only. All arithmetic is float32,
whatever the inputs are. Every function works under `jit`, `vmap` and `grad`. Keyword arguments
other than arrays are static, Python strings and numbers.

A GRPO step from its parts::

    advantages = group_advantages(rewards).reshape(-1)
    loss = clipped_surrogate(logp, old_logp, advantages, mask=mask)
    loss = loss + beta * kl_divergence(logp, ref_logp, mask=mask)
    loss = aggregate(loss, mask, mode="token_mean")
"""

from jaxalign.losses.advantages import (
    batch_advantages,
    group_advantages,
    informative_groups,
    leave_one_out_advantages,
    multi_reward_advantages,
    shrinkage_advantages,
)
from jaxalign.losses.aggregate import aggregate, denominator
from jaxalign.losses.entropy import token_entropies
from jaxalign.losses.gae import gae, token_rewards, whiten
from jaxalign.losses.importance import importance_weights
from jaxalign.losses.inverse_frequency import inverse_frequency_advantages, mode_weights
from jaxalign.losses.kl import kl_divergence
from jaxalign.losses.logps import token_logps
from jaxalign.losses.overlong import finished_mask, overlong_penalty
from jaxalign.losses.policy import (
    clip_fraction,
    clipped_importance_loss,
    clipped_surrogate,
    soft_gated_surrogate,
)
from jaxalign.losses.preference import (
    identity_preference_loss,
    odds_ratio_loss,
    preference_loss,
    simple_preference_loss,
)
from jaxalign.losses.supervised import cross_entropy
from jaxalign.losses.value import explained_variance, value_clip_fraction, value_loss

__all__ = [
    "aggregate",
    "batch_advantages",
    "clip_fraction",
    "clipped_importance_loss",
    "clipped_surrogate",
    "cross_entropy",
    "denominator",
    "explained_variance",
    "finished_mask",
    "gae",
    "group_advantages",
    "identity_preference_loss",
    "importance_weights",
    "informative_groups",
    "inverse_frequency_advantages",
    "kl_divergence",
    "leave_one_out_advantages",
    "mode_weights",
    "multi_reward_advantages",
    "odds_ratio_loss",
    "overlong_penalty",
    "preference_loss",
    "shrinkage_advantages",
    "simple_preference_loss",
    "soft_gated_surrogate",
    "token_entropies",
    "token_logps",
    "token_rewards",
    "value_clip_fraction",
    "value_loss",
    "whiten",
]
