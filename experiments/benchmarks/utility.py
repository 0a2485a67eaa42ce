"""Solves GSM8K by lm-eval with our adapter and with transformers, and compares item by item.

    python experiments/benchmarks/utility.py --gsm8k gsm8k_test.jsonl

Both get the same weights in float32 and answer greedily. It needs torch, which the environment of
Python 3.11 has (`make test PYTHON=python3.11`), and lm-eval.
"""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import lm_eval
import yaml
from lm_eval.tasks import TaskManager
from timing import import_torch

from jaxalign.answers import LanguageModel
from jaxalign.host.command import run_command
from jaxalign.host.errors import InputError
from jaxalign.models import load_pretrained, save_pretrained
from jaxalign.utility.lm_eval_adapter import JaxalignLM


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to solve."""

    gsm8k: Path
    """JSON lines with `question` and `answer`, GSM8K's form."""
    model: str = "smollm2"
    """As for load_pretrained."""
    items: int = 50
    """The first so many."""
    max_new_tokens: int = 128
    """Of each answer."""
    batch_size: int = 25
    """Of both."""


def task(settings: Settings) -> dict[str, Any]:
    """lm-eval's own GSM8K on a local file, without worked examples."""
    return {
        "include": str(Path(lm_eval.tasks.__file__).with_name("gsm8k") / "gsm8k.yaml"),
        "task": "gsm8k_local",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(settings.gsm8k.resolve())}},
        "training_split": None,
        "fewshot_split": None,
        "num_fewshot": 0,
        "generation_kwargs": {
            "until": ["Question:", "</s>", "<|im_end|>"],
            "do_sample": False,
            "max_gen_toks": settings.max_new_tokens,
        },
    }


def main(settings: Settings) -> None:
    """Prints both accuracies, and on how many items the answers are the same."""
    _, device = import_torch()
    from lm_eval.models.huggingface import HFLM  # imports torch

    if not settings.gsm8k.is_file():
        raise InputError(f"{settings.gsm8k}: no such file; give GSM8K as JSON lines")
    if min(settings.items, settings.batch_size, settings.max_new_tokens) < 1:
        raise InputError("items, batch_size and max_new_tokens must be at least 1")
    model, params, tokenizer = load_pretrained(settings.model, dtype=jnp.float32)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_pretrained(folder / "model", model, params, tokenizer)
        (folder / "gsm8k_local.yaml").write_text(yaml.safe_dump(task(settings)))
        manager = TaskManager(include_path=name, include_defaults=False)
        size = settings.batch_size
        ours = JaxalignLM(LanguageModel(model, params, tokenizer), batch_size=size)
        path = str(folder / "model")
        theirs = HFLM(pretrained=path, dtype="float32", device=device, batch_size=size)
        found = {}
        for label, lm in (("jaxalign", ours), ("transformers", theirs)):
            start = time.perf_counter()
            result = lm_eval.simple_evaluate(
                lm,
                tasks=["gsm8k_local"],
                task_manager=manager,
                limit=settings.items,
                apply_chat_template=True,
            )
            assert result is not None
            samples = result["samples"]["gsm8k_local"]
            found[label] = [x for x in samples if x["filter"] == "flexible-extract"]
            accuracy = result["results"]["gsm8k_local"]["exact_match,flexible-extract"]
            seconds = time.perf_counter() - start
            print(f"{label:14}accuracy {accuracy:.3f}, {seconds:.0f} s")
    pairs = list(zip(*found.values(), strict=True))
    for field, what in (("filtered_resps", "numbers"), ("resps", "whole answers")):
        same = sum(one[field] == other[field] for one, other in pairs)
        print(f"{what}: {same} of {len(pairs)} the same")


if __name__ == "__main__":
    run_command("utility", Settings, main, __doc__)
