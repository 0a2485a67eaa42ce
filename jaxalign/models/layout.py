"""Where a decoder's parameters live on a mesh."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.host.errors import InputError
from jaxalign.models.config import ModelConfig
from jaxalign.models.lora import Lora, adapter_axes, adapter_shapes
from jaxalign.models.network import Network
from jaxalign.models.parameters import leaf_axes, leaf_shapes
from jaxalign.models.quantised import quantised_axes, quantised_shapes
from jaxalign.models.sharding import DECODING, RULES, Rules, spec_of
from jaxalign.records import Params


def parameter_shardings(
    config: ModelConfig, mesh: Mesh, *, decoding: bool = False
) -> dict[str, NamedSharding]:
    """Path of each parameter, such as `layers/mlp/up`, to its sharding.

    While decoding, weights are whole along `fsdp`, and those of attention whole altogether where
    `tensor` would cut heads in pieces: XLA would gather them for every token.

    Raises:
      InputError: the mesh does not divide a parameter.
    """
    rules = _rules(config, mesh, decoding)
    shardings, shapes = {}, leaf_shapes(config)
    for path, axes in leaf_axes(config).items():
        shape = shapes[path]
        for size, axis in zip(shape, axes, strict=True):
            names = rules.get(axis, ())
            if size % (parts := math.prod(mesh.shape[name] for name in names)):
                raise InputError(
                    f"mesh: {' x '.join(names)} = {parts} does not divide the {size} of {path}"
                )
        shardings[path] = NamedSharding(mesh, spec_of(shape, axes, mesh, rules))
    return shardings


def _added_shardings(
    config: ModelConfig, lora: Lora, mesh: Mesh, *, decoding: bool = False
) -> dict[str, NamedSharding]:
    """Path to sharding of what stands beside or in the place of a matrix, split as that is.

    These are an adapter's A and B, whose rank is whole, and the parts of a quantised base.
    """
    shapes, rules = _added_shapes(config, lora), _rules(config, mesh, decoding)
    return {
        path: NamedSharding(mesh, spec_of(shapes[path], axes, mesh, rules))
        for path, axes in (adapter_axes(config, lora) | quantised_axes(config)).items()
    }


def _added_shapes(config: ModelConfig, lora: Lora) -> dict[str, tuple[int, ...]]:
    return adapter_shapes(config, lora) | quantised_shapes(config)


def _rules(config: ModelConfig, mesh: Mesh, decoding: bool) -> Rules:
    if not decoding:
        return RULES
    heads = {"heads": config.num_heads, "kv_heads": config.num_kv_heads}
    cut = [axis for axis, count in heads.items() if count % mesh.shape["tensor"]]
    return DECODING | dict.fromkeys(cut, ())


def abstract_params(config: ModelConfig, mesh: Mesh) -> Params:
    """Float32 shapes of the parameters and where they would live, for what is traced only."""
    shardings = parameter_shardings(config, mesh)
    leaves = {
        path: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=shardings[path])
        for path, shape in leaf_shapes(config).items()
    }
    return traverse_util.unflatten_dict(leaves, sep="/")


def place_adapter(model: Network, adapter: Params) -> Params:
    """An adapter where the model's mesh has it."""
    shardings = tree_shardings(model, adapter)
    return adapter if shardings is None else jax.device_put(adapter, shardings)


def lay_out(model: Any, tree: Any, *, decoding: bool = False) -> Any:
    """Tells XLA, inside a compiled program, where parameters, gradients or moments live.

    A model without a mesh, or not of ours, changes nothing; `decoding` is as in
    `parameter_shardings`.
    """
    shardings = tree_shardings(model, tree, decoding=decoding)
    if shardings is None:
        return tree
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, shardings)


def tree_shardings(model: Any, tree: Any, *, decoding: bool = False) -> Any:
    """Where each leaf of a tree lives; None without a mesh.

    What is shaped and named like a parameter, or an adapter's, lies as that does, the rest on every
    device.
    """
    mesh = mesh_of(model)
    if mesh is None:
        return None
    places = parameter_shardings(model.config, mesh, decoding=decoding)
    places |= _added_shardings(model.config, model.lora, mesh, decoding=decoding)
    shapes = leaf_shapes(model.config) | _added_shapes(model.config, model.lora)
    whole = NamedSharding(mesh, PartitionSpec())

    def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        names = "/" + "/".join(str(getattr(entry, "key", "")) for entry in path)
        like = (x for x in places if names.endswith(f"/{x}") and shapes[x] == leaf.shape)
        return places.get(next(like, ""), whole)

    return jax.tree_util.tree_map_with_path(place, tree)


def mesh_of(model: Any) -> Mesh | None:
    """The devices that share a decoder of ours; None for one device, or another's decoder."""
    return model.mesh if isinstance(model, Network) else None
