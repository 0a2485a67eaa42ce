"""Prompts from the user's data, named by one argument string: a file, a dataset, or our own set."""

import csv
import dataclasses
import gzip
import io
import itertools
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from jaxalign.data.prompts import KINDS, Kind, Prompt, Request, Turn, builtin_prompts
from jaxalign.host.errors import InputError

T = TypeVar("T")

# A row: its number (line of a text, index in all else) and its fields.
_Row = tuple[int, Mapping[str, Any]]

_SPECS = (
    "builtin:train, builtin:heldout, FILE.jsonl, FILE.json, FILE.csv, FILE.tsv (each .gz, too), "
    "FILE.parquet, hub:NAME[/CONFIG][@SPLIT], disk:FOLDER[@SPLIT] or tfds:NAME[@SPLIT]"
)
_TEXT_FIELDS = (
    *("prompt", "goal", "instruction", "question", "forbidden_prompt", "text", "turns"),
    "messages",
)
# The same remedies in Python and on the command line.
_PASS_TEXT_FIELD = "pass text_field= or --text-field"
_PASS_KIND = f"pass kind= or, on the command line, KIND=SPEC, with {', '.join(KINDS)}"
# Columns that tell the kind, and what their values mean. The second is XSTest's.
_KIND_FIELDS: Mapping[str, Mapping[str, Kind]] = {
    "kind": {kind: kind for kind in KINDS},
    "label": {"safe": "lookalike", "unsafe": "harmful"},
}


class UnusableRow(InputError):
    """A row lacks what those around it may have; `usable` leaves it out."""


def load_prompts(
    spec: str,
    *,
    text_field: str | None = None,
    kind: Kind | None = None,
    limit: int | None = None,
) -> list[Prompt]:
    """Reads prompts from the place that `spec` names.

    - `builtin:train`: our own prompts for training.
    - `builtin:heldout`: our own prompts for evaluation.
    - `FILE.jsonl`: one JSON object per line, UTF-8.
    - `FILE.json`: a list of objects, or the same as `.jsonl`.
    - `FILE.csv`, `FILE.tsv`: a header and rows, UTF-8, texts quoted as in CSV; lines that begin
      with # may precede them. These four may also end in `.gz`.
    - `FILE.parquet`.
    - `hub:NAME[/CONFIG][@SPLIT]`: `datasets.load_dataset`; with a config, NAME is `owner/name`.
    - `disk:FOLDER[@SPLIT]`: a folder written by `save_to_disk` of `datasets`.
    - `tfds:NAME[@SPLIT]`: `tensorflow_datasets.data_source`. It reads array_record files, found or
      prepared under TFDS_DATA_DIR, and does not need TensorFlow for that.

    Of a list of texts, such as MT-Bench's `turns`, the first one is asked. Of a list of messages
    (`role` and `content`; in CSV, `messages` as JSON) it is the last user turn, and the turns
    before it are the conversation; what stands behind is left out. Roles are user and assistant,
    and system for the first. Behind an `instruction` comes the row's `input`, as in Alpaca, or that
    of the first of its `instances`.

    The split is "train" where none is named; `tfds:NAME@train[:100]` takes a slice.

    A row may also have the fields `id` (a string or integer; else the id is made from the source's
    name and the row's number), `category` (else "general") and `target`, a text, as in AdvBench.

    Rows in which text, kind or category is none are left out: stderr says how many, and what is
    wrong with the first one.

    Args:
      spec: as above.
      text_field: the field with the text; by default the first of prompt, goal, instruction,
        question, forbidden_prompt, text, turns and messages that the first row has.
      kind: the kind of every row; by default the field `kind` tells, or else the field `label` with
        the values safe (a look-alike) and unsafe (harmful), as in XSTest.
      limit: read no more than this many rows, the first ones; of our own prompts, which stand
        kind by kind, the first ones of each kind in turn.

    Returns:
      At least one prompt, in the order of the source.

    Raises:
      InputError: the source is missing, unreadable or empty, an argument does not fit it, or none
        of its rows can be used. The message names the file and line, or row (from 0).
    """
    if kind is not None and kind not in KINDS:
        raise InputError(f"kind: unknown value {kind!r}; use {', '.join(KINDS)}")
    if spec.startswith("builtin:"):
        return _builtin(spec, limit, text_field=text_field, kind=kind)
    kind_field = ""

    def prompt(where: str, fields: Mapping[str, Any], asked: Request) -> Prompt:
        nonlocal kind_field
        if kind is None:
            kind_field = kind_field or first_field(
                fields,
                _KIND_FIELDS,
                f"{where}: neither field 'kind' nor 'label' is present to tell harmful from "
                f"benign; {_PASS_KIND}",
            )
        its_kind = kind or _kind(where, fields, kind_field)
        category, target = _category(where, fields), _target(fields)
        before = asked.conversation
        return Prompt(asked.id, asked.text, its_kind, category, target, conversation=before)

    return _load(spec, text_field, limit, prompt)


def load_requests(
    spec: str, *, text_field: str | None = None, limit: int | None = None
) -> list[Request]:
    """Reads what is to be answered, where kinds need not be known; all else as in `load_prompts`.

    A request's kind is None where the row's `kind` or `label` tells none of ours, its category
    where the row has no text of that name.
    """
    if spec.startswith("builtin:"):
        return list(_builtin(spec, limit, text_field=text_field))

    def request(where: str, fields: Mapping[str, Any], asked: Request) -> Request:
        category = get(fields, "category")
        known = category if isinstance(category, str) and category else None
        return dataclasses.replace(asked, kind=_known_kind(fields), category=known)

    return _load(spec, text_field, limit, request)


def load_all(specs: Sequence[str], text_field: str | None = None) -> list[Prompt]:
    """The prompts of all specs, each a spec of `load_prompts` or KIND=SPEC, in their order.

    The text field, as in `load_prompts`, is for all but the builtin ones.

    Raises:
      InputError: as `load_prompts`, and for a KIND that there is not.
    """
    prompts: list[Prompt] = []
    for spec in specs:
        kind, equals, rest = spec.partition("=")
        known = bool(equals) and kind in KINDS
        if equals and kind.isalpha() and not known and not Path(spec).exists():
            raise InputError(f"{spec}: unknown kind {kind!r}; use {', '.join(KINDS)}")
        source = rest if known else spec
        field = None if source.startswith("builtin:") else text_field
        prompts += load_prompts(
            source, kind=cast("Kind", kind) if known else None, text_field=field
        )
    return prompts


def _builtin(spec: str, limit: int | None, **unfit: str | None) -> list[Prompt]:
    _check_limit(limit)
    for name, value in unfit.items():
        if value is not None:
            raise InputError(f"{spec}: {name}= does not apply to builtin prompts; leave it out")
    return _in_turn(builtin_prompts(cast(Any, spec.partition(":")[2])), limit)


def _load(
    spec: str,
    text_field: str | None,
    limit: int | None,
    make: Callable[[str, Mapping[str, Any], Request], T],
) -> list[T]:
    """What `make` makes of each row's place, fields and request, whose kind is not known yet."""

    def one(where: str, name: str, fields: Mapping[str, Any]) -> T:
        nonlocal text_field
        text_field = text_field or first_field(
            fields,
            _TEXT_FIELDS,
            f"{where}: none of the fields {', '.join(_TEXT_FIELDS)} is present "
            f"(found: {_names(fields)}); {_PASS_TEXT_FIELD}",
        )
        text, conversation = _text_and_conversation(where, fields, text_field)
        id_ = _id(get(fields, "id"), name)
        return make(where, fields, Request(id_, text, None, None, conversation=conversation))

    return usable(read_rows(spec, limit), one)


def usable(
    rows: Iterable[tuple[str, str, Mapping[str, Any]]],
    make: Callable[[str, str, Mapping[str, Any]], T],
) -> list[T]:
    """What `make` makes of those of `read_rows` that it can use; stderr says how many it cannot.

    Raises:
      InputError: it can use none, or as it raises other than `UnusableRow`.
    """
    made: list[T] = []
    faults: list[str] = []
    for row in rows:
        try:
            made.append(make(*row))
        except UnusableRow as error:
            faults.append(str(error))
    count = len(made) + len(faults)
    if faults and not made:
        raise InputError(faults[0] + f" (none of {count} rows is usable)" * (count > 1))
    if faults:
        left_out = f"{len(faults)} of {count} rows left out, the first: {faults[0]}"
        print(f"jaxalign: {left_out}", file=sys.stderr)
    return made


def read_rows(spec: str, limit: int | None = None) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Of each row where it stands, an id for one that has none, and its fields; at least one.

    Args:
      spec: a file or dataset, as in `load_prompts`; not a builtin set.
      limit: stop after so many rows.

    Raises:
      InputError: as `load_prompts`; what a dataset's package raised is its `__cause__`.
    """
    _check_limit(limit)
    scheme, _, rest = spec.partition(":")
    if scheme in _DATASETS:
        name, _, split = rest.partition("@")
        if not name:
            raise InputError(f"{spec}: a name must follow the colon; accepted: {_SPECS}")
        rows, unit = _dataset_rows(spec, name, split), "row"
        stem = spec
    elif (suffix := Path(spec.removesuffix(".gz")).suffix.lower()) in _FILES:
        read, unit = _FILES[suffix]
        rows, stem = read(spec), Path(spec).name
    else:
        raise InputError(f"{spec!r} names no prompts; accepted: {_SPECS}")
    number = None
    for number, fields in itertools.islice(rows, limit):
        yield f"{spec} {unit} {number}", f"{stem}:{number}", fields
    if number is None:
        raise InputError(f"{spec}: no rows; give at least one prompt")


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise InputError(f"limit: {limit} is not a number of rows; use 1 or more")


def _in_turn(prompts: list[Prompt], limit: int | None) -> list[Prompt]:
    """So many prompts, of each kind about equally many, in their old order."""
    if limit is None:
        return prompts
    place = {kind: itertools.count() for kind in KINDS}
    rank = [(next(place[prompt.kind]), index) for index, prompt in enumerate(prompts)]
    return [prompts[index] for index in sorted(index for _, index in sorted(rank)[:limit])]


def first_field(fields: Mapping[str, Any], names: Iterable[str], complaint: str) -> str:
    """The first of the names that a row has.

    Raises:
      InputError: it has none; the message is the complaint.
    """
    for name in names:
        if name in fields:
            return name
    raise InputError(complaint)


def get(fields: Mapping[str, Any], name: str) -> object:
    """A row's field, or None; a byte string (TFDS has no other) as text if it is UTF-8."""
    return _decoded(fields.get(name))


def row_text(where: str, fields: Mapping[str, Any], field: str) -> str:
    """The text in a field of a row, of a list of texts the first.

    Args:
      where: names the row in a message.
      fields: the row.
      field: which one; behind an `instruction` comes its input.

    Raises:
      UnusableRow: it is missing, empty, or no text.
    """
    text = _present(where, fields, field)
    if isinstance(text, list) and text:
        text = _decoded(text[0])
    text = _checked(f"{where}: field {field!r}", text)
    return text + (_input(fields) if field == "instruction" else "")


def _present(where: str, fields: Mapping[str, Any], field: str) -> object:
    if field not in fields:
        raise UnusableRow(
            f"{where}: field {field!r} is missing; every row needs it (found: {_names(fields)})"
        )
    return get(fields, field)


def _checked(place: str, text: object) -> str:
    """The text, if it is one and not blank."""
    if not isinstance(text, str):
        raise UnusableRow(f"{place} is {_show(text)}; it must be a string")
    if not text.strip():
        raise UnusableRow(f"{place} is empty; give it a text or remove the row")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UnusableRow(
            f"{place} has half a surrogate pair, which is no text; correct it"
        ) from None
    return text


def _text_and_conversation(
    where: str, fields: Mapping[str, Any], field: str
) -> tuple[str, tuple[Turn, ...]]:
    """The text in a field; of messages, in any field, the user's last, and the turns before it."""
    given, place = _present(where, fields, field), f"{where}: field {field!r}"
    if field == "messages":
        try:
            given = json.loads(given) if isinstance(given, str) else given
        except (ValueError, RecursionError):
            pass
        if not isinstance(given, list):
            raise UnusableRow(f"{place} is {_show(given)}; it must be a list of messages")
    elif not isinstance(given, list) or not given or not isinstance(given[0], dict):
        return row_text(where, fields, field), ()
    roles: list[Any] = [turn.get("role") if isinstance(turn, dict) else None for turn in given]
    if "user" not in roles:
        raise UnusableRow(f"{place} has no message of the user; give it one or remove the row")
    turns = []
    for number, role in enumerate(roles[: len(roles) - roles[::-1].index("user")], start=1):
        may_be_empty = role == "system" and number == 1  # some data have such a one in every row
        if role not in ("user", "assistant") and not may_be_empty:
            raise UnusableRow(
                f"{place}, message {number}: the role is {_show(role)}; use user or assistant, or "
                "system for the first"
            )
        content = _decoded(given[number - 1].get("content"))
        if content not in (None, "") or not may_be_empty:
            turns.append(Turn(role, _checked(f"{place}, message {number},", content)))
    return turns[-1].content, tuple(turns[:-1])


def _input(fields: Mapping[str, Any]) -> str:
    """What an instruction is about, behind a blank line; nothing where there is none."""
    instances = fields.get("instances")
    if isinstance(instances, list) and instances and isinstance(instances[0], dict):
        fields = instances[0]
    value = get(fields, "input")
    return f"\n\n{value}" if isinstance(value, str) and value.strip() else ""


def _kind(where: str, fields: Mapping[str, Any], field: str) -> Kind:
    if field not in fields:
        raise UnusableRow(
            f"{where}: field {field!r} is missing; add it to every row, or {_PASS_KIND}"
        )
    meaning = _KIND_FIELDS[field]
    value = get(fields, field)
    if not isinstance(value, str) or value not in meaning:
        raise UnusableRow(
            f"{where}: field {field!r} is {_show(value)}; use {', '.join(meaning)}, or {_PASS_KIND}"
        )
    return meaning[value]


def _known_kind(fields: Mapping[str, Any]) -> Kind | None:
    for field, meaning in _KIND_FIELDS.items():
        value = get(fields, field)
        if isinstance(value, str) and value in meaning:
            return meaning[value]
    return None


def _category(where: str, fields: Mapping[str, Any]) -> str:
    category = get(fields, "category")
    if category is None or category == "":
        return "general"
    if not isinstance(category, str):
        raise UnusableRow(f"{where}: field 'category' is {_show(category)}; it must be a string")
    return category


def _target(fields: Mapping[str, Any]) -> str | None:
    target = get(fields, "target")
    return target if isinstance(target, str) and target.strip() else None


def _id(value: object, default: str) -> str:
    return str(value) if isinstance(value, str | int) and str(value).strip() else default


def _decoded(value: object) -> object:
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return value


# Files.


def _read_bytes(path: str | Path) -> bytes:
    try:
        data = Path(path).read_bytes()
        return gzip.decompress(data) if str(path).endswith(".gz") else data
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
    # Not splitlines(): JSON strings may hold U+2028 and the like as they are.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
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
    raise InputError(f"{where}: {_show(fields)} where an object with fields is expected{remedy}")


def _read_json(path: str) -> Iterator[_Row]:
    """Index and object of each of a list; or as JSON lines, which often have this ending."""
    text = read_text(path)
    if not text.lstrip().startswith("["):
        yield from enumerate(fields for _, fields in read_json_lines(path))
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
                f"disk:{folder}@{split}: no split {split!r}; choose one of {_names(table)}"
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


def _names(fields: Mapping[str, Any]) -> str:
    return _shorten(", ".join(map(repr, fields)) or "nothing")


def _show(value: object) -> str:
    return f"the {type(value).__name__} {_shorten(repr(value))}"


def _line(error: Exception) -> str:
    return _shorten(" ".join(f"{type(error).__name__}: {error}".split()))


def _shorten(text: str) -> str:
    return text if len(text) <= 200 else text[:199] + "…"
