"""GGUF files: the header, read with every length checked, and tensors, dequantised.

The header is parsed here so that a damaged file ends in one clear line; the `gguf` package knows
the quantised formats. (Its own reader takes seconds on a vocabulary of 49,152 tokens and trusts the
lengths it reads.)
"""

import dataclasses
import math
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.host.errors import InputError

# Value types of the metadata (GGUF specification): number -> `struct` code; then string and array.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
_NUMBERS |= {12: "d"}
_STRING, _ARRAY = 8, 9


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Where a tensor lies.

    Attributes:
      shape: in NumPy's order.
      kind: the number of its storage type.
      start: its first byte in the file.
      path: of the file.
      data: all bytes of the file, mapped.
    """

    shape: tuple[int, ...]
    kind: int
    start: int
    path: Path
    data: np.ndarray


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """A model whose header has been read, from one file or from all parts of a split one.

    Attributes:
      path: of the file, or of the first part.
      metadata: its keys and values.
      tensors: where each lies.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]

    def read_tensor(self, name: str) -> np.ndarray:
        """Dequantises one tensor to float32."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        path, data = tensor.path, tensor.data
        try:
            kind = GGMLQuantizationType(tensor.kind)
        except ValueError:
            raise InputError(
                f"{path}: tensor '{name}' has the unknown type {tensor.kind}; fetch the file "
                "again, or upgrade the gguf package"
            ) from None
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if not tensor.shape or tensor.shape[-1] % block:
            raise InputError(
                f"{path}: tensor '{name}' of shape {list(tensor.shape)} does not divide into "
                f"{kind.name} blocks of {block}; fetch the file again"
            )
        row_bytes = tensor.shape[-1] // block * block_bytes
        end = tensor.start + math.prod(tensor.shape[:-1]) * row_bytes
        if end > len(data):
            raise InputError(
                f"{path}: the file is cut off: tensor '{name}' ends at byte {end:,} of "
                f"{len(data):,}; fetch it again"
            )
        packed = np.asarray(data[tensor.start : end]).reshape(*tensor.shape[:-1], row_bytes)
        try:
            return dequantize(packed, kind)
        except NotImplementedError:  # how the gguf package says that it has no decoder for a kind
            raise InputError(
                f"{path}: tensor '{name}' is stored as {kind.name}, which the gguf package "
                "cannot decode; use a file in Q4_1, Q8_0, F16, BF16 or F32"
            ) from None

    def number(self, key: str, kind: type[int] | type[float], default: Any = None) -> Any:
        """The metadata value at `key`, positive and of type `kind`."""
        value = self.metadata.get(key, default)
        if type(value) is not kind or not (value > 0 and math.isfinite(value)):
            raise InputError(
                f"{self.path}: {key} is {value!r} where a positive {kind.__name__} is due"
            )
        return value

    def token_id(self, name: str) -> int | None:
        """`tokenizer.ggml.{name}_token_id`, an index into the vocabulary, or None."""
        key = f"tokenizer.ggml.{name}_token_id"
        value = self.metadata.get(key)
        if value is not None and (type(value) is not int or value not in range(len(self.tokens()))):
            raise InputError(f"{self.path}: {key} is {value!r}, which is not in the vocabulary")
        return value

    def tokens(self) -> list[str]:
        """The vocabulary."""
        words = self.metadata.get("tokenizer.ggml.tokens")
        if not isinstance(words, list) or not words or not isinstance(words[0], str):
            raise InputError(
                f"{self.path}: tokenizer.ggml.tokens is missing; the file has no tokenizer"
            )
        return words


class _Cursor:
    """Reads little-endian values one after another; struct.error past the end."""

    def __init__(self, data: np.ndarray) -> None:
        self.data = memoryview(data)
        self.position = 0

    def raw(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self.data):
            raise struct.error("past the end")
        start, self.position = self.position, end
        return bytes(self.data[start:end])

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.raw(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        return self.raw(self.number("Q")).decode("utf-8")

    def value(self) -> Any:
        kind = self.number("I")
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.number(_NUMBERS[kind])
        kind, count = self.number("I"), self.number("Q")
        if kind == _STRING:
            return [self.string() for _ in range(count)]
        code = np.dtype(_NUMBERS[kind]).newbyteorder("<")
        return np.frombuffer(self.raw(count * code.itemsize), code).tolist()


def open_gguf(path: str | Path) -> GgufFile:
    """Maps a file, or all parts of a split one, and parses the headers.

    Of a split one any part `NAME-00001-of-0000N.gguf` will do; the others lie beside it.

    Raises:
      InputError: no such file, not a GGUF file, cut off, or damaged; a part that is missing or
        belongs to another file.
    """
    path = Path(path)
    file = _open_one(path)
    count = file.metadata.get("split.count", 1)
    return file if count in (0, 1) else _join(_parts(file, count))


def _parts(file: GgufFile, count: Any) -> list[GgufFile]:
    """All parts of a split file, one of which is at hand."""
    path = file.path
    name = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})\.gguf", path.name)
    if name is None or int(name[2]) != count:
        raise InputError(
            f"{path}: one of {count!r} parts of a file; call them NAME-00001-of-0000N.gguf"
        )
    parts = []
    for number in range(int(name[2])):
        part = path.with_name(f"{name[1]}-{number + 1:05}-of-{name[2]}.gguf")
        if not part.is_file():
            raise InputError(f"{part}: no such file; fetch it too, it is a part of {path.name}")
        parts.append(file if part == path else _open_one(part))
        found = [parts[-1].metadata.get(key) for key in ("split.no", "split.count")]
        if found != [number, count]:
            raise InputError(
                f"{part}: split.no and split.count are {found} where {[number, count]} are due; "
                "fetch all parts again"
            )
    return parts


def _join(parts: list[GgufFile]) -> GgufFile:
    """One file of its parts; the metadata is the first one's."""
    tensors: dict[str, Tensor] = {}
    for part in parts:
        if twice := tensors.keys() & part.tensors.keys():
            raise InputError(
                f"{part.path}: tensor {min(twice)!r} is in {tensors[min(twice)].path.name} too; "
                "fetch all parts again"
            )
        tensors |= part.tensors
    first = parts[0]
    due = first.metadata.get("split.tensors.count", len(tensors))
    if len(tensors) != due:
        raise InputError(
            f"{first.path}: its parts hold {len(tensors)} tensors where split.tensors.count is "
            f"{due!r}; fetch all parts again"
        )
    return GgufFile(first.path, first.metadata, tensors)


def _open_one(path: Path) -> GgufFile:
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
        listed: dict[str, tuple[Any, ...]] = {}
        for _ in range(num_tensors):
            name = cursor.string()
            # GGUF lists the fastest axis first, NumPy last.
            shape = tuple(cursor.number("Q") for _ in range(cursor.number("I")))[::-1]
            listed[name] = shape, cursor.number("I"), cursor.number("Q")
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
    begin = -(-cursor.position // alignment) * alignment
    tensors = {
        name: Tensor(shape, kind, begin + offset, path, data)
        for name, (shape, kind, offset) in listed.items()
    }
    return GgufFile(path, metadata, tensors)
