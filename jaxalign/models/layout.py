"""Where a decoder's parameters live on a mesh."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util
from jax.sharding import Mesh, NamedSharding

from jaxalign.host.errors import InputError
from jaxalign.models.config import ModelConfig
from jaxalign.models.sharding import DECODING, RULES, spec_of
from jaxalign.models.transformer import Params, Transformer


def parameter_shardings(
    config: ModelConfig, mesh: Mesh, *, decoding: bool = False
) -> dict[str, NamedSharding]:
    """Path of each parameter, such as `layers/mlp/up`, to its sharding.

    Args:
      config: the architecture.
      mesh: with the axes `jaxalign.models.sharding.AXES`.
      decoding: for sampling, where weights are whole along `fsdp`, and those of attention whole
        altogether where `tensor` would cut heads in pieces: XLA would gather them for every token.

    Raises:
      InputError: the mesh does not divide a parameter.
    """
    rules = RULES
    if decoding:
        heads = {"heads": config.num_heads, "kv_heads": config.num_kv_heads}
        cut = [axis for axis, count in heads.items() if count % mesh.shape["tensor"]]
        rules = DECODING | dict.fromkeys(cut, ())
    shardings = {}
    for path, (shape, axes) in _logical_axes(config).items():
        for size, axis in zip(shape, axes, strict=True):
            names = rules.get(axis, ())
            if size % (parts := math.prod(mesh.shape[name] for name in names)):
                raise InputError(
                    f"mesh: {' x '.join(names)} = {parts} does not divide the {size} of {path}"
                )
        shardings[path] = NamedSharding(mesh, spec_of(shape, axes, mesh, rules))
    return shardings


def abstract_params(config: ModelConfig, mesh: Mesh) -> Params:
    """Float32 shapes of the parameters and where they would live, for what is traced only."""
    shardings = parameter_shardings(config, mesh)
    leaves = {
        path: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=shardings[path])
        for path, (shape, _) in _logical_axes(config).items()
    }
    return traverse_util.unflatten_dict(leaves, sep="/")


def lay_out(model: Transformer, params: Params, *, decoding: bool = False) -> Params:
    """Tells XLA, inside a compiled program, where a tree like the parameters lives.

    Args:
      model: the decoder; without a mesh nothing changes.
      params: parameters, gradients, or an optimizer's moments.
      decoding: as in `parameter_shardings`.
    """
    if model.mesh is None:
        return params
    shardings = parameter_shardings(model.config, model.mesh, decoding=decoding)
    leaves = traverse_util.flatten_dict(params, sep="/")
    laid = {k: jax.lax.with_sharding_constraint(v, shardings[k]) for k, v in leaves.items()}
    return traverse_util.unflatten_dict(laid, sep="/")


@functools.cache
def _logical_axes(config: ModelConfig) -> dict[str, tuple[tuple[int, ...], tuple[str, ...]]]:
    """Path of each parameter to its shape and its axes' names."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 1), jnp.bool_)
    boxed: Any = jax.eval_shape(Transformer(config).init, jax.random.key(0), tokens, tokens, mask)
    boxes = traverse_util.flatten_dict(boxed["params"], sep="/")
    return {path: (nn.unbox(box).shape, tuple(box.names)) for path, box in boxes.items()}
