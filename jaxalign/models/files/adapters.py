"""Adapters in and out of PEFT's folders: adapter_config.json and adapter_model.safetensors.

PEFT opens what is written here, and what PEFT wrote is read where it is plain LoRA on the matrices
that `jaxalign.models.lora` has. base.json beside them says by which weights the adapter was
trained: on others it means nothing. PEFT's own folders have none, and are taken at their word.
"""

import dataclasses
import math
import os
import shutil
from pathlib import Path
from typing import Any, get_args

import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxalign.host.errors import InputError
from jaxalign.host.json_files import read_json, write_json
from jaxalign.host.processes import fetch, is_first, wait_for_all
from jaxalign.models.config import ModelConfig
from jaxalign.models.files.hf_config import read_model_json
from jaxalign.models.lora import TARGETS, Lora, Target, adapter_shapes
from jaxalign.models.parameters import HUGGING_FACE
from jaxalign.records import Params

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
BASE = "base.json"

_PARTS = {"a": "lora_A.weight", "b": "lora_B.weight"}
_WITHOUT = {
    "bias": "none",
    "use_dora": False,
    "fan_in_fan_out": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layers_to_transform": None,
    "lora_bias": False,
    "trainable_token_indices": None,
    "target_parameters": None,
}
"""What of PEFT's LoRA there is not here, and its value where an adapter does without."""


def _tensor_name(path: str, layer: int) -> str:
    """What PEFT calls one layer's A or B of a path such as `layers/mlp/up/a`."""
    weight, _, part = path.rpartition("/")
    module = HUGGING_FACE[weight].format(layer).removesuffix(".weight")
    return f"base_model.model.{module}.{_PARTS[part]}"


def _modules(target: Target) -> list[str]:
    """PEFT's names of a target's matrices, such as `q_proj`."""
    paths = (f"layers/{target}/{name}" for name in TARGETS[target])
    return [HUGGING_FACE[path].split(".")[-2] for path in paths]


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
        known = {ADAPTER_CONFIG, ADAPTER_WEIGHTS, BASE}
        foreign = {x.name for x in folder.iterdir()} - known if folder.is_dir() else set()
        if foreign:
            raise InputError(
                f"{folder}: no adapter (it holds '{min(foreign)}'); choose another folder"
            )
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        try:
            partial.mkdir(parents=True)
            write_json(partial / ADAPTER_CONFIG, fields)
            write_json(partial / BASE, {"weights": base_weights})
            save_file(tensors, partial / ADAPTER_WEIGHTS, metadata={"format": "pt"})
            shutil.copymode(partial / ADAPTER_CONFIG, partial / ADAPTER_WEIGHTS)
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        except OSError as error:
            raise InputError(f"{folder}: cannot be written ({error})") from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
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

    def check_base(self, folder: str | Path, name: str, weights: str) -> None:
        """Refuses a base that the adapter was not trained on.

        Raises:
          InputError: names both.
        """
        if self.base_weights and self.base_weights != weights:
            raise InputError(
                f"{folder}: an adapter of {self.base} (weights {self.base_weights}), and {name} "
                f"has other weights ({weights}): give the model that it was trained on"
            )


def load_adapter(folder: str | Path, config: ModelConfig) -> Adapter:
    """Reads an adapter of a base with this architecture.

    Raises:
      InputError: a file is missing or damaged, it is no plain LoRA, or of another architecture.
    """
    from safetensors import SafetensorError, safe_open

    folder = Path(folder)
    fields = read_model_json(folder / ADAPTER_CONFIG)
    lora = _read_lora(folder / ADAPTER_CONFIG, fields)
    path, shapes = folder / ADAPTER_WEIGHTS, adapter_shapes(config, lora)
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; adapters are read from safetensors only") from None
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path}: cut off or not a safetensors file ({error!r}); fetch it again"
        ) from None
    leaves = {}
    for name, (layers, *shape) in shapes.items():
        found = []
        for layer in range(layers):
            wanted = _tensor_name(name, layer)
            if wanted not in tensors:
                raise InputError(f"{path}: tensor {wanted!r} is missing; fetch the adapter again")
            tensor = tensors.pop(wanted).astype(np.float32)
            if list(tensor.shape) != shape:
                raise InputError(
                    f"{path}: tensor {wanted!r} has shape {list(tensor.shape)} where rank and "
                    f"model ask for {shape}: it is of another model"
                )
            found.append(tensor)
        leaves[name] = jnp.asarray(np.stack(found))
    if tensors:
        raise InputError(
            f"{path}: tensor {min(tensors)!r} has no place: adapters of attention and MLP matrices "
            "are read, of all layers"
        )
    base = folder / BASE
    return Adapter(
        lora,
        {"adapter": traverse_util.unflatten_dict(leaves, sep="/")},
        str(fields.get("base_model_name_or_path") or "a model that it does not name"),
        str(read_json(base).get("weights", "")) if base.exists() else "",
    )


def _read_lora(path: Path, fields: dict[str, Any]) -> Lora:
    """What adapter_config.json says, as far as there is such a thing here."""
    if fields.get("peft_type") != "LORA":
        raise InputError(f"{path}: peft_type is {fields.get('peft_type')!r}; LORA is read")
    for name, without in _WITHOUT.items():
        if (value := fields.get(name, without)) not in (without, None, [], {}, False):
            raise InputError(f"{path}: {name} is {value!r}, which is not supported: plain LoRA is")
    modules = fields.get("target_modules")
    if not isinstance(modules, list) or not all(isinstance(x, str) for x in modules):
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
    if type(rank) is not int or rank < 1:
        raise InputError(f"{path}: r is {rank!r}; a rank is a whole number above 0")
    if type(alpha) not in (int, float) or not 0 < alpha < math.inf:
        raise InputError(f"{path}: lora_alpha is {alpha!r}; it is a number above 0")
    return Lora(rank, float(alpha), targets, bool(fields.get("use_rslora", False)))
