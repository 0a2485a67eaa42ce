"""The decoder's parameter tree: its leaves, their shapes, and how checkpoint tensors fill them.

A leaf is named by its path, as in `layers/attention/query`. The leaves under `layers/` hold all L
layers, stacked on a leading axis; checkpoint files hold one tensor per layer.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxalign.host.errors import InputError
from jaxalign.host.processes import fetch
from jaxalign.models.config import ModelConfig

Index = tuple[slice, ...]
"""A part of an array: one slice for each axis."""


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A parameter that is still in its file.

    Attributes:
      shape: of the whole, layers stacked.
      read: reads a part of it, float32; nothing else is kept in memory.
    """

    shape: tuple[int, ...]
    read: Callable[[Index], np.ndarray]

    def whole(self) -> np.ndarray:
        """All of it."""
        return self.read(tuple(slice(0, size) for size in self.shape))


Place = Callable[[ModelConfig, str, Leaf], Any]
"""Puts a parameter, named by its path, where it is to live."""


def leaf_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Path of every leaf -> shape of one checkpoint tensor of it (the L axis left out)."""
    width, hidden = config.model_dim, config.mlp_dim
    q_width = config.num_heads * config.head_dim
    kv_width = config.num_kv_heads * config.head_dim
    shapes: dict[str, tuple[int, ...]] = {
        "embed/embedding": (config.vocab_size, width),
        "layers/attention_norm/scale": (width,),
        "layers/attention/query": (q_width, width),
        "layers/attention/key": (kv_width, width),
        "layers/attention/value": (kv_width, width),
        "layers/attention/output": (width, q_width),
        "layers/mlp_norm/scale": (width,),
        "layers/mlp/gate": (hidden, width),
        "layers/mlp/up": (hidden, width),
        "layers/mlp/down": (width, hidden),
        "final_norm/scale": (width,),
    }
    if config.qkv_bias:
        shapes["layers/attention/query_bias"] = (q_width,)
        shapes["layers/attention/key_bias"] = (kv_width,)
        shapes["layers/attention/value_bias"] = (kv_width,)
    if config.qk_norm:
        shapes["layers/attention/query_norm/scale"] = (config.head_dim,)
        shapes["layers/attention/key_norm/scale"] = (config.head_dim,)
    if config.num_labels:
        shapes["score/kernel"] = (config.num_labels, width)
    elif not config.tie_embeddings:
        shapes["lm_head/kernel"] = (config.vocab_size, width)
    return shapes


def tensor_names(config: ModelConfig, names: Mapping[str, str]) -> dict[str, list[str]]:
    """Path of every leaf -> the tensors that fill it, one per layer where `names` has a `{}`."""
    return {
        path: [names[path].format(layer) for layer in range(config.num_layers)]
        if path.startswith("layers/")
        else [names[path]]
        for path in leaf_shapes(config)
    }


def stack_tensors(
    config: ModelConfig,
    names: Mapping[str, str],
    stored: Mapping[str, Sequence[int]],
    read: Callable[[str, str, Index], np.ndarray],
    *,
    source: str,
    place: Place,
) -> dict[str, Any]:
    """Reads a checkpoint into the parameter tree, one parameter at a time.

    Names and shapes are compared with `config` before anything is allocated or read.

    Args:
      config: the architecture, which fixes the leaves and their shapes.
      names: path of a leaf -> tensor name, with `{}` for the layer's number.
      stored: tensor name -> shape, for all tensors in the checkpoint that matter.
      read: (tensor name, path of its leaf, part) -> that part of the tensor.
      source: the file or folder, for messages.
      place: makes a leaf of the tree of a parameter in the file.

    Returns:
      nested dict of what `place` makes.

    Raises:
      InputError: a tensor is missing, has another shape than `config` asks for, or has no place in
        the tree.
    """

    def missing(name: str) -> InputError:
        return InputError(f"{source}: tensor {name!r} is missing; fetch the model again")

    # First of all, so that an absurd layer count in a damaged file costs nothing.
    last = names["layers/attention_norm/scale"].format(config.num_layers - 1)
    if last not in stored:
        raise missing(last)
    shapes, tensors = leaf_shapes(config), tensor_names(config, names)
    unexpected = stored.keys() - {name for group in tensors.values() for name in group}
    if unexpected:
        raise InputError(
            f"{source}: tensor {min(unexpected)!r} has no place in the decoder that the "
            "configuration describes (other biases and experts come with a later release)"
        )
    for path, group in tensors.items():
        for name in group:
            if name not in stored:
                raise missing(name)
            if tuple(stored[name]) != shapes[path]:
                raise InputError(
                    f"{source}: tensor {name!r} has shape {list(stored[name])} where the "
                    f"configuration asks for {list(shapes[path])}"
                )

    def leaf(path: str) -> Leaf:
        group, shape = tensors[path], shapes[path]
        if not path.startswith("layers/"):
            return Leaf(shape, lambda part: read(group[0], path, part).astype(np.float32))

        def read_stacked(part: Index) -> np.ndarray:
            names, sizes = group[part[0]], zip(part[1:], shape, strict=True)
            out = np.empty((len(names), *(len(range(*x.indices(n))) for x, n in sizes)), np.float32)
            for layer, name in enumerate(names):
                out[layer] = read(name, path, part[1:])
            return out

        return Leaf((len(group), *shape), read_stacked)

    leaves = {path: place(config, path, leaf(path)) for path in tensors}
    return traverse_util.unflatten_dict(leaves, sep="/")


def check_tree(config: ModelConfig, params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameter tree by path.

    Raises:
      ValueError: it is not the tree of `config`.
    """
    leaves = traverse_util.flatten_dict(params, sep="/")
    shapes = leaf_shapes(config)
    if leaves.keys() != shapes.keys():
        raise ValueError(
            "params and config disagree on the leaves "
            f"{sorted(leaves.keys() ^ shapes.keys())}; save the decoder's parameters alone"
        )
    for path, shape in shapes.items():
        due = (config.num_layers, *shape) if path.startswith("layers/") else shape
        if leaves[path].shape != due:
            raise ValueError(
                f"params leaf {path} has shape {leaves[path].shape}, not the one of config"
            )
    return leaves


def weights_digest(params: Mapping[str, Any]) -> str:
    """A fingerprint of parameters: of sums of their bits, exact in any order and on any mesh.

    It tells trained models apart; one whose layers were put in another order it would not.
    """
    leaves = traverse_util.flatten_dict(params, sep="/")
    sums = {path: int(fetch(_bit_sum(leaf))) for path, leaf in sorted(leaves.items())}
    return hashlib.sha256(json.dumps(sums).encode()).hexdigest()[:16]


@jax.jit
def _bit_sum(leaf: jax.Array) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * leaf.dtype.itemsize}"))
    return jnp.sum(bits, dtype=jnp.uint32)


def tensor_sizes(
    config: ModelConfig, names: Mapping[str, str], leaves: Mapping[str, Any]
) -> dict[str, int]:
    """Tensor name -> bytes, in the order of `unstack_tensors`; `leaves` are by path."""
    shapes = leaf_shapes(config)
    return {
        name: math.prod(shapes[path]) * leaves[path].dtype.itemsize
        for path, group in tensor_names(config, names).items()
        for name in group
    }


def unstack_tensors(
    config: ModelConfig, names: Mapping[str, str], leaves: Mapping[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    """Each checkpoint tensor of a tree given by path, dtype kept, contiguous; a leaf at a time.

    Of a tree whose parts lie with several processes a tensor at a time; all of them must ask for
    all tensors.
    """
    for path, group in tensor_names(config, names).items():
        value, stacked = leaves[path], path.startswith("layers/")
        if not isinstance(value, jax.Array) or value.is_fully_addressable:
            value = np.asarray(value)
            tensors = iter(value if stacked else value[None])
        elif stacked:
            tensors = (fetch(_layer(value, layer)) for layer in range(len(group)))
        else:
            tensors = iter([fetch(value)])
        yield from ((name, np.ascontiguousarray(x)) for name, x in zip(group, tensors, strict=True))


@jax.jit
def _layer(stacked: jax.Array, layer: int) -> jax.Array:
    """One layer's tensor; the number is an argument, so one program serves all layers."""
    return jax.lax.dynamic_index_in_dim(stacked, layer, keepdims=False)
