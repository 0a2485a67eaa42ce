"""config.json of Hugging Face folders, in and out: which models there are, and their sizes."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxalign.host.errors import InputError
from jaxalign.models.config import ModelConfig
from jaxalign.models.rotary import (
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
    YarnScaling,
    yarn_attention_factor,
)

FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
LANGUAGE_MODELS = tuple(f"{family}ForCausalLM" for family in FAMILIES)
CLASSIFIERS = tuple(f"{family}ForSequenceClassification" for family in FAMILIES)

# Fields that change the computation, with the one value (also the default) that is supported.
_FIXED_FIELDS = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
    "quantization_config": None,
}

# Field of `ModelConfig`: its name here, and in GGUF's metadata behind the architecture's.
SIZES = {
    "vocab_size": ("vocab_size", "vocab_size"),
    "num_layers": ("num_hidden_layers", "block_count"),
    "model_dim": ("hidden_size", "embedding_length"),
    "num_heads": ("num_attention_heads", "attention.head_count"),
    "num_kv_heads": ("num_key_value_heads", "attention.head_count_kv"),
    "head_dim": ("head_dim", "attention.key_length"),
    "mlp_dim": ("intermediate_size", "feed_forward_length"),
    "rope_theta": ("rope_theta", "rope.freq_base"),
    "norm_eps": ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    "max_positions": ("max_position_embeddings", "context_length"),
}
REAL_SIZES = ("rope_theta", "norm_eps")

# `rope_type` of config.json; fields have the same names there, but for one.
_SCALINGS: dict[Any, Any] = {"linear": LinearScaling, "llama3": Llama3Scaling, "yarn": YarnScaling}
_ORIGINAL = "original_max_position_embeddings"


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

    It must be one of the architectures, `LANGUAGE_MODELS` or `CLASSIFIERS`.

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
        value = fields.get(name, supported)
        if value != supported and (value or supported):  # null says no as well as false does
            raise InputError(
                f"{path}: {name}={value!r:.60} comes with a later release; supported: "
                f"{'null' if supported is None else repr(supported)}"
            )
    return fields


def build_config(
    path: Path, number: Callable[[str, Any], Any], defaults: dict[str, Any], **others: Any
) -> ModelConfig:
    """The architecture whose `SIZES` a file holds.

    `number` reads one, by its field and default, None for none; `defaults` are of fields that the
    kind of file leaves out, beside the usual ones; `others` are fields of `ModelConfig` that are no
    sizes.

    Raises:
      InputError: sizes that do not fit together.
    """
    width, heads = number("model_dim", None), number("num_heads", None)
    usual = {"num_kv_heads": heads, "head_dim": width // heads, "rope_theta": 10_000.0}
    defaults = usual | defaults
    sizes = {field: number(field, defaults.get(field)) for field in SIZES}
    try:
        return ModelConfig(**sizes, **others)
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def _positive(path: Path, name: str, value: Any, kinds: tuple[type, ...] = (int, float)) -> Any:
    if type(value) not in kinds or not 0 < value < float("inf"):
        raise InputError(f"{path}: {name} is {value!r} where a positive number is due")
    return value


def _rope(path: Path, fields: dict[str, Any], max_positions: int) -> tuple[Any, RopeScaling | None]:
    """The rotary base and its scaling.

    They are `rope_theta` and `rope_scaling` in files of transformers 4, and together
    `rope_parameters` in those of 5.
    """
    theta, scaling = fields.get("rope_theta"), None
    for name in ("rope_parameters", "rope_scaling"):
        rope = fields.get(name) or {}
        if not isinstance(rope, dict):
            raise InputError(f"{path}: {name} is {rope!r} where a JSON object or null is due")
        kind = rope.get("rope_type", rope.get("type", "default"))
        by_layer = any(isinstance(value, dict) for value in rope.values())
        partial = rope.get("partial_rotary_factor", 1.0) != 1.0
        if kind not in ("default", *_SCALINGS) or by_layer or partial:
            raise InputError(
                f"{path}: {name}={rope} comes with a later release; supported: rope_type "
                f"{', '.join(map(repr, ('default', *_SCALINGS)))}"
            )
        if rope:  # the second one wins where both are there, as in transformers
            theta = rope.get("rope_theta", fields.get("rope_theta"))
            scaling = None if kind == "default" else _scaling(path, name, rope, max_positions)
    return theta, scaling


def _scaling(path: Path, name: str, rope: dict[str, Any], max_positions: int) -> RopeScaling:
    """What `rope` describes; a field that is absent or null has the default of transformers."""

    def number(field: str, default: Any = None) -> Any:
        value = rope.get(field)
        return _positive(path, f"{name}.{field}", default if value is None else value)

    kind = rope.get("rope_type", rope.get("type"))
    values = {"factor": number("factor")}
    if kind != "linear":
        given = rope.get(_ORIGINAL)
        given = max_positions if given is None else given
        values["original_positions"] = _positive(path, f"{name}.{_ORIGINAL}", given, (int,))
    if kind == "llama3":
        values |= {field: number(field) for field in ("low_freq_factor", "high_freq_factor")}
    if kind == "yarn":
        both = rope.get("mscale") and rope.get("mscale_all_dim")
        scales = (number("mscale"), number("mscale_all_dim")) if both else ()
        usual = yarn_attention_factor(values["factor"], *scales)
        values["attention_factor"] = number("attention_factor", usual)
        values |= {"beta_fast": number("beta_fast", 32.0), "beta_slow": number("beta_slow", 1.0)}
        values["truncate"] = bool(rope.get("truncate", True))
    try:
        scaling: RopeScaling = _SCALINGS[kind](**values)
    except ValueError as error:
        raise InputError(f"{path}: {name}: {error}") from None
    return scaling


def _check_window(path: Path, fields: dict[str, Any], config: ModelConfig) -> None:
    """Refuses a sliding window that some layer would use, as transformers reads the fields."""
    family = fields["architectures"][0]
    slides = family.startswith("Mistral")
    if family.startswith("Qwen") and fields.get("use_sliding_window"):
        kinds, full = fields.get("layer_types"), fields.get("max_window_layers", 28)
        slides = not isinstance(full, int) or full < config.num_layers
        slides = "sliding_attention" in str(kinds) if kinds else slides
    window = fields.get("sliding_window", 4096) if slides else None
    if window is None or _positive(path, "sliding_window", window) >= config.max_positions:
        return
    raise InputError(
        f"{path}: sliding_window={window} is shorter than max_position_embeddings="
        f"{config.max_positions}, which comes with a later release; lower the latter to {window} "
        "if your texts are that short"
    )


def make_config(path: Path, fields: dict[str, Any], tokenizer_eos: int | None) -> ModelConfig:
    """The architecture that the fields of a config.json describe, as of `read_fields`.

    `tokenizer_eos` is the tokenizer's end token, which is the model's where the file names it among
    several, or none, and stops a text in any case, as those of generation_config.json do.

    Raises:
      InputError: a field is missing or has a value that cannot be.
    """

    def number(field: str, default: Any) -> int | float:
        name, _ = SIZES[field]
        value = default if fields.get(name) is None else fields[name]
        if field in REAL_SIZES:
            return float(_positive(path, name, value))
        return _positive(path, name, value, (int,))

    def token_id(name: str) -> int | None:
        value = fields.get(name)
        if value is not None and type(value) is not int:
            raise InputError(f"{path}: {name} is {value!r} where a token id or null is due")
        return value

    # Several end tokens: the tokenizer's own one ends a chat turn, so it comes first.
    vocab_size = int(number("vocab_size", None))
    ends = _end_tokens(path, fields, vocab_size)
    own = [] if tokenizer_eos is None else [tokenizer_eos]
    ends = [*own, *ends] if tokenizer_eos in ends else [*ends, *own]
    generation = path.with_name("generation_config.json")
    if generation.is_file():
        ends += _end_tokens(generation, read_model_json(generation), vocab_size)
    if not ends:
        raise InputError(f"{path}: eos_token_id is missing here and in the tokenizer; add it")

    theta, scaling = _rope(path, fields, int(number("max_positions", 2048)))
    fields = fields | {"rope_theta": theta}
    architecture = fields["architectures"][0]
    qwen2, qwen3 = (architecture.startswith(f"Qwen{n}For") for n in (2, 3))
    defaults = {"norm_eps": 1e-6, "max_positions": 2048} | ({"head_dim": 128} if qwen3 else {})
    config = build_config(
        path,
        number,
        defaults,
        rope_scaling=scaling,
        qkv_bias=qwen2,
        qk_norm=qwen3,
        tie_embeddings=bool(fields.get("tie_word_embeddings", False)),
        # transformers leaves the names of two labels out, which is its default.
        num_labels=len(fields.get("id2label") or "01") if architecture in CLASSIFIERS else 0,
        bos_token_id=token_id("bos_token_id"),
        eos_token_id=ends[0],
        stop_token_ids=tuple(sorted({*ends} - {ends[0]})),
        pad_token_id=token_id("pad_token_id"),
    )
    _check_window(path, fields, config)
    return config


def _end_tokens(path: Path, fields: Mapping[str, Any], vocab_size: int) -> list[int]:
    """The `eos_token_id` of a file, which may be one, several or none."""
    given = fields.get("eos_token_id")
    ends = [] if given is None else given if isinstance(given, list) else [given]
    if any(type(end) is not int or end not in range(vocab_size) for end in ends):
        raise InputError(
            f"{path}: eos_token_id is {given!r} where ids below {vocab_size} or null are due"
        )
    return ends


def config_json(config: ModelConfig, dtype: str) -> dict[str, Any]:
    """The fields that transformers 4 and 5 and vLLM read the architecture from.

    The family is `Qwen3` with `qk_norm`, `Qwen2` with `qkv_bias`, else `Llama`; a Mistral without a
    window is the same as a Llama.
    """
    family = "Qwen3" if config.qk_norm else "Qwen2" if config.qkv_bias else "Llama"
    rope: dict[str, Any] = {"rope_type": "default"}
    if (scaling := config.rope_scaling) is not None:
        rope = dataclasses.asdict(scaling)
        if "original_positions" in rope:
            rope[_ORIGINAL] = rope.pop("original_positions")
        rope["rope_type"] = next(kind for kind, x in _SCALINGS.items() if type(scaling) is x)
    labels = [f"LABEL_{number}" for number in range(config.num_labels)]
    fields: dict[str, Any] = {name: getattr(config, field) for field, (name, _) in SIZES.items()}
    if labels:
        fields["id2label"] = dict(enumerate(labels))
        fields["label2id"] = {label: number for number, label in enumerate(labels)}
    # The rotary base twice: where transformers 4 and vLLM look, and where transformers 5 does.
    return fields | {
        "architectures": [f"{family}For{'SequenceClassification' if labels else 'CausalLM'}"],
        "model_type": family.lower(),
        "hidden_act": "silu",
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
