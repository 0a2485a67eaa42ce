"""What a training run carries from step to step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxalign.models.transformer import Params


@struct.dataclass
class TrainState:
    """Parameters, optimizer state and two counters; no keys (`key = fold_in(root, step)`).

    Attributes:
      step: scalar int32, steps taken, skipped ones included.
      params: the policy, float32.
      opt_state: of the optax transformation.
      skipped: scalar int32, updates left out because a gradient was not finite.
    """

    step: jax.Array
    params: Params
    opt_state: Any
    skipped: jax.Array


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; `params` are copied, for a step donates its state."""
    params = jax.tree.map(jnp.copy, params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        skipped=jnp.zeros((), jnp.int32),
    )
