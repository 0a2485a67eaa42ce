"""config.json of Hugging Face folders, in and out: which models there are, and their sizes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.host.errors import InputError
from jaxalign.models.config import ModelConfig, RopeScaling

FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
LANGUAGE_MODELS = tuple(f"{family}ForCausalLM" for family in FAMILIES)
CLASSIFIERS = tuple(f"{family}ForSequenceClassification" for family in FAMILIES)

# Fields that change the computation, with the one value (also the default) that is supported.
_FIXED_FIELDS = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
}


def read_model_json(path: Path) -> dict[str, Any]:
    """The object in a file of a model folder.

    Raises:
      InputError: there is no such file, or it holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; give a folder with config.json, *.safetensors and "
            "tokenizer.json"
        ) from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: expected a JSON object")
    return value


def write_model_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes an object as a file that people read too."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_fields(path: Path, supported_architectures: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a config.json whose model the decoder can compute.

    Args:
      path: of the file.
      supported_architectures: `LANGUAGE_MODELS` or `CLASSIFIERS`.

    Raises:
      InputError: the file is missing or damaged, or the architecture or an option of it is not
        supported.
    """
    fields = read_model_json(path)
    architectures = fields.get("architectures") or [None]
    if architectures[0] not in supported_architectures:
        raise InputError(
            f"{path}: architecture {architectures[0]!r} is not supported here; supported: "
            f"{', '.join(supported_architectures)}"
        )
    for name, supported in _FIXED_FIELDS.items():
        if (value := fields.get(name, supported)) != supported:
            raise InputError(
                f"{path}: {name}={value!r} comes with a later release; supported: {supported!r}"
            )
    window = fields.get("sliding_window")
    if architectures[0].startswith("Mistral") and window is not None:
        raise InputError(
            f"{path}: sliding_window={window!r} comes with a later release; supported: null"
        )
    # Qwen's files name a window that they mostly do not use.
    if fields.get("use_sliding_window"):
        raise InputError(
            f"{path}: use_sliding_window=True comes with a later release; supported: False"
        )
    return fields


def _rope(path: Path, fields: dict[str, Any]) -> tuple[Any, RopeScaling | None]:
    """The rotary base and its scaling.

    They are `rope_theta` and `rope_scaling` in files of transformers 4, and together
    `rope_parameters` in those of 5.
    """
    theta, scaling = fields.get("rope_theta", 10_000.0), None
    for name in ("rope_scaling", "rope_parameters"):
        rope = fields.get(name) or {}
        if not isinstance(rope, dict):
            raise InputError(f"{path}: {name} is {rope!r} where a JSON object or null is due")
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", "llama3") or rope.get("partial_rotary_factor", 1.0) != 1.0:
            raise InputError(
                f"{path}: {name}={rope} comes with a later release; supported: rope_type 'default' "
                "and 'llama3'"
            )
        theta = rope.get("rope_theta", theta)
        if kind == "llama3":
            scaling = _llama3_scaling(path, name, rope)
    return theta, scaling


def _llama3_scaling(path: Path, name: str, rope: dict[str, Any]) -> RopeScaling:
    values: dict[str, Any] = {}
    for field in (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    ):
        value: Any = rope.get(field)
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise InputError(f"{path}: {name}.{field} is {value!r} where a positive number is due")
        values[field] = value
    original = int(values.pop("original_max_position_embeddings"))
    try:
        return RopeScaling(**values, original_positions=original)
    except ValueError as error:
        raise InputError(f"{path}: {name}: {error}") from None


def make_config(path: Path, fields: dict[str, Any], tokenizer_eos: int | None) -> ModelConfig:
    """The architecture that the fields of a config.json describe.

    Args:
      path: of the file, for messages.
      fields: of `read_fields`.
      tokenizer_eos: the tokenizer's end token, which is taken where the file names several or none.

    Raises:
      InputError: a field is missing or has a value that cannot be.
    """

    def positive(name: str, kinds: tuple[type, ...], value: Any) -> Any:
        if type(value) not in kinds or not 0 < value < float("inf"):
            raise InputError(f"{path}: {name} is {value!r} where a positive number is due")
        return value

    def size(name: str, default: int | None = None) -> int:
        value = fields.get(name)
        return positive(name, (int,), default if value is None else value)

    def token_id(name: str) -> int | None:
        value = fields.get(name)
        if value is not None and type(value) is not int:
            raise InputError(f"{path}: {name} is {value!r} where a token id or null is due")
        return value

    # Several end tokens: the tokenizer's own one ends a chat turn, so it is the one to keep.
    ends = fields.get("eos_token_id")
    if isinstance(ends, list) and ends:
        fields = fields | {"eos_token_id": tokenizer_eos if tokenizer_eos in ends else ends[0]}
    eos_token_id = token_id("eos_token_id")
    if eos_token_id is None:
        eos_token_id = tokenizer_eos
    if eos_token_id is None:
        raise InputError(f"{path}: eos_token_id is missing here and in the tokenizer; add it")

    model_dim, num_heads = size("hidden_size"), size("num_attention_heads")
    theta, scaling = _rope(path, fields)
    rope_theta = positive("rope_theta", (int, float), theta)
    architecture = fields["architectures"][0]
    qwen2, qwen3 = (architecture.startswith(f"Qwen{n}For") for n in (2, 3))
    # transformers leaves the names of two labels out, which is its default.
    labels = len(fields.get("id2label") or "01") if architecture in CLASSIFIERS else 0
    norm_eps = positive("rms_norm_eps", (int, float), fields.get("rms_norm_eps", 1e-6))
    try:
        return ModelConfig(
            vocab_size=size("vocab_size"),
            num_layers=size("num_hidden_layers"),
            model_dim=model_dim,
            num_heads=num_heads,
            num_kv_heads=size("num_key_value_heads", num_heads),
            head_dim=size("head_dim", 128 if qwen3 else model_dim // num_heads),
            mlp_dim=size("intermediate_size"),
            rope_theta=float(rope_theta),
            rope_scaling=scaling,
            qkv_bias=qwen2,
            qk_norm=qwen3,
            norm_eps=float(norm_eps),
            tie_embeddings=bool(fields.get("tie_word_embeddings", False)),
            num_labels=labels,
            max_positions=size("max_position_embeddings", 2048),
            bos_token_id=token_id("bos_token_id"),
            eos_token_id=eos_token_id,
            pad_token_id=token_id("pad_token_id"),
        )
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def config_json(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The fields that transformers 4 and 5 and vLLM read the architecture from.

    The family is `Qwen3` with `qk_norm`, `Qwen2` with `qkv_bias`, else `Llama`; a Mistral without a
    window is the same as a Llama.
    """
    family = "Qwen3" if config.qk_norm else "Qwen2" if config.qkv_bias else "Llama"
    rope: dict[str, Any] = {"rope_type": "default"}
    if (scaling := config.rope_scaling) is not None:
        rope = {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_positions,
        }
    names = {str(label): f"LABEL_{label}" for label in range(config.num_labels)}
    labels: dict[str, Any] = {}
    if names:
        numbers = {name: int(label) for label, name in names.items()}
        labels = {"id2label": names, "label2id": numbers}
    return labels | {
        "architectures": [f"{family}For{'SequenceClassification' if names else 'CausalLM'}"],
        "model_type": family.lower(),
        "vocab_size": config.vocab_size,
        "hidden_size": config.model_dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        # The rotary base twice: where transformers 4 and vLLM look, and where transformers 5 does.
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling is None else rope,
        "rope_parameters": rope | {"rope_theta": config.rope_theta},
        "attention_bias": False,
        "attention_dropout": 0.0,
        "mlp_bias": False,
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "pad_token_id": config.pad_token_id,
        "torch_dtype": dtype,
        "use_cache": True,
    }
