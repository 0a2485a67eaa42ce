"""`jaxalign export`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jaxalign.commands.common import Folder


@dataclass(frozen=True)
class Export:
    """Write a model as a Hugging Face folder that transformers and vLLM open.

    jaxalign export --model smollm2 --out smollm2-hf

    jaxalign export --model smollm2 --adapter runs/lora/adapter --out merged
    """

    model: str
    """smollm2, a Hugging Face folder, a .gguf file, or a hub id."""
    out: Path
    """The folder to write, in float32. One that holds a model written by jaxalign is replaced."""
    adapter: Folder = None
    """A low-rank adapter that is added to the weights; by itself it stays small: PEFT opens it."""

    def run(self) -> None:
        """Writes the folder and prints its path."""
        from jaxalign.answers.completing import find_stops
        from jaxalign.models import load_pretrained, save_pretrained
        from jaxalign.models.files.adapters import put_on
        from jaxalign.models.lora import merge

        model, params, tokenizer = load_pretrained(self.model)
        if self.adapter is not None:
            model, params = put_on(self.adapter, model, params, name=self.model)
            params = merge(params, model.lora)
        stop = find_stops(model, tokenizer).tokens
        save_pretrained(self.out, model, params, tokenizer, stop=stop)
        print(self.out)
