"""Decoders: load, run, save.

What reads and writes files is imported when it is first asked for: it brings transformers with it,
and a part such as `jaxalign.models.sharding` must stay light.
"""

import importlib
from typing import TYPE_CHECKING, Any

from jaxalign.models.config import ModelConfig
from jaxalign.models.decoder import Decoder, plain_decoder
from jaxalign.models.heads import hidden_entropies, hidden_token_logps
from jaxalign.models.lora import Lora, init_adapter, merge, on_base
from jaxalign.models.scores import sequence_scores
from jaxalign.models.transformer import Transformer

if TYPE_CHECKING:
    from jaxalign.models.files.adapters import load_adapter, save_adapter
    from jaxalign.models.files.gguf import smollm2_path
    from jaxalign.models.files.huggingface import save_pretrained
    from jaxalign.models.files.load import PLAIN_TEMPLATE, load_pretrained

__all__ = [
    "PLAIN_TEMPLATE",
    "Decoder",
    "Lora",
    "ModelConfig",
    "Transformer",
    "hidden_entropies",
    "hidden_token_logps",
    "init_adapter",
    "load_adapter",
    "load_pretrained",
    "merge",
    "on_base",
    "plain_decoder",
    "save_adapter",
    "save_pretrained",
    "sequence_scores",
    "smollm2_path",
]

_OF_FILES = {
    "PLAIN_TEMPLATE": "load",
    "load_adapter": "adapters",
    "save_adapter": "adapters",
    "load_pretrained": "load",
    "save_pretrained": "huggingface",
    "smollm2_path": "gguf",
}


def __getattr__(name: str) -> Any:
    if name not in _OF_FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxalign.models.files.{_OF_FILES[name]}"), name)
