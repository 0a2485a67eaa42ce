"""Prompts from the user's data, named by one argument string: a file, a dataset, or our own set."""

import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from jaxalign.data.prompts import KINDS, Kind, Prompt, Request, builtin_prompts
from jaxalign.host.errors import InputError

# A row: its number (line of a file, index in a dataset) and its fields.
_Row = tuple[int, Mapping[str, Any]]

_SPECS = (
    "builtin:train, builtin:heldout, FILE.jsonl, FILE.csv, hub:NAME[/CONFIG][@SPLIT], "
    "disk:FOLDER[@SPLIT] or tfds:NAME[@SPLIT]"
)
_TEXT_FIELDS = ("prompt", "goal", "instruction", "question", "forbidden_prompt", "text", "turns")
# The same remedies in Python and on the command line.
_PASS_TEXT_FIELD = "pass text_field= or --text-field"
_PASS_KIND = f"pass kind= or, on the command line, KIND=SPEC, with {', '.join(KINDS)}"
# Columns that tell the kind, and what their values mean. The second is XSTest's.
_KIND_FIELDS: Mapping[str, Mapping[str, Kind]] = {
    "kind": {kind: kind for kind in KINDS},
    "label": {"safe": "lookalike", "unsafe": "harmful"},
}


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
    - `FILE.csv`: a header and rows, UTF-8; lines that begin with # may precede them.
    - `hub:NAME[/CONFIG][@SPLIT]`: `datasets.load_dataset`; with a config, NAME is `owner/name`.
    - `disk:FOLDER[@SPLIT]`: a folder written by `save_to_disk` of `datasets`.
    - `tfds:NAME[@SPLIT]`: `tensorflow_datasets.data_source`. It reads array_record files, found or
      prepared under TFDS_DATA_DIR, and does not need TensorFlow for that.

    Of a list of texts, such as MT-Bench's `turns`, the first one is asked. Behind an `instruction`
    comes the row's `input`, as in Alpaca, or that of the first of its `instances`.

    The split is "train" where none is named; `tfds:NAME@train[:100]` takes a slice.

    A row may also have the fields `id` (a string or integer; else the id is made from the source's
    name and the row's number), `category` (else "general") and `target`, a text, as in AdvBench.

    Args:
      spec: as above.
      text_field: the field with the text; by default the first of prompt, goal, instruction,
        question, forbidden_prompt, text and turns that the first row has.
      kind: the kind of every row; by default the field `kind` tells, or else the field `label` with
        the values safe (a look-alike) and unsafe (harmful), as in XSTest.
      limit: read no more than this many rows, the first ones; of our own prompts, which stand
        kind by kind, the first ones of each kind in turn.

    Returns:
      At least one prompt, in the order of the source.

    Raises:
      InputError: the source is missing, unreadable or empty, an argument does not fit it, or a row
        is malformed. The message names the file and line, or the dataset and row (from 0).
    """
    if kind is not None and kind not in KINDS:
        raise InputError(f"kind: unknown value {kind!r}; use {', '.join(KINDS)}")
    if spec.startswith("builtin:"):
        return _builtin(spec, limit, text_field=text_field, kind=kind)
    kind_field = ""
    prompts = []
    for where, name, text, fields in _texts(spec, text_field, limit):
        if kind is None:
            kind_field = kind_field or first_field(
                fields,
                _KIND_FIELDS,
                f"{where}: neither field 'kind' nor 'label' is present to tell harmful from "
                f"benign; {_PASS_KIND}",
            )
        its_kind = kind or _kind(where, fields, kind_field)
        prompts.append(Prompt(name, text, its_kind, _category(where, fields), _target(fields)))
    return prompts


def load_requests(
    spec: str, *, text_field: str | None = None, limit: int | None = None
) -> list[Request]:
    """Reads what is to be answered, where kinds need not be known; all else as in `load_prompts`.

    A request's kind is None where the row's `kind` or `label` tells none of ours, its category
    where the row has no text of that name.
    """
    if spec.startswith("builtin:"):
        return list(_builtin(spec, limit, text_field=text_field))
    requests = []
    for _, name, text, fields in _texts(spec, text_field, limit):
        category = get(fields, "category")
        known = category if isinstance(category, str) and category else None
        requests.append(Request(name, text, _known_kind(fields), known))
    return requests


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


def _texts(
    spec: str, text_field: str | None, limit: int | None
) -> Iterator[tuple[str, str, str, Mapping[str, Any]]]:
    """Of each row where it stands, its id, its text, and its fields."""
    for where, name, fields in read_rows(spec, limit):
        text_field = text_field or first_field(
            fields,
            _TEXT_FIELDS,
            f"{where}: none of the fields {', '.join(_TEXT_FIELDS)} is present "
            f"(found: {_names(fields)}); {_PASS_TEXT_FIELD}",
        )
        yield where, _id(get(fields, "id"), name), row_text(where, fields, text_field), fields


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
    elif (suffix := Path(spec).suffix.lower()) in _FILES:
        rows, unit = _FILES[suffix](spec), "line"
        stem = Path(spec).name
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
      InputError: it is missing, empty, or no text.
    """
    if field not in fields:
        raise InputError(
            f"{where}: field {field!r} is missing; every row needs it (found: {_names(fields)})"
        )
    text = get(fields, field)
    if isinstance(text, list) and text:
        text = _decoded(text[0])
    if not isinstance(text, str):
        raise InputError(f"{where}: field {field!r} is {_show(text)}; it must be a string")
    if not text.strip():
        raise InputError(f"{where}: field {field!r} is empty; give it a text or remove the row")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(
            f"{where}: field {field!r} has half a surrogate pair, which is no text; correct it"
        ) from None
    return text + (_input(fields) if field == "instruction" else "")


def _input(fields: Mapping[str, Any]) -> str:
    """What an instruction is about, behind a blank line; nothing where there is none."""
    instances = fields.get("instances")
    if isinstance(instances, list) and instances and isinstance(instances[0], dict):
        fields = instances[0]
    value = get(fields, "input")
    return f"\n\n{value}" if isinstance(value, str) and value.strip() else ""


def _kind(where: str, fields: Mapping[str, Any], field: str) -> Kind:
    if field not in fields:
        raise InputError(
            f"{where}: field {field!r} is missing; add it to every row, or {_PASS_KIND}"
        )
    meaning = _KIND_FIELDS[field]
    value = get(fields, field)
    if not isinstance(value, str) or value not in meaning:
        raise InputError(
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
        raise InputError(f"{where}: field 'category' is {_show(category)}; it must be a string")
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


def read_text(path: str | Path) -> str:
    """The text of a file.

    Raises:
      InputError: the file is missing or not UTF-8.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}; give the path of a readable file") from error
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
        if not isinstance(fields, dict):
            raise InputError(
                f"{path} line {number}: {_show(fields)} where an object with fields is expected; "
                f"write one object per line"
            )
        yield number, fields


def read_csv(path: str | Path) -> Iterator[_Row]:
    """Line number and fields of each row below the header; lines with # may precede that.

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
    reader = csv.reader(itertools.chain([line], lines), strict=True)
    old_limit = csv.field_size_limit(2**31 - 1)
    try:
        header = [name.strip() for name in next(reader)]
        number = skipped + reader.line_num + 1
        for cells in reader:
            if cells:
                if len(cells) != len(header):
                    raise InputError(
                        f"{path} line {number}: {len(cells)} fields where the header has "
                        f"{len(header)}; quote texts that contain commas or line breaks"
                    )
                yield number, dict(zip(header, cells, strict=True))
            number = skipped + reader.line_num + 1
    except csv.Error as error:
        raise InputError(
            f"{path} line {skipped + reader.line_num}: not valid CSV ({error}); correct the quotes"
        ) from error
    finally:
        csv.field_size_limit(old_limit)


_FILES = {".jsonl": read_json_lines, ".csv": read_csv}


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
