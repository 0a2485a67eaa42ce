"""Losses and advantages of policy-gradient alignment: pure functions of arrays.

Every loss is per token and unreduced (`[B, T]`); `aggregate` alone reduces. Nothing here knows of
models, rewards or training, and importing it loads jax and chex only. All arithmetic is float32,
whatever the inputs are. Every function works under `jit`, `vmap` and `grad`; the keyword arguments
that choose a formula (strings, `scale`, `ddof`) are static.

A GRPO step from its parts::

    advantages = group_advantages(rewards).reshape(-1)
    loss = clipped_surrogate(logp, old_logp, advantages, mask=mask)
    loss = loss + beta * kl_divergence(logp, ref_logp, estimator="k2")
    loss = aggregate(loss, mask, mode="token_mean")
"""

from jaxalign.losses.advantages import (
    batch_advantages,
    group_advantages,
    leave_one_out_advantages,
    shrinkage_advantages,
)
from jaxalign.losses.aggregate import aggregate, denominator
from jaxalign.losses.kl import kl_divergence
from jaxalign.losses.logps import token_logps
from jaxalign.losses.policy import clip_fraction, clipped_surrogate

__all__ = [
    "aggregate",
    "batch_advantages",
    "clip_fraction",
    "clipped_surrogate",
    "denominator",
    "group_advantages",
    "kl_divergence",
    "leave_one_out_advantages",
    "shrinkage_advantages",
    "token_logps",
]
