"""What a training run carries from step to step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from jaxalign.models.transformer import Params
from jaxalign.models.values import critic_params


@struct.dataclass
class CriticState:
    """PPO's critic.

    Attributes:
      params: its trunk and its head, float32.
      opt_state: of its own optax transformation.
    """

    params: Params
    opt_state: Any


@struct.dataclass
class TrainState:
    """Parameters, optimizer state and two counters; no keys (`key = fold_in(root, step)`).

    Attributes:
      step: scalar int32, steps taken, skipped ones included.
      params: the policy, float32.
      opt_state: of the optax transformation.
      skipped: scalar int32, updates left out because a gradient was not finite.
      critic: of a run with PPO's critic, else None.
    """

    step: jax.Array
    params: Params
    opt_state: Any
    skipped: jax.Array
    critic: CriticState | None = None


def init_state(
    params: Params,
    optimizer: optax.GradientTransformation,
    critic_optimizer: optax.GradientTransformation | None = None,
) -> TrainState:
    """The state before the first step; `params` are copied, for a step donates its state.

    Where the parameters are on a mesh the moments lie as they do, and counters on all devices.

    Args:
      params: the policy's.
      optimizer: the policy's.
      critic_optimizer: for a run with a critic, which starts as `critic_params` says.
    """
    critic = None
    if critic_optimizer is not None:
        theirs = jax.tree.map(jnp.copy, critic_params(params))
        critic = CriticState(theirs, critic_optimizer.init(theirs))
    params = jax.tree.map(jnp.copy, params)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.init(params),
        skipped=jnp.zeros((), jnp.int32),
        critic=critic,
    )
    # What is traced lies nowhere yet.
    sharding = getattr(jax.tree.leaves(params)[0], "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return state
    everywhere = NamedSharding(sharding.mesh, PartitionSpec())
    return jax.tree.map(
        lambda x: x if isinstance(x.sharding, NamedSharding) else jax.device_put(x, everywhere),
        state,
    )
