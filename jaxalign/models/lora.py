"""Low-rank adapters (LoRA): what is trained is a small addition to frozen matrices.

    y = x Wᵀ + s (x Aᵀ) Bᵀ,    A [r, in],  B [out, r],  s = α/r, rank-stabilised α/√r

A policy with adapters is `{"base": parameters, "adapter": A and B of each target}`; `Transformer`
runs it with the functions that run plain parameters, and the base alone is the start model: the
reference of a KL, or what scores helpfulness. The two products are never merged, neither to sample
nor to train: W + s B A rounds once more than the products do, so that log-probabilities of the two
would differ, and in bfloat16 a small change is lost in a large weight.

There is no dropout on x: it would make sampling and training different policies.

Source: LoRA (arXiv 2106.09685); α/√r: rsLoRA (arXiv 2312.03732). A starts as in PEFT, uniform in
±1/√in, B at zero.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import traverse_util

from jaxalign.host.errors import InputError
from jaxalign.host.fields import Checked, Natural, Positive
from jaxalign.models.config import ModelConfig
from jaxalign.models.parameters import leaf_axes, leaf_shapes
from jaxalign.models.quantised import dequantise
from jaxalign.records import Params

Target = Literal["attention", "mlp"]

TARGETS: dict[Target, tuple[str, ...]] = {
    "attention": ("query", "key", "value", "output"),
    "mlp": ("gate", "up", "down"),
}
"""The matrices of each target."""


@dataclasses.dataclass(frozen=True)
class Lora(Checked):
    """Low-rank adapters: their rank, and to which matrices they add."""

    rank: Natural = 0
    """r; 0 trains all parameters instead."""
    alpha: Positive = 32.0
    """α: what adapters add is scaled by α/r."""
    targets: tuple[Target, ...] = ("attention", "mlp")
    """Which matrices of each layer: attention's four, the MLP's three."""
    rank_stabilised: bool = False
    """Scale by α/√r instead, so that a higher rank learns as fast."""
    base: Literal["compute", "int8"] = "compute"
    """What the frozen parameters are kept in: the compute dtype, or the matrices of the layers in 8
    bits with a scale for each row (`jaxalign.models.quantised`)."""

    @property
    def scale(self) -> float:
        """s; 0 without adapters."""
        if not self.rank:
            return 0.0
        return self.alpha / (math.sqrt(self.rank) if self.rank_stabilised else self.rank)

    def check_fields(self, above: str) -> None:
        """Also that there is a target, and a frozen base where one is to be in 8 bits."""
        super().check_fields(above)
        if self.base == "int8" and not self.rank:
            raise InputError(f"{above}base=int8: nothing is frozen without adapters: give a rank")
        if self.rank and not self.targets:
            raise InputError(f"{above}targets is empty: name attention, mlp, or both")


def adapter_axes(config: ModelConfig, lora: Lora) -> dict[str, tuple[str, ...]]:
    """Path of each adapter's A and B, such as `layers/mlp/up/a`, to the logical name of each axis.

    Those of all layers are stacked, as the matrices that they add to.
    """
    found: dict[str, tuple[str, ...]] = {}
    for path, axes in leaf_axes(config).items():
        *_, group, name = path.split("/")
        if lora.rank and any(group == x and name in TARGETS[x] for x in lora.targets):
            layers, rows, columns = axes
            found[f"{path}/a"] = (layers, "rank", columns)
            found[f"{path}/b"] = (layers, rows, "rank")
    return found


def adapter_shapes(config: ModelConfig, lora: Lora) -> dict[str, tuple[int, ...]]:
    """Path of each adapter's A and B to its shape."""
    weights = leaf_shapes(config)
    found: dict[str, tuple[int, ...]] = {}
    for path in adapter_axes(config, lora):
        weight, _, part = path.rpartition("/")
        layers, rows, columns = weights[weight]
        found[path] = (layers, lora.rank, columns) if part == "a" else (layers, rows, lora.rank)
    return found


def init_adapter(config: ModelConfig, lora: Lora, key: jax.Array) -> Params:
    """`{"adapter": …}`, float32, to train on a base: at first it adds nothing."""
    leaves = {}
    for number, (path, shape) in enumerate(adapter_shapes(config, lora).items()):
        if path.endswith("/a"):
            bound = 1 / math.sqrt(shape[-1])
            own = jax.random.fold_in(key, number)
            leaves[path] = jax.random.uniform(own, shape, minval=-bound, maxval=bound)
        else:
            leaves[path] = jnp.zeros(shape)
    return {"adapter": traverse_util.unflatten_dict(leaves, sep="/")}


def is_adapter(params: Params) -> bool:
    """Whether what is trained is an adapter, which needs its base to run."""
    return isinstance(params, dict) and params.keys() == {"adapter"}


def on_base(params: Params, base: Params | None) -> Params:
    """What a model runs: an adapter on its base, other parameters as they are."""
    return {"base": base, **params} if is_adapter(params) else params


def off_base(params: Params) -> Params:
    """What of it is trained: the adapter without its base, other parameters as they are."""
    return {"adapter": params["adapter"]} if is_on_base(params) else params


def is_on_base(params: Params) -> bool:
    """Whether they are an adapter with its base."""
    return isinstance(params, dict) and params.keys() == {"base", "adapter"}


def merge(params: Params, lora: Lora) -> Params:
    """Plain parameters that do what an adapter on its base does: W + s B A, float32.

    Other parameters are as they are.
    """
    if not is_on_base(params):
        return params
    leaves = traverse_util.flatten_dict(dequantise(params["base"]), sep="/")
    parts = traverse_util.flatten_dict(params["adapter"], sep="/")
    for path in {path.rpartition("/")[0] for path in parts}:
        added = jnp.einsum(
            "lor,lri->loi", parts[f"{path}/b"], parts[f"{path}/a"], precision="highest"
        )
        leaves[path] = leaves[path].astype(jnp.float32) + lora.scale * added
    return traverse_util.unflatten_dict(leaves, sep="/")
