"""What a training run carries from step to step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import NamedSharding, PartitionSpec

from jaxalign.models.lora import is_adapter, off_base, on_base
from jaxalign.records import Params


@struct.dataclass
class TrainState:
    """Parameters, optimizer state and a counter; no keys (`key = fold_in(root, step)`).

    Attributes:
      step: scalar int32, steps taken, skipped ones included.
      params: what is trained: the policy's, or `{"policy": …, "critic": …}`; of each all
        parameters, or an adapter (`jaxalign.models.lora`), whose base `Frozen` has. Float32, or
        some bfloat16 (`jaxalign.engine.rounding`).
      opt_state: of the optax transformation.
    """

    step: jax.Array
    params: Params
    opt_state: Any

    @property
    def policy(self) -> Params:
        """The policy's parameters."""
        return policy_of(self.params)


def policy_of(params: Params) -> Params:
    """The policy's part of what is trained (or of its gradients): all of it without a critic."""
    return params["policy"] if has_critic(params) else params


def has_critic(params: Params) -> bool:
    """Whether a critic is trained too."""
    return isinstance(params, dict) and params.keys() == {"policy", "critic"}


def complete(params: Params, base: Params | None) -> Params:
    """What runs of what is trained: adapters on their base, other parameters as they are.

    Raises:
      ValueError: there is an adapter and no base.
    """
    if base is None and is_adapter(policy_of(params)):
        raise ValueError(
            "an adapter is trained: pass the parameters that it adds to, as base (of make_step's "
            "step: Frozen(base=…))"
        )
    if not has_critic(params):
        return on_base(params, base)
    critic = params["critic"] | {"trunk": on_base(params["critic"]["trunk"], base)}
    return {"policy": on_base(params["policy"], base), "critic": critic}


def _trained(params: Params) -> Params:
    """What is trained of what runs: the reverse of `complete`."""
    if not has_critic(params):
        return off_base(params)
    critic = params["critic"] | {"trunk": off_base(params["critic"]["trunk"])}
    return {"policy": off_base(params["policy"]), "critic": critic}


def init_state(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; `params` are copied, for a step donates its state.

    They are the policy's, or of `jaxalign.engine.with_critic`; the base of an adapter is left out,
    and goes to the step beside the state. Where they are on a mesh the moments lie as they do, and
    counters on all devices.
    """
    params = jax.tree.map(jnp.copy, _trained(params))
    state = TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
    # What is traced lies nowhere yet, and a new critic's head on one device.
    shardings = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(params)]
    meshes = [each.mesh for each in shardings if isinstance(each, NamedSharding)]
    if not meshes:
        return state
    everywhere = NamedSharding(meshes[0], PartitionSpec())
    return jax.tree.map(
        lambda x: x if isinstance(x.sharding, NamedSharding) else jax.device_put(x, everywhere),
        state,
    )
