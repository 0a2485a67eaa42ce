"""`jaxalign export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Export:
    """Write a model as a Hugging Face folder that transformers and vLLM open.

    jaxalign export --model smollm2 --out smollm2-hf
    """

    model: str
    """smollm2, a Hugging Face folder, a .gguf file, or a hub id."""
    out: Path
    """The folder to write, in float32. One that holds a model written by jaxalign is replaced."""

    def run(self) -> None:
        """Writes the folder and prints its path."""
        from jaxalign.answers.completing import find_stops
        from jaxalign.models import load_pretrained, save_pretrained

        model, params, tokenizer = load_pretrained(self.model)
        stop = find_stops(model, tokenizer).tokens
        save_pretrained(self.out, model, params, tokenizer, stop=stop)
        print(self.out)
