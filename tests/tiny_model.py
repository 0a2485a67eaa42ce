"""A random two-layer model, small enough for tests; its vocabulary is SmolLM2's."""

from typing import Any

import numpy as np
from flax import traverse_util

from jaxalign.models import ModelConfig
from jaxalign.models.parameters import leaf_shapes

TINY = ModelConfig(
    vocab_size=49152,
    num_layers=2,
    model_dim=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    mlp_dim=64,
    max_positions=1024,
    eos_token_id=2,
)


#: Smaller still, for tests that choose the vocabulary and run in float32.
SMALL = ModelConfig(
    vocab_size=32,
    num_layers=2,
    model_dim=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    mlp_dim=24,
)


def random_params(config: ModelConfig, seed: int = 0, scale: float = 0.3) -> Any:
    """Random float32 parameters of the right shapes; `scale` is the matrices' deviation."""
    normal = np.random.default_rng(seed).normal
    leaves = {}
    for path, shape in leaf_shapes(config).items():
        offset = 1.0 if path.endswith("scale") else 0.0
        leaves[path] = (offset + scale * normal(size=shape)).astype(np.float32)
    return traverse_util.unflatten_dict(leaves, sep="/")
