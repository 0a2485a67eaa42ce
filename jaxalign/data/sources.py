"""Prompts from the user's data, named by one argument string: a file, a dataset, or our own set."""

import dataclasses
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from jaxalign.data.prompts import KINDS, Kind, Prompt, Request, Turn, builtin_prompts
from jaxalign.data.tables import check_limit, decoded, get, names_of, read_rows, shown
from jaxalign.host.errors import InputError

T = TypeVar("T")

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
    name and the row's number), `category` (else "general"), `target`, a text, as in AdvBench, and
    `pair`, a text that prompts in the same frame share.

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
        target, pair = (_text_or_none(fields, name) for name in ("target", "pair"))
        category, before = _category(where, fields), asked.conversation
        return Prompt(
            asked.id, asked.text, its_kind, category, target, pair=pair, conversation=before
        )

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
    check_limit(limit)
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
            f"(found: {names_of(fields)}); {_PASS_TEXT_FIELD}",
        )
        text, conversation = _text_and_conversation(where, fields, text_field)
        id_ = _id(get(fields, "id"), name)
        return make(where, fields, Request(id_, text, None, None, conversation=conversation))

    return usable(spec, one, limit)


def usable(
    spec: str, make: Callable[[str, str, Mapping[str, Any]], T], limit: int | None = None
) -> list[T]:
    """What `make` makes of what `read_rows` yields; stderr says how many rows it cannot use.

    Raises:
      InputError: it can use none, or as it raises other than `UnusableRow`.
    """
    made: list[T] = []
    faults: list[str] = []
    for row in read_rows(spec, limit):
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


def row_text(where: str, fields: Mapping[str, Any], field: str) -> str:
    """The text in a field of a row, of a list of texts the first, with an instruction's input.

    Raises:
      UnusableRow: it is missing, empty, or no text; the message names the row by `where`.
    """
    text = _present(where, fields, field)
    if isinstance(text, list) and text:
        text = decoded(text[0])
    text = _checked(f"{where}: field {field!r}", text)
    return text + (_input(fields) if field == "instruction" else "")


def _present(where: str, fields: Mapping[str, Any], field: str) -> object:
    if field not in fields:
        raise UnusableRow(
            f"{where}: field {field!r} is missing; every row needs it (found: {names_of(fields)})"
        )
    return get(fields, field)


def _checked(place: str, text: object) -> str:
    """The text, if it is one and not blank."""
    if not isinstance(text, str):
        raise UnusableRow(f"{place} is {shown(text)}; it must be a string")
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
            raise UnusableRow(f"{place} is {shown(given)}; it must be a list of messages")
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
                f"{place}, message {number}: the role is {shown(role)}; use user or assistant, or "
                "system for the first"
            )
        content = decoded(given[number - 1].get("content"))
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
            f"{where}: field {field!r} is {shown(value)}; use {', '.join(meaning)}, or {_PASS_KIND}"
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
        raise UnusableRow(f"{where}: field 'category' is {shown(category)}; it must be a string")
    return category


def _text_or_none(fields: Mapping[str, Any], name: str) -> str | None:
    value = get(fields, name)
    return value if isinstance(value, str) and value.strip() else None


def _id(value: object, default: str) -> str:
    return str(value) if isinstance(value, str | int) and str(value).strip() else default
