"""Sizes of models whose weights are not at hand."""

from pathlib import Path
from typing import Any

from jaxalign.host.errors import InputError
from jaxalign.models.config import ModelConfig
from jaxalign.models.files.hf_config import LANGUAGE_MODELS, make_config, read_fields
from jaxalign.models.rotary import Llama3Scaling

_QWEN2: dict[str, Any] = {"qkv_bias": True, "norm_eps": 1e-6, "max_positions": 32768}
_QWEN3: dict[str, Any] = {"qk_norm": True, "norm_eps": 1e-6, "max_positions": 40960}
_LLAMA3_1: dict[str, Any] = {
    "rope_scaling": Llama3Scaling(8.0, 1.0, 4.0, 8192),
    "max_positions": 131072,
}
_LLAMA3_2: dict[str, Any] = {
    "rope_scaling": Llama3Scaling(32.0, 1.0, 4.0, 8192),
    "max_positions": 131072,
}

# Vocabulary, layers, width, query heads, key and value heads, head width, MLP width, rotary base.
KNOWN = {
    "smollm2": ModelConfig(49152, 30, 576, 9, 3, 64, 1536, 1e5),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": ModelConfig(49152, 24, 2048, 32, 32, 64, 8192, 130e3),
    "Qwen/Qwen2.5-3B-Instruct": ModelConfig(151936, 36, 2048, 16, 2, 128, 11008, 1e6, **_QWEN2),
    "Qwen/Qwen2.5-7B-Instruct": ModelConfig(
        152064, 28, 3584, 28, 4, 128, 18944, 1e6, tie_embeddings=False, **_QWEN2
    ),
    "meta-llama/Llama-3.2-3B-Instruct": ModelConfig(
        128256, 28, 3072, 24, 8, 128, 8192, 5e5, **_LLAMA3_2
    ),
    "Qwen/Qwen3-8B": ModelConfig(
        151936, 36, 4096, 32, 8, 128, 12288, 1e6, tie_embeddings=False, **_QWEN3
    ),
    "meta-llama/Meta-Llama-3-8B-Instruct": ModelConfig(
        128256, 32, 4096, 32, 8, 128, 14336, 5e5, tie_embeddings=False
    ),
    "meta-llama/Llama-3.1-70B-Instruct": ModelConfig(
        128256, 80, 8192, 64, 8, 128, 28672, 5e5, tie_embeddings=False, **_LLAMA3_1
    ),
}
"""The models of the presets. Source: the config.json of each; token ids are left out."""
KNOWN["Qwen/Qwen2.5-3B"] = KNOWN["Qwen/Qwen2.5-3B-Instruct"]


def read_architecture(name: str) -> ModelConfig:
    """The sizes of a model, without its weights.

    It is a name in `KNOWN`, a folder with config.json, or a hub id, of which config.json alone is
    downloaded.

    Raises:
      InputError: nothing by that name here or on the hub, or an architecture not supported.
    """
    if name in KNOWN:
        return KNOWN[name]
    path = Path(name).expanduser() / "config.json"
    if name.endswith(".gguf"):
        raise InputError(f"{name}: sizes are read from config.json; give the folder or the hub id")
    if not path.is_file():
        from huggingface_hub import hf_hub_download

        try:
            path = Path(hf_hub_download(name, "config.json"))
        except Exception as error:  # HTTP, file system and validation errors share no base class
            raise InputError(
                f"{name}: no config.json here, and the hub gave none ({type(error).__name__}); "
                "give a folder that holds one"
            ) from error
    fields = read_fields(path, LANGUAGE_MODELS)
    if fields.get("eos_token_id") is None:
        fields["eos_token_id"] = 0  # in the place of the tokenizer's, which is not read
    return make_config(path, fields, tokenizer_eos=None)
