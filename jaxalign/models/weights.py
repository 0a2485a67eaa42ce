"""The decoder's parameter tree: its leaves, their shapes, and how checkpoint tensors fill them.

A leaf is named by its path, as in `layers/attention/query`. The leaves under `layers/` hold all L
layers, stacked on a leading axis; checkpoint files hold one tensor per layer.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from jaxalign.errors import InputError
from jaxalign.models.config import ModelConfig


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
    if not config.tie_embeddings:
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
    read: Callable[[str, str], np.ndarray],
    source: str,
) -> dict[str, Any]:
    """Reads a checkpoint into the parameter tree, one tensor at a time.

    Names and shapes are compared with `config` before anything is allocated or read.

    Args:
      config: the architecture, which fixes the leaves and their shapes.
      names: path of a leaf -> tensor name, with `{}` for the layer's number.
      stored: tensor name -> shape, for all tensors in the checkpoint that matter.
      read: (tensor name, path of its leaf) -> array of that shape.
      source: the file or folder, for messages.

    Returns:
      nested dict of float32 NumPy arrays.

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
    leaves: dict[str, np.ndarray] = {}
    for path, group in tensors.items():
        stacked = np.empty((len(group), *shapes[path]), np.float32)
        for layer, name in enumerate(group):
            stacked[layer] = read(name, path)
        leaves[path] = stacked if path.startswith("layers/") else stacked[0]
    return traverse_util.unflatten_dict(leaves, sep="/")


def unstack_tensors(
    config: ModelConfig, names: Mapping[str, str], params: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The inverse of `stack_tensors`, dtypes kept: tensor name -> contiguous NumPy array.

    Raises:
      ValueError: `params` is not the tree of `config`.
    """
    leaves = traverse_util.flatten_dict(params, sep="/")
    shapes = leaf_shapes(config)
    if leaves.keys() != shapes.keys():
        raise ValueError(
            "params and config disagree on the leaves "
            f"{sorted(leaves.keys() ^ shapes.keys())}; save the decoder's parameters alone"
        )
    tensors: dict[str, np.ndarray] = {}
    for path, per_layer in tensor_names(config, names).items():
        value = np.asarray(leaves[path])
        stacked = value if path.startswith("layers/") else value[None]
        if stacked.shape != (len(per_layer), *shapes[path]):
            raise ValueError(f"params leaf {path} has shape {value.shape}, not the one of config")
        tensors.update(zip(per_layer, np.ascontiguousarray(stacked), strict=True))
    return tensors
