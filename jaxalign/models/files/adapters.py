"""Adapters in and out of PEFT's folders: adapter_config.json and adapter_model.safetensors.

PEFT opens what is written here, and what PEFT wrote is read where it is plain LoRA on the matrices
that `jaxalign.models.lora` has. base.json beside them says by which weights the adapter was
trained: on others it means nothing. PEFT's own folders have none, and are taken at their word.
"""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxalign.host.errors import InputError
from jaxalign.host.json_files import write_json
from jaxalign.host.processes import fetch, is_first, wait_for_all
from jaxalign.models.config import ModelConfig
from jaxalign.models.files.hf_config import read_model_json
from jaxalign.models.files.huggingface import FLOATS, replacing
from jaxalign.models.files.weights import weights_digest
from jaxalign.models.lora import TARGETS, Lora, Target, adapter_shapes, on_base
from jaxalign.models.parameters import HUGGING_FACE
from jaxalign.models.transformer import Transformer
from jaxalign.records import Params

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
BASE = "base.json"

_MOST_RANK, _MOST_ALPHA = 65_536, 1e6

_PARTS = {"a": "lora_A.weight", "b": "lora_B.weight"}
_READ = ("peft_type", "base_model_name_or_path", "r", "lora_alpha", "use_rslora", "target_modules")

_MEANINGLESS = (
    *("task_type", "inference_mode", "auto_mapping", "revision", "peft_version", "lora_dropout"),
    *("megatron_core", "qalora_group_size", "ensure_weight_tying"),
)
"""Of PEFT's fields those that change nothing of what plain LoRA computes, whatever they say."""

_STARTS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base as it is."""


def _tensor_name(path: str, layer: int) -> str:
    """What PEFT calls one layer's A or B of a path such as `layers/mlp/up/a`."""
    weight, _, part = path.rpartition("/")
    module = HUGGING_FACE[weight].format(layer).removesuffix(".weight")
    return f"base_model.model.{module}.{_PARTS[part]}"


def _modules(target: Target) -> list[str]:
    """PEFT's names of a target's matrices, such as `q_proj`."""
    paths = (f"layers/{target}/{name}" for name in TARGETS[target])
    return [HUGGING_FACE[path].split(".")[-2] for path in paths]


def check_adapter_replaceable(folder: Path) -> None:
    """Refuses to replace anything but an adapter's folder, or an empty one."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: exists and is not a folder; choose another path")
    names = {entry.name for entry in folder.iterdir()} if folder.exists() else set()
    if foreign := names - {ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE}:
        raise InputError(
            f"{folder}: holds '{min(foreign)}', which is not replaced; choose another folder"
        )


def save_adapter(
    folder: str | Path,
    config: ModelConfig,
    lora: Lora,
    adapter: Params,
    *,
    base: str,
    base_weights: str,
) -> None:
    """Writes an adapter as a folder that PEFT opens; one that is there is replaced.

    Several processes must all call it, and the first one writes.

    Args:
      folder: to be written.
      config: the base's architecture.
      lora: what the adapter was made with.
      adapter: `{"adapter": …}`.
      base: the base's name, as for `load_pretrained`.
      base_weights: `weights_digest` of the base.

    Raises:
      InputError: the folder cannot be written, or holds something else.
    """
    from safetensors.numpy import save_file

    folder = Path(folder)
    check_adapter_replaceable(folder)
    leaves = traverse_util.flatten_dict(adapter["adapter"], sep="/")
    tensors = {}
    for path, leaf in leaves.items():
        for layer, tensor in enumerate(np.asarray(fetch(leaf), np.float32)):
            tensors[_tensor_name(path, layer)] = np.ascontiguousarray(tensor)
    if is_first():
        fields = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": base,
            "r": lora.rank,
            "lora_alpha": lora.alpha,
            "use_rslora": lora.rank_stabilised,
            "target_modules": [name for target in lora.targets for name in _modules(target)],
            "lora_dropout": 0.0,
            "bias": "none",
            "inference_mode": True,
        }
        with replacing(folder) as partial:
            write_json(partial / ADAPTER_CONFIG, fields)
            write_json(partial / BASE, {"weights": base_weights})
            save_file(tensors, partial / ADAPTER_WEIGHTS, metadata={"format": "pt"})
            shutil.copymode(partial / ADAPTER_CONFIG, partial / ADAPTER_WEIGHTS)
    wait_for_all()


@dataclasses.dataclass(frozen=True)
class Adapter:
    """What an adapter's folder holds.

    Attributes:
      lora: what to give the model, `model.clone(lora=…)`.
      params: `{"adapter": …}`, float32.
      base: the name of its base.
      base_weights: `weights_digest` of it; "" in a folder of PEFT's own.
    """

    lora: Lora
    params: Params
    base: str
    base_weights: str

    def check_base(self, folder: str | Path, name: str | Path, params: Params) -> None:
        """Refuses a base, by its name and its parameters as they were loaded, that is another.

        Raises:
          InputError: names both.
        """
        weights = weights_digest(params) if self.base_weights else ""
        if self.base_weights != weights:
            raise InputError(
                f"{folder}: an adapter of {self.base} (weights {self.base_weights}), and {name} "
                f"has other weights ({weights}): give the model that it was trained on"
            )


def put_on(
    folder: str | Path, model: Transformer, params: Params, *, name: str | Path
) -> tuple[Transformer, Params]:
    """A model and its parameters, as loaded by that name, with the adapter in a folder on them.

    Raises:
      InputError: as `load_adapter`, or the adapter was trained on another base.
    """
    found = load_adapter(folder, model.config)
    found.check_base(folder, name, params)
    return model.clone(lora=found.lora), on_base(found.params, params)


def load_adapter(folder: str | Path, config: ModelConfig) -> Adapter:
    """Reads an adapter of a base with this architecture.

    Raises:
      InputError: a file is missing or damaged, it is no plain LoRA, or of another architecture.
    """
    from safetensors import SafetensorError, safe_open

    folder = Path(folder)
    if not (folder / ADAPTER_CONFIG).is_file():
        inside = folder / "adapter" / ADAPTER_CONFIG
        there = inside.is_file()
        remedy = f"it is {inside.parent}" if there else f"give one with it and {ADAPTER_WEIGHTS}"
        raise InputError(f"{folder}: no adapter's folder, it has no {ADAPTER_CONFIG}: {remedy}")
    fields = read_model_json(folder / ADAPTER_CONFIG)
    lora = _read_lora(folder / ADAPTER_CONFIG, fields)
    path, shapes = folder / ADAPTER_WEIGHTS, adapter_shapes(config, lora)
    try:
        with safe_open(path, framework="numpy") as file:
            leaves = _read_tensors(path, file, shapes)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; adapters are read from safetensors only") from None
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path}: cut off or not a safetensors file ({error!r}); fetch it again"
        ) from None
    return Adapter(
        lora,
        {"adapter": traverse_util.unflatten_dict(leaves, sep="/")},
        str(fields.get("base_model_name_or_path") or "a model that it does not name"),
        _read_base_weights(folder / BASE),
    )


def _read_tensors(
    path: Path, file: Any, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, jax.Array]:
    """A and B of all layers; names, shapes and dtypes are looked at before anything is read."""
    due = {
        _tensor_name(name, layer): tuple(shape)
        for name, (layers, *shape) in shapes.items()
        for layer in range(layers)
    }
    stored = set(file.keys())
    if missing := due.keys() - stored:
        raise InputError(
            f"{path}: tensor {min(missing)!r} is missing: adapters of all layers are read, of "
            "attention, the MLP, or both"
        )
    if more := stored - due.keys():
        raise InputError(
            f"{path}: tensor {min(more)!r} has no place: adapters of all layers are read, of "
            "attention, the MLP, or both"
        )
    for name, shape in due.items():
        view = file.get_slice(name)
        if (found := tuple(view.get_shape())) != shape:
            raise InputError(
                f"{path}: tensor {name!r} has shape {list(found)} where rank and model ask for "
                f"{list(shape)}: it is of another model"
            )
        if view.get_dtype() not in FLOATS:
            raise InputError(
                f"{path}: tensor {name!r} is stored as {view.get_dtype()}; supported: "
                f"{', '.join(FLOATS)}"
            )
    leaves = {}
    for name, (layers, *_) in shapes.items():
        tensors = [file.get_tensor(_tensor_name(name, layer)) for layer in range(layers)]
        leaf = np.stack(tensors).astype(np.float32)
        if not np.isfinite(leaf).all():
            raise InputError(f"{path}: {name} has numbers that are not finite; fetch it again")
        leaves[name] = jnp.asarray(leaf)
    return leaves


def _read_base_weights(path: Path) -> str:
    """The fingerprint of the base; "" where there is no file, as in PEFT's own folders."""
    if not path.exists():
        return ""
    weights = read_model_json(path).get("weights")
    if not isinstance(weights, str) or not weights:
        raise InputError(
            f"{path}: weights is {weights!r}, no fingerprint of a base; save the adapter again"
        )
    return weights


def _read_lora(path: Path, fields: dict[str, Any]) -> Lora:
    """What adapter_config.json says, as far as there is such a thing here."""
    if fields.get("peft_type") != "LORA":
        raise InputError(f"{path}: peft_type is {fields.get('peft_type')!r}; LORA is read")
    for name, value in fields.items():
        start = name == "init_lora_weights" and value in _STARTS
        none = value is None or value is False or value in ("none", [], {})
        if name not in (*_READ, *_MEANINGLESS) and not start and not none:
            raise InputError(f"{path}: {name} is {value!r}, which is not supported: plain LoRA is")
    modules = fields.get("target_modules")
    if not modules or not isinstance(modules, list) or not all(isinstance(x, str) for x in modules):
        raise InputError(
            f"{path}: target_modules is {modules!r}: a list of names such as q_proj is read"
        )
    names = {module.rpartition(".")[2] for module in modules}
    targets = tuple(one for one in get_args(Target) if names & set(_modules(one)))
    if names != {module for one in targets for module in _modules(one)}:
        every = ", ".join(module for one in get_args(Target) for module in _modules(one))
        raise InputError(
            f"{path}: target_modules is {sorted(names)}: all of attention's, all of the MLP's, or "
            f"both are read ({every})"
        )
    rank, alpha = fields.get("r"), fields.get("lora_alpha", 8)  # PEFT's own default
    if type(rank) is not int or not 0 < rank <= _MOST_RANK:
        raise InputError(f"{path}: r is {rank!r}; a rank is a whole number from 1 to {_MOST_RANK}")
    if type(alpha) not in (int, float) or not 0 < alpha <= _MOST_ALPHA:
        raise InputError(f"{path}: lora_alpha is {alpha!r}; it is a number above 0, at most 1e6")
    stabilised = fields.get("use_rslora", False)
    if type(stabilised) is not bool:
        raise InputError(f"{path}: use_rslora is {stabilised!r}; it is true or false")
    return Lora(rank, float(alpha), targets, stabilised)
