"""Times answers to many prompts, beside `generate` of transformers on the same weights.

    python experiments/benchmarks/generate.py
    python experiments/benchmarks/generate.py --template bare --prompts 128 --max-new-tokens 128

Our own held-out prompts, greedy. Both get the same tokens in batches of one size and stop where the
model ends; each one's tokens are counted. `jaxalign` is the whole of `jaxalign generate` behind the
loading: encoding, batches, text and files. `transformers` is `model.generate` alone, on prompts in
their order, padded on the left. The two take turns, after a first run of each (ours compiles in
it); the faster of two more of each counts. It needs torch, which the environment of Python 3.11 has
(`make test PYTHON=python3.11`).
"""

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np
from timing import import_torch, print_setting

from jaxalign.answers import Asking, LanguageModel
from jaxalign.answers.completing import find_stops
from jaxalign.answers.generation import generate
from jaxalign.data import load_requests
from jaxalign.data.templates import alphaalign_messages, bare_messages, encode_requests, pad
from jaxalign.host.command import run_command
from jaxalign.host.errors import InputError
from jaxalign.models import load_pretrained, save_pretrained

TEMPLATES = {"alphaalign": alphaalign_messages, "bare": bare_messages}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to time."""

    model: str = "smollm2"
    """As for load_pretrained."""
    dtype: Literal["bfloat16", "float32"] = "float32"
    """Of both computations."""
    template: Literal["alphaalign", "bare"] = "alphaalign"
    """alphaalign opens all prompts with the same 193 tokens; bare with next to none."""
    prompts: int = 64
    """How many."""
    batch_size: int = 32
    """Of both."""
    max_new_tokens: int = 64
    """Of each answer."""


def main(settings: Settings) -> None:
    """Prints both speeds and their ratio."""
    torch, device = import_torch()
    import transformers  # says so where there is no torch

    if min(settings.prompts, settings.batch_size, settings.max_new_tokens) < 1:
        raise InputError("prompts, batch_size and max_new_tokens must be at least 1")
    model, params, tokenizer = load_pretrained(settings.model, dtype=jnp.dtype(settings.dtype))
    requests = load_requests("builtin:heldout", limit=settings.prompts)
    template = TEMPLATES[settings.template]
    stop = find_stops(model, tokenizer).tokens
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(Path(folder) / "model", model, params, tokenizer)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(
            Path(folder) / "model", dtype=getattr(torch, settings.dtype)
        ).to(device)
    texts = [request.text for request in requests]
    prefix, tails = encode_requests(tokenizer, template, texts)
    ids = [[*prefix.tolist(), *tail] for tail in tails]

    def with_jaxalign() -> int:
        with tempfile.TemporaryDirectory() as folder:
            made = generate(
                LanguageModel(model, params, tokenizer),
                requests,
                Path(folder) / "answers.jsonl",
                Asking(
                    template,
                    max_new_tokens=settings.max_new_tokens,
                    batch_size=settings.batch_size,
                ),
                facts={},
            )
        return made.tokens

    def with_transformers() -> int:
        count = 0
        for first in range(0, len(ids), settings.batch_size):
            # Padded on the left, as transformers wants prompts to be.
            turned = [row[::-1] for row in ids[first : first + settings.batch_size]]
            arrays = pad(turned, max(map(len, turned)))
            tokens, mask = (torch.tensor(x, device=device).flip(1).long() for x in arrays)
            made = theirs.generate(
                input_ids=tokens,
                attention_mask=mask,
                max_new_tokens=settings.max_new_tokens,
                do_sample=False,
                eos_token_id=list(stop),
                pad_token_id=stop[0],
            )
            count += generated(made[:, tokens.shape[1] :].cpu().numpy(), stop)
        return count

    runs = {"jaxalign": with_jaxalign, "transformers": with_transformers}
    counts: dict[str, int] = {}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(3):
        for name, run in runs.items():
            start = time.perf_counter()
            counts[name] = run()
            seconds[name].append(time.perf_counter() - start)
    print_setting(settings.dtype, f"torch {torch.__version__} on {device}")
    print(f"{len(ids)} prompts, {len(prefix)} tokens shared, {settings.template}")
    speeds = {name: counts[name] / min(seconds[name][1:]) for name in runs}
    for name, speed in speeds.items():
        tokens, first = counts[name], seconds[name][0]
        print(f"{name:14}{speed:9.1f} tokens/s, {tokens} tokens; first run {first:.1f} s")
    print(f"ratio {speeds['jaxalign'] / speeds['transformers']:.2f}")


def generated(rows: np.ndarray, stop: tuple[int, ...]) -> int:
    """How many tokens there are up to the first one that ends a row, itself included."""
    ends = np.isin(rows, stop)
    return int((np.cumsum(ends, axis=1) - ends == 0).sum())


if __name__ == "__main__":
    run_command("generate", Settings, main, __doc__)
