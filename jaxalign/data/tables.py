"""Files and data sets as rows of fields; whatever is wrong with one is said in one line."""

import csv
import gzip
import io
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxalign.host.errors import InputError

# A row: its number (line of a text, index in all else) and its fields.
_Row = tuple[int, Mapping[str, Any]]

_SPECS = (
    "builtin:train, builtin:heldout, FILE.jsonl, FILE.json, FILE.csv, FILE.tsv (each .gz, too), "
    "FILE.parquet, hub:NAME[/CONFIG][@SPLIT], disk:FOLDER[@SPLIT] or tfds:NAME[@SPLIT]"
)


def read_rows(spec: str, limit: int | None = None) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Of each row where it stands, an id for one that has none, and its fields; at least one.

    The spec is a file or dataset, as in `load_prompts`, and not a builtin set.

    Raises:
      InputError: as `load_prompts`; what a dataset's package raised is its `__cause__`.
    """
    check_limit(limit)
    scheme, _, rest = spec.partition(":")
    if scheme in _DATASETS:
        name, _, split = rest.partition("@")
        if not name:
            raise InputError(f"{spec}: a name must follow the colon; accepted: {_SPECS}")
        rows, unit = _dataset_rows(spec, name, split), "row"
        stem = spec
    elif (suffix := Path(spec.lower().removesuffix(".gz")).suffix) in _FILES:
        read, unit = _FILES[suffix]
        rows, stem = read(spec), Path(spec).name
    else:
        raise InputError(f"{spec!r} names no prompts; accepted: {_SPECS}")
    number = None
    for number, fields in itertools.islice(rows, limit):
        yield f"{spec} {unit} {number}", f"{stem}:{number}", fields
    if number is None:
        raise InputError(f"{spec}: no rows; give at least one prompt")


def check_limit(limit: int | None) -> None:
    """Raises InputError where it is no number of rows."""
    if limit is not None and limit < 1:
        raise InputError(f"limit: {limit} is not a number of rows; use 1 or more")


def get(fields: Mapping[str, Any], name: str) -> object:
    """A row's field, or None; a byte string (TFDS has no other) as text if it is UTF-8."""
    return decoded(fields.get(name))


def decoded(value: object) -> object:
    """A byte string as text if it is UTF-8; all else as it is."""
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


# Files.


def _read_bytes(path: str | Path) -> bytes:
    try:
        data = Path(path).read_bytes()
        return gzip.decompress(data) if str(path).lower().endswith(".gz") else data
    except (OSError, EOFError, zlib.error) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: {why}; give the path of a readable file") from error


def read_text(path: str | Path) -> str:
    """The text of a file, of one that ends in .gz unpacked.

    Raises:
      InputError: the file is missing or not UTF-8.
    """
    data = _read_bytes(path)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{path} line {line}: not UTF-8; save the file as UTF-8") from error


def read_json_lines(path: str | Path) -> Iterator[_Row]:
    """Line number and object of each line that is not blank.

    Raises:
      InputError: the file is missing, not UTF-8, or has a line that is no JSON object.
    """
    return _json_lines(path, read_text(path))


def _json_lines(path: str | Path, text: str) -> Iterator[_Row]:
    # Not splitlines(): JSON strings may hold U+2028 and the like as they are.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(
                f"{path} line {number}: not valid JSON ({error.msg} at column {error.colno}); "
                f"write one object per line"
            ) from error
        except (ValueError, RecursionError) as error:  # an endless number, endless brackets
            raise InputError(f"{path} line {number}: {_line(error)}; simplify the row") from error
        yield number, _object(f"{path} line {number}", fields, "; write one object per line")


def _object(where: str, fields: object, remedy: str = "") -> Mapping[str, Any]:
    if isinstance(fields, dict):
        return fields
    raise InputError(f"{where}: {shown(fields)} where an object with fields is expected{remedy}")


def _read_json(path: str) -> Iterator[_Row]:
    """Index and object of each of a list; or as JSON lines, which often have this ending."""
    text = read_text(path)
    if not text.lstrip().startswith("["):
        yield from enumerate(fields for _, fields in _json_lines(path, text))
        return
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {_line(error)}; write a list of objects") from error
    for number, fields in enumerate(rows):
        yield number, _object(f"{path} row {number}", fields)


def _read_parquet(path: str) -> Iterator[_Row]:
    import pyarrow
    import pyarrow.parquet

    data = _read_bytes(path)
    try:
        parts = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(data)).iter_batches()
        yield from enumerate(row for part in parts for row in part.to_pylist())
    except pyarrow.ArrowException as error:
        raise InputError(f"{path}: {_line(error)}; write it again as Parquet") from error


def read_csv(path: str | Path) -> Iterator[_Row]:
    """Line number and fields of each row below the header; lines with # may precede that.

    The fields of a file .tsv stand between tabs.

    Raises:
      InputError: the file is missing, not UTF-8, or has a malformed row.
    """
    lines = io.StringIO(read_text(path), newline="")
    skipped = 0
    line = lines.readline()
    while line.startswith("#") or line.isspace():
        skipped += 1
        line = lines.readline()
    # Strict, because otherwise a quote that is never closed swallows the rest of the file.
    mark = "\t" if str(path).removesuffix(".gz").lower().endswith(".tsv") else ","
    reader = csv.reader(itertools.chain([line], lines), strict=True, delimiter=mark)
    old_limit = csv.field_size_limit(2**31 - 1)
    try:
        header = [name.strip() for name in next(reader)]
        if twice := [name for name in header if name and header.count(name) > 1]:
            raise InputError(f"{path}: two columns are called {twice[0]!r}; rename one")
        number = skipped + reader.line_num + 1
        for cells in reader:
            if cells:
                if len(cells) != len(header):
                    raise InputError(
                        f"{path} line {number}: {len(cells)} fields where the header has "
                        f"{len(header)}; quote texts that contain "
                        f"{'tabs' if mark != ',' else 'commas'} or line breaks"
                    )
                yield number, dict(zip(header, cells, strict=True))
            number = skipped + reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path} line {skipped + reader.line_num}: not valid CSV ({error}); correct the quotes"
        ) from error
    finally:
        csv.field_size_limit(old_limit)


_FILES: Mapping[str, tuple[Callable[[str], Iterator[_Row]], str]] = {
    ".jsonl": (read_json_lines, "line"),
    ".json": (_read_json, "row"),
    ".csv": (read_csv, "line"),
    ".tsv": (read_csv, "line"),
    ".parquet": (_read_parquet, "row"),
}
"""How files are read by their ending, and what their rows are counted in."""


# Datasets. Their packages are imported here and not above: they are slow to load, and optional.


def _dataset_rows(spec: str, name: str, split: str) -> Iterator[_Row]:
    """Rows of a dataset, counted from 0; whatever its package raises becomes one line."""
    try:
        yield from enumerate(_DATASETS[spec.partition(":")[0]](name, split))
    except InputError:
        raise
    except ImportError as error:
        raise InputError(f"{spec}: {_line(error)}; install the package") from error
    except Exception as error:
        raise InputError(
            f"{spec}: cannot be read; check name, split and network ({_line(error)})"
        ) from error


def _hub(name: str, split: str) -> Iterator[Mapping[str, Any]]:
    import datasets

    parts = name.split("/", 2)
    config = parts[2] if len(parts) == 3 else None
    table = datasets.load_dataset("/".join(parts[:2]), config, split=split or "train")
    return _name_labels(table, table.features, datasets.ClassLabel)


def _disk(folder: str, split: str) -> Iterator[Mapping[str, Any]]:
    import datasets

    table = datasets.load_from_disk(folder)
    if isinstance(table, datasets.DatasetDict):
        split = split or "train"
        if split not in table:
            raise InputError(
                f"disk:{folder}@{split}: no split {split!r}; choose one of {names_of(table)}"
            )
        table = table[split]
    elif split:
        raise InputError(f"disk:{folder}@{split}: has no splits; leave @{split} out")
    return _name_labels(table, table.features, datasets.ClassLabel)


def _tfds(name: str, split: str) -> Iterator[Mapping[str, Any]]:
    import tensorflow_datasets as tfds

    source = tfds.data_source(name, split=split or "train")
    rows = (source[index] for index in range(len(source)))
    return _name_labels(rows, source.dataset_info.features, tfds.features.ClassLabel)


def _name_labels(
    rows: Iterable[Mapping[str, Any]], features: Mapping[str, Any], label: Any
) -> Iterator[Mapping[str, Any]]:
    """The rows with class numbers as names; None and -1, which mean unlabelled, stay."""
    labels = {
        field: feature.names for field, feature in features.items() if isinstance(feature, label)
    }
    for row in rows:
        named = {
            field: names[row[field]]
            for field, names in labels.items()
            if row[field] is not None and row[field] >= 0
        }
        yield {**row, **named}


_DATASETS = {"hub": _hub, "disk": _disk, "tfds": _tfds}


# Parts of messages: one short line each.


def names_of(fields: Mapping[str, Any]) -> str:
    """The names of a row's fields for a message."""
    return _shorten(", ".join(map(repr, fields)) or "nothing")


def shown(value: object) -> str:
    """A value and its type for a message."""
    return f"the {type(value).__name__} {_shorten(repr(value))}"


def _line(error: Exception) -> str:
    return _shorten(" ".join(f"{type(error).__name__}: {error}".split()))


def _shorten(text: str) -> str:
    return text if len(text) <= 200 else text[:199] + "…"
