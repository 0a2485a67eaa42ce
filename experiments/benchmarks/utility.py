"""Solves GSM8K by lm-eval with our adapter and with transformers, and compares item by item.

    python experiments/benchmarks/utility.py --gsm8k gsm8k_test.jsonl

Both get the same weights in float32 and answer greedily. It needs torch, which the environment of
Python 3.11 has (`make test PYTHON=python3.11`), and lm-eval.
"""

import dataclasses
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import lm_eval
import tyro
import yaml
from lm_eval.tasks import TaskManager

from jaxalign.answers import LanguageModel
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
    """GSM8K as lm-eval has it, without worked examples, on a local file."""
    return {
        "task": "gsm8k_local",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(settings.gsm8k.resolve())}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer.split('####')[-1].strip()}}",
        "generation_kwargs": {
            "until": ["Question:", "</s>", "<|im_end|>"],
            "do_sample": False,
            "max_gen_toks": settings.max_new_tokens,
        },
        "filter_list": [
            {
                "name": "flexible-extract",
                "filter": [
                    {
                        "function": "regex",
                        "group_select": -1,
                        "regex_pattern": r"(-?[$0-9.,]{2,})|(-?[0-9]+)",
                    },
                    {"function": "take_first"},
                ],
            }
        ],
        "metric_list": [
            {
                "metric": "exact_match",
                "aggregation": "mean",
                "higher_is_better": True,
                "regexes_to_ignore": [",", "\\$", "(?s).*#### ", "\\.$"],
            }
        ],
    }


def main(settings: Settings) -> None:
    """Prints both accuracies, and on how many items the answers are the same."""
    try:
        import torch
        from lm_eval.models.huggingface import HFLM
    except ImportError:
        raise InputError(
            "torch is not installed, which transformers needs: use the environment of Python 3.11 "
            "(make test PYTHON=python3.11)"
        ) from None
    if not settings.gsm8k.is_file():
        raise InputError(f"{settings.gsm8k}: no such file; give GSM8K as JSON lines")
    if min(settings.items, settings.batch_size, settings.max_new_tokens) < 1:
        raise InputError("items, batch_size and max_new_tokens must be at least 1")
    model, params, tokenizer = load_pretrained(settings.model, dtype=jnp.float32)
    size, device = settings.batch_size, "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_pretrained(folder / "model", model, params, tokenizer)
        (folder / "gsm8k_local.yaml").write_text(yaml.safe_dump(task(settings)))
        manager = TaskManager(include_path=name, include_defaults=False)
        found = {}
        for label, lm in (
            ("jaxalign", JaxalignLM(LanguageModel(model, params, tokenizer), batch_size=size)),
            (
                "transformers",
                HFLM(
                    pretrained=str(folder / "model"),
                    dtype="float32",
                    device=device,
                    batch_size=size,
                ),
            ),
        ):
            start = time.perf_counter()
            result = lm_eval.simple_evaluate(
                lm,
                tasks=["gsm8k_local"],
                task_manager=manager,
                limit=settings.items,
                apply_chat_template=True,
            )
            assert result is not None
            found[label] = result["samples"]["gsm8k_local"]
            accuracy = result["results"]["gsm8k_local"]["exact_match,flexible-extract"]
            seconds = time.perf_counter() - start
            print(f"{label:14}accuracy {accuracy:.3f}, {seconds:.0f} s")
    pairs = list(zip(*found.values(), strict=True))
    for field, what in (("filtered_resps", "numbers"), ("resps", "whole answers")):
        same = sum(ours[field] == theirs[field] for ours, theirs in pairs)
        print(f"{what}: {same} of {len(pairs)} the same")


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except InputError as error:
        print(f"utility: error: {error}", file=sys.stderr)
        sys.exit(2)
