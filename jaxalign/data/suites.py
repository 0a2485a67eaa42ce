"""The public suites by name: where each one is, which column holds the text, what its kinds are.

The table is `files/suites.yaml`. Nothing of them is shipped: a suite is read from the hub, or from
the file its authors publish.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jaxalign.data.order import evenly
from jaxalign.data.prompts import KINDS, Kind, Prompt
from jaxalign.data.sources import first_field, load_all, row_text, usable
from jaxalign.data.tables import get
from jaxalign.data.yaml_files import OWN, load_yaml
from jaxalign.host.errors import InputError

_SPECS = "NAME, NAME=FILE, NAME=KIND=SPEC, KIND=SPEC, or a SPEC such as builtin:heldout or my.csv"


@dataclass(frozen=True)
class Suite:
    """What there is to know of a public suite.

    Attributes:
      title: its name in print.
      source: who to cite.
      hub: OWNER/NAME[/CONFIG][@SPLIT]; "" where the hub has no copy that can be read as a table.
      text: the columns that may hold the request: the first that a row has is taken, for the
        authors' own files and the hub's copies name them differently.
      kind: of all rows; None where `kind_column` tells.
      kind_column: the column whose values `kinds` explains.
      kinds: value, in small letters -> kind; None leaves the row out.
      keep: column -> the one value kept, in small letters, where the rows have that column.
      category: the columns that may hold the category; the first that a row has is taken.
      gated: whether the hub asks for an account and consent.
      note: our choices, and what could not be checked.
    """

    title: str
    source: str
    hub: str = ""
    text: Sequence[str] = ("prompt",)
    kind: Kind | None = "harmful"
    kind_column: str = ""
    kinds: Mapping[str, Kind | None] = field(default_factory=dict)
    keep: Mapping[str, str] = field(default_factory=dict)
    category: Sequence[str] = ("category",)
    gated: bool = False
    note: str = ""


SUITES: Mapping[str, Suite] = {
    name: Suite(**fields) for name, fields in load_yaml(OWN / "suites.yaml").items()
}


def load_suite(
    spec: str, limit: int | None = None, *, text_field: str | None = None
) -> tuple[str, list[Prompt]]:
    """Reads the prompts of one suite.

    - `NAME`: a public suite (`SUITES`), from the hub.
    - `NAME=SPEC`: the same suite from a file of its authors, or from any other place that
      `jaxalign.data.load_prompts` knows; columns and kinds are those of the table.
    - `OTHER=SPEC`, `OTHER=KIND=SPEC`, `KIND=SPEC` or a bare `SPEC`: prompts of one's own; OTHER is
      a name for reports, by default made from the file's, and `text_field` as in `load_prompts`.

    Suites are sorted: `limit` takes so many prompts as far apart in it as can be.

    Returns:
      a name that is safe in a file name, and at least one prompt, in the order of the source. A
      public suite's prompts without an id are numbered, so they have the same ids from any place.

    Raises:
      InputError: an unknown suite, a dataset that is out of reach or asks for consent, a missing
        column, or as `load_prompts`.
    """
    if limit is not None and limit < 1:
        raise InputError(f"limit: {limit} is not a number of prompts; use 1 or more")
    name, source = _parse(spec)
    prompts = _known(name, source) if name in SUITES else load_all([source], text_field)
    return name, prompts if limit is None else evenly(prompts, limit)


def _parse(spec: str) -> tuple[str, str]:
    """Name and source, which may begin with the kind unless the suite is a public one."""
    head, equals, rest = spec.partition("=")
    if not equals or Path(spec).exists():
        if spec in SUITES:
            suite = SUITES[spec]
            if not suite.hub:
                raise InputError(
                    f"{spec}: the hub has no copy that can be read; get its file ({suite.source}) "
                    f"and give {spec}=FILE"
                )
            return spec, f"hub:{suite.hub}"
        if not re.search(r"[:./\\]", spec):
            raise InputError(
                f"{spec!r}: no such suite; give {_SPECS}; the names are {', '.join(SUITES)}"
            )
        return _file_name(spec), spec
    if head in SUITES:
        if not rest:
            raise InputError(f"{spec}: a file must follow the sign; give {head}=FILE, or {head}")
        return head, rest
    if head in KINDS:
        return _file_name(rest), spec
    if not re.fullmatch(r"[\w-]+", head, re.ASCII):
        raise InputError(f"{spec}: {head!r} is no name; use letters, digits, - and _")
    return head, rest


def _file_name(source: str) -> str:
    """builtin:heldout -> heldout, folder/my.csv -> my, hub:owner/name@test -> owner-name-test."""
    scheme, colon, rest = source.partition(":")
    rest = rest if colon else Path(source.removesuffix(".gz")).stem
    return re.sub(r"[^A-Za-z0-9_-]+", "-", rest).strip("-") or "prompts"


def _known(name: str, source: str) -> list[Prompt]:
    suite = SUITES[name]

    def make(where: str, _: str, fields: Mapping[str, Any]) -> Prompt | None:
        kind = _kind(suite, where, fields)
        if kind is None or any(
            column in fields and _value(fields, column) != value
            for column, value in suite.keep.items()
        ):
            return None
        column = first_field(
            fields,
            suite.text,
            f"{where}: {suite.title} has its text in the column {' or '.join(suite.text)}, "
            f"here are {', '.join(map(repr, fields))}; rename it, or call it another suite, "
            "OTHER=KIND=SPEC",
        )
        text = row_text(where, fields, column)
        categories = [_value(fields, column, lower=False) for column in suite.category]
        category = next(filter(None, categories), "general")
        target = _value(fields, "target" if "target" in fields else "Target", lower=False)
        return Prompt(_value(fields, "id", lower=False), text, kind, category, target or None)

    try:
        prompts = [prompt for prompt in usable(source, make) if prompt]
    except InputError as error:
        if error.__cause__ is None or not source.startswith("hub:"):
            raise
        raise InputError(_out_of_reach(name, source, error)) from error
    if not prompts:
        raise InputError(f"{source}: no row of {suite.title} is left; check that it is that suite")
    return [replace(p, id=p.id or f"{name}:{number}") for number, p in enumerate(prompts)]


def _kind(suite: Suite, where: str, fields: Mapping[str, Any]) -> Kind | None:
    """The row's kind; None leaves it out."""
    if suite.kind is not None:
        label = _value(fields, "label")
        if label in ("safe", "unsafe") and (label == "unsafe") != (suite.kind == "harmful"):
            raise InputError(
                f"{where}: label is {label!r}, and {suite.title}'s prompts are all {suite.kind}; "
                "check that it is that suite, or call it another, OTHER=SPEC"
            )
        return suite.kind
    if suite.kind_column not in fields:
        raise InputError(
            f"{where}: {suite.title} has its kinds in the column {suite.kind_column}, here are "
            f"{', '.join(map(repr, fields))}; give the whole file"
        )
    value = _value(fields, suite.kind_column)
    if value not in suite.kinds:
        known = ", ".join(filter(None, suite.kinds))
        raise InputError(f"{where}: {suite.kind_column} is {value!r}; use {known}")
    return suite.kinds[value]


def _value(fields: Mapping[str, Any], column: str, *, lower: bool = True) -> str:
    value = get(fields, column)
    text = "" if value is None else str(value).strip()
    return text.lower() if lower else text


def _out_of_reach(name: str, source: str, error: InputError) -> str:
    suite, cause = SUITES[name], error.__cause__
    remedy = f"or get the file ({suite.source}) and give {name}=FILE"
    said = " ".join(str(cause).split())
    if "gated" in said or "authenticat" in said:
        page = f"huggingface.co/datasets/{'/'.join(suite.hub.partition('@')[0].split('/')[:2])}"
        return (
            f"{name}: the dataset asks for consent; agree on {page}, log in with `hf auth login`, "
            f"{remedy}"
        )
    if isinstance(cause, ConnectionError | TimeoutError) or "offline" in said.lower():
        return f"{name}: the hub cannot be reached ({said[:120]}); connect, {remedy}"
    return f"{error}; {remedy}"
