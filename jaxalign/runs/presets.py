"""Large models in the scripts' presets: hub ids, and meshes, but of adapters for the slice v5e:4x4.

`jaxalign plan` (2026-11-22) says of AlphaAlign's step, in GiB of each device's 16 and seconds at
least: qwen2.5-3b 7.8 and 5.3, llama-3.2-3b 8.5 and 6.0, qwen2.5-7b 14.9 and 7.4, llama-3-8b 14.8
and 8.4, qwen3-8b 15.4 and 8.5. None has run. docs/scale.md has v5p and v6e too. On slices of
another size keep `tensor` and give `fsdp` the rest, as plan does.
"""

from pathlib import Path
from typing import Any, TypeVar

from jaxalign.models.lora import Lora
from jaxalign.runs.choices import change
from jaxalign.runs.settings import Settings

AnySettings = TypeVar("AnySettings", bound=Settings)

_PLACES: dict[str, dict[str, Any]] = {
    "qwen2.5-3b": {"model": "Qwen/Qwen2.5-3B-Instruct", "mesh": (1, 8, 2)},
    "qwen2.5-7b": {"model": "Qwen/Qwen2.5-7B-Instruct", "mesh": (1, 4, 4)},
    "llama-3.2-3b": {"model": "meta-llama/Llama-3.2-3B-Instruct", "mesh": (1, 8, 2)},
    "qwen3-8b": {"model": "Qwen/Qwen3-8B", "mesh": (1, 4, 4), "micro_batches": 8},
    "llama-3-8b": {
        "model": "meta-llama/Meta-Llama-3-8B-Instruct",
        "mesh": (1, 4, 4),
        "micro_batches": 8,
    },
    # Adapters of rank 32, meant for v5e:2x4 and for 16 chips of v5p or v6e; not planned yet.
    "qwen2.5-7b-lora": {
        "model": "Qwen/Qwen2.5-7B-Instruct",
        "mesh": (1, 2, 4),
        "lora": Lora(rank=32),
        "micro_batches": 8,
    },
    "llama-3.1-70b-lora": {
        "model": "meta-llama/Llama-3.1-70B-Instruct",
        "mesh": (1, 2, 8),
        "lora": Lora(rank=32),
        "micro_batches": 8,
    },
}

LARGE: dict[str, dict[str, Any]] = {
    name: {
        "remat": "full",
        "max_prompt_tokens": 256,
        "max_new_tokens": 1024,
        "temperature": 1.0,
        "micro_batches": 4,
        **place,
    }
    for name, place in _PLACES.items()
}
"""Settings of each that all methods share: the lengths are ours."""


def large(settings: AnySettings, method: str, **own: Any) -> dict[str, AnySettings]:
    """Presets of a method for these models, by name; `own` values go by the names of flags.

    Adapters learn at ten times the method's rate (ours).
    """
    presets = {}
    for name, common in LARGE.items():
        preset = change(settings, run=Path(f"runs/{method}-{name}"), **common | own)
        if preset.learning.lora.rank:
            preset = change(preset, learning_rate=10 * preset.learning.learning_rate)
        presets[name] = preset
    return presets
