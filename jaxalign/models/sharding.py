"""Where parameters live: one table from logical axis names to mesh axes."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

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
    """The parameter tree's shardings over a mesh with axes `data`, `fsdp`, `tensor`."""
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 1), jnp.bool_)
    boxed = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens, mask)["params"]
    return nn.logical_to_mesh_sharding(nn.get_partition_spec(boxed), mesh, RULES)
