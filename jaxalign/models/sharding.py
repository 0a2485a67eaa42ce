"""Where parameters live: one table from logical axis names to mesh axes."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import traverse_util

from jaxalign.errors import InputError
from jaxalign.models.config import ModelConfig
from jaxalign.models.transformer import Transformer

RULES = (
    ("batch", ("data", "fsdp")),
    ("vocab", "tensor"),
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("embed", "fsdp"),
    ("head", None),
    ("activation", None),
    ("length", None),
    ("layers", None),
)


def parameter_shardings(model: Transformer, mesh: jax.sharding.Mesh) -> Any:
    """The parameter tree's shardings over a mesh with axes `data`, `fsdp`, `tensor`.

    Raises:
      InputError: the mesh does not divide a parameter.
    """
    return traverse_util.unflatten_dict(leaf_shardings(model.config, mesh), sep="/")


@functools.cache
def leaf_shardings(
    config: ModelConfig, mesh: jax.sharding.Mesh
) -> dict[str, jax.sharding.NamedSharding]:
    """As `parameter_shardings`, by path."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 1), jnp.bool_)
    model = Transformer(config)
    boxed = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens, mask)["params"]
    specs = nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)
    shardings = traverse_util.flatten_dict(specs, sep="/")
    for path, leaf in traverse_util.flatten_dict(nn.unbox(boxed), sep="/").items():
        for size, axes in zip(leaf.shape, shardings[path].spec, strict=False):
            names = (axes,) if isinstance(axes, str) else axes or ()
            parts = math.prod(mesh.shape[name] for name in names)
            if size % parts:
                raise InputError(
                    f"mesh: {' x '.join(names)} = {parts} does not divide the {size} of {path}"
                )
    return shardings
