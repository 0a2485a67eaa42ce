"""Sizes of models whose weights are not at hand."""

from pathlib import Path

from jaxalign.host.errors import InputError
from jaxalign.models.config import ModelConfig, RopeScaling
from jaxalign.models.files.hf_config import LANGUAGE_MODELS, make_config, read_fields

KNOWN = {
    "smollm2": ModelConfig(
        vocab_size=49152,
        num_layers=30,
        model_dim=576,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        mlp_dim=1536,
        rope_theta=1e5,
    ),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": ModelConfig(
        vocab_size=49152,
        num_layers=24,
        model_dim=2048,
        num_heads=32,
        num_kv_heads=32,
        head_dim=64,
        mlp_dim=8192,
        rope_theta=130_000.0,
    ),
    "Qwen/Qwen2.5-3B-Instruct": ModelConfig(
        vocab_size=151936,
        num_layers=36,
        model_dim=2048,
        num_heads=16,
        num_kv_heads=2,
        head_dim=128,
        mlp_dim=11008,
        rope_theta=1e6,
        qkv_bias=True,
        norm_eps=1e-6,
        max_positions=32768,
    ),
    "Qwen/Qwen2.5-7B-Instruct": ModelConfig(
        vocab_size=152064,
        num_layers=28,
        model_dim=3584,
        num_heads=28,
        num_kv_heads=4,
        head_dim=128,
        mlp_dim=18944,
        rope_theta=1e6,
        qkv_bias=True,
        norm_eps=1e-6,
        tie_embeddings=False,
        max_positions=32768,
    ),
    "meta-llama/Llama-3.2-3B-Instruct": ModelConfig(
        vocab_size=128256,
        num_layers=28,
        model_dim=3072,
        num_heads=24,
        num_kv_heads=8,
        head_dim=128,
        mlp_dim=8192,
        rope_theta=5e5,
        rope_scaling=RopeScaling(32.0, 1.0, 4.0, 8192),
        max_positions=131072,
    ),
    "Qwen/Qwen3-8B": ModelConfig(
        vocab_size=151936,
        num_layers=36,
        model_dim=4096,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        mlp_dim=12288,
        rope_theta=1e6,
        qk_norm=True,
        norm_eps=1e-6,
        tie_embeddings=False,
        max_positions=40960,
    ),
    "meta-llama/Meta-Llama-3-8B-Instruct": ModelConfig(
        vocab_size=128256,
        num_layers=32,
        model_dim=4096,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        mlp_dim=14336,
        rope_theta=5e5,
        tie_embeddings=False,
        max_positions=8192,
    ),
}
"""The models of the presets. Source: the config.json of each; token ids are left out."""
KNOWN["Qwen/Qwen2.5-3B"] = KNOWN["Qwen/Qwen2.5-3B-Instruct"]


def read_architecture(name: str) -> ModelConfig:
    """The sizes of a model, without its weights.

    Args:
      name: a name in `KNOWN`, a folder with config.json, or a hub id, of which config.json alone is
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
    return make_config(path, read_fields(path, LANGUAGE_MODELS), tokenizer_eos=0)
