"""GGUF files: the header, read with every length checked, and tensors, dequantised.

The header is parsed here so that a damaged file ends in one clear line; the `gguf` package knows
the quantised formats. (Its own reader takes seconds on a vocabulary of 49,152 tokens and trusts the
lengths it reads.)
"""

import dataclasses
import math
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
    """Where a tensor lies: its shape, the number of its storage type, its first byte."""

    shape: tuple[int, ...]
    kind: int
    offset: int


@dataclasses.dataclass(frozen=True)
class GgufFile:
    """A file whose header has been read.

    Attributes:
      path: of it.
      metadata: its keys and values.
      tensors: where each lies; shapes in NumPy's order.
      data: all bytes, mapped.
      data_start: where the tensors begin.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Tensor]
    data: np.ndarray
    data_start: int

    def read_tensor(self, name: str) -> np.ndarray:
        """Dequantises one tensor to float32."""
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        try:
            kind = GGMLQuantizationType(tensor.kind)
        except ValueError:
            raise InputError(
                f"{self.path}: tensor '{name}' has the unknown type {tensor.kind}; fetch the file "
                "again, or upgrade the gguf package"
            ) from None
        block, block_bytes = GGML_QUANT_SIZES[kind]
        if not tensor.shape or tensor.shape[-1] % block:
            raise InputError(
                f"{self.path}: tensor '{name}' of shape {list(tensor.shape)} does not divide into "
                f"{kind.name} blocks of {block}; fetch the file again"
            )
        row_bytes = tensor.shape[-1] // block * block_bytes
        start = self.data_start + tensor.offset
        end = start + math.prod(tensor.shape[:-1]) * row_bytes
        if end > len(self.data):
            raise InputError(
                f"{self.path}: the file is cut off: tensor '{name}' ends at byte {end:,} of "
                f"{len(self.data):,}; fetch it again"
            )
        packed = np.asarray(self.data[start:end]).reshape(*tensor.shape[:-1], row_bytes)
        try:
            return dequantize(packed, kind)
        except NotImplementedError:  # how the gguf package says that it has no decoder for a kind
            raise InputError(
                f"{self.path}: tensor '{name}' is stored as {kind.name}, which the gguf package "
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
    """Maps a file and parses its header.

    Raises:
      InputError: no such file, not a GGUF file, cut off, or damaged.
    """
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
        tensors: dict[str, Tensor] = {}
        for _ in range(num_tensors):
            name = cursor.string()
            # GGUF lists the fastest axis first, NumPy last.
            shape = tuple(cursor.number("Q") for _ in range(cursor.number("I")))[::-1]
            tensors[name] = Tensor(shape, cursor.number("I"), cursor.number("Q"))
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
    return GgufFile(path, metadata, tensors, data, -(-cursor.position // alignment) * alignment)
