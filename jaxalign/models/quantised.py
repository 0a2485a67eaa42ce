"""Frozen matrices in 8 bits: a whole number for each weight, a scale for each row.

    W_oi ≈ s_o q_oi,    s_o = max_i |W_oi| / 127,    q_oi = round(W_oi / s_o)
    x Wᵀ ≈ (x qᵀ) ⊙ s

A matrix `[L, out, in]` becomes `{"int8": q, "scale": s [L, out] float32}` in its place, in the
layers alone: embedding, output projection, norms and biases stay as they are. The product turns q
into the compute dtype, in which it is exact, and scales what comes out. A row's weights are off by
at most s_o / 2, about 0.4 % of the largest.

It has no gradient in q: it is what adapters stand on (`jaxalign.models.lora`). Source: rounding to
nearest with a scale a row, as in LLM.int8() (arXiv 2208.07339), without its outliers.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from jaxalign.models.config import ModelConfig
from jaxalign.models.parameters import leaf_axes, leaf_shapes
from jaxalign.records import Params

Weight = jax.Array | dict[str, jax.Array]
"""A matrix, or a quantised one."""

PARTS = {"int8": 3, "scale": 2}
"""Of a quantised matrix, and how many axes each has."""


def is_quantised(weight: Any) -> bool:
    """Whether it is a quantised matrix."""
    return isinstance(weight, dict) and weight.keys() == PARTS.keys()


def quantise(params: Params) -> Params:
    """Plain parameters with the matrices of their layers in 8 bits; the others as they are."""

    def one(path: tuple[str, ...], weight: jax.Array) -> Weight:
        matrix = path[0] == "layers" and weight.ndim == PARTS["int8"]
        return _in_8_bits(weight) if matrix else weight

    leaves = traverse_util.flatten_dict(params)
    return traverse_util.unflatten_dict({path: one(path, x) for path, x in leaves.items()})


@jax.jit
def _in_8_bits(weight: jax.Array) -> dict[str, jax.Array]:
    wide = weight.astype(jnp.float32)
    scale = jnp.maximum(jnp.abs(wide).max(axis=-1), 1e-30) / 127
    return {"int8": jnp.round(wide / scale[..., None]).astype(jnp.int8), "scale": scale}


def dequantise(params: Params) -> Params:
    """Plain parameters, float32 where they were quantised."""

    def one(weight: Weight) -> jax.Array:
        if isinstance(weight, dict):
            return weight["int8"].astype(jnp.float32) * weight["scale"][..., None]
        return weight

    return jax.tree.map(one, params, is_leaf=is_quantised)


def quantised_axes(config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Path of each part of a quantised matrix, `layers/mlp/up/int8`, to its axes' logical names."""
    return {
        f"{path}/{part}": axes[:ndim]
        for path, axes in leaf_axes(config).items()
        if path.startswith("layers/") and len(axes) == PARTS["int8"]
        for part, ndim in PARTS.items()
    }


def quantised_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Path of each part of a quantised matrix to its shape."""
    shapes = leaf_shapes(config)
    return {
        path: shapes[path.rpartition("/")[0]][: len(axes)]
        for path, axes in quantised_axes(config).items()
    }
