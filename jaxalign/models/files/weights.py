"""How the tensors of a checkpoint fill the decoder's parameter tree, and come out of it again."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxalign.host.errors import InputError
from jaxalign.host.processes import fetch
from jaxalign.models.config import ModelConfig
from jaxalign.models.parameters import leaf_axes, leaf_shapes

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


def tensor_names(config: ModelConfig, names: Mapping[str, str]) -> dict[str, list[str]]:
    """Path of every leaf -> the tensors that fill it, one per layer where it holds all layers."""
    return {
        path: [names[path].format(layer) for layer in range(config.num_layers)]
        if path.startswith("layers/")
        else [names[path]]
        for path in leaf_axes(config)
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
      names: `HUGGING_FACE` or `GGUF` of `jaxalign.models.parameters`.
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
        due = shapes[path][1:] if path.startswith("layers/") else shapes[path]
        for name in group:
            if name not in stored:
                raise missing(name)
            if tuple(stored[name]) != due:
                raise InputError(
                    f"{source}: tensor {name!r} has shape {list(stored[name])} where the "
                    f"configuration asks for {list(due)}"
                )

    def leaf(path: str) -> Leaf:
        group, shape = tensors[path], shapes[path]

        def read_part(part: Index) -> np.ndarray:
            if not path.startswith("layers/"):
                return read(group[0], path, part).astype(np.float32)
            sizes = [len(range(*x.indices(n))) for x, n in zip(part, shape, strict=True)]
            out = np.empty(sizes, np.float32)
            for layer, name in enumerate(group[part[0]]):
                out[layer] = read(name, path, part[1:])
            return out

        return Leaf(shape, read_part)

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
        if leaves[path].shape != shape:
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


def unstack_tensors(
    tensors: Mapping[str, Sequence[str]], leaves: Mapping[str, Any]
) -> Iterator[tuple[str, np.ndarray]]:
    """Each tensor of `tensor_names`, dtype kept, contiguous; a leaf at a time.

    Of a tree whose parts lie with several processes a tensor at a time; all of them must ask for
    all tensors.
    """
    for path, group in tensors.items():
        value, stacked = leaves[path], path.startswith("layers/")
        if not isinstance(value, jax.Array) or value.is_fully_addressable:
            value = np.asarray(value)
            parts = iter(value if stacked else value[None])
        elif stacked:
            parts = (fetch(_layer(value, layer)) for layer in range(len(group)))
        else:
            parts = iter([fetch(value)])
        yield from ((name, np.ascontiguousarray(x)) for name, x in zip(group, parts, strict=True))


@jax.jit
def _layer(stacked: jax.Array, layer: int) -> jax.Array:
    """One layer's tensor; the number is an argument, so one program serves all layers."""
    return jax.lax.dynamic_index_in_dim(stacked, layer, keepdims=False)
