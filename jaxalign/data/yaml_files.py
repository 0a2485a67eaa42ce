"""YAML files of short texts, our own and users': plain values, nothing lost, clear errors."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from jaxalign.host.errors import InputError

OWN = Path(__file__).parent / "files"
"""The package's own data."""


@contextlib.contextmanager
def named_errors(path: str | Path) -> Iterator[None]:
    """Puts the file's name before what is said within about its contents."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def read_yaml(path: str | Path, fields: tuple[str, ...]) -> dict[str, Any]:
    """A file's YAML mapping with exactly these fields, the first of them `version`.

    Raises:
      InputError: as `load_yaml`, or it has another form, or a version that is no whole number from
        1.
    """
    values = load_yaml(path)
    if not isinstance(values, dict) or set(values) != set(fields):
        count = {2: "two", 3: "three"}[len(fields)]
        names = f"{', '.join(fields[:-1])} and {fields[-1]}"
        raise InputError(f"must have the {count} fields {names}, and no other")
    version = values["version"]
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise InputError(f"version is {version!r}; use a whole number from 1")
    return values


def load_yaml(path: str | Path) -> Any:
    """What a YAML file of plain values says; JSON is YAML.

    Raises:
      InputError: it cannot be read as UTF-8, or is no YAML, or has a key twice.
    """
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot be read: {error}; give a YAML file in UTF-8") from None
    try:
        return yaml.load(text, _UniqueKeys)  # a safe loader: it builds plain values only
    except (yaml.YAMLError, ValueError, IndexError) as error:  # the last two: ill-formed scalars
        reason = " ".join(str(error).split())
        raise InputError(f"not a YAML file of plain texts: {reason}; mend it") from None


def by_category(values: Any, field: str, what: str) -> dict[str, Any]:
    """The field as a mapping from at least one category, lower-case words joined by _, to `what`.

    Raises:
      InputError: it is something else; names the field or the category.
    """
    if not isinstance(values, dict) or not values:
        raise InputError(f"{field} must map at least one category to {what}")
    for category in values:
        if not isinstance(category, str) or not re.fullmatch(r"[a-z]+(_[a-z]+)*", category):
            raise InputError(
                f"category {category!r}; use lower-case letters joined by _, as in self_harm"
            )
    return values


def check_text(text: Any, what: str, *, limit: int) -> str:
    """The text on one line; messages call it `what`, such as "rule privacy".

    Raises:
      InputError: no text, more characters than `limit`, unprintable ones, or < and >, which mark
        tags.
    """
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{what} must be a text")
    if len(text) > limit:
        raise InputError(f"{what} has {len(text)} characters; shorten it to {limit}")
    line = " ".join(text.split())
    if not line.isprintable():
        raise InputError(f"{what} has an unprintable character; take it out")
    if "<" in line or ">" in line:
        raise InputError(f"{what} has < or >, which mark tags; leave them out")
    return line


class _UniqueKeys(yaml.SafeLoader):
    """YAML lets a later key replace an earlier one of the same name; a lost text must not pass."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key!r} occurs twice, at {node.start_mark}")
        return super().construct_mapping(node, deep)
