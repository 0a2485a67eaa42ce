"""The safety rules that a model may consult: one short text for each hazard category."""

import dataclasses
import importlib.resources
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from jaxalign.errors import InputError

#: The longest text of a rule, in characters: it is read in the middle of an answer.
MAX_RULE_CHARACTERS = 400


@dataclasses.dataclass(frozen=True)
class RuleBook:
    """Rules by category.

    Attributes:
      version: what a run reports, so that results under different rules are not mixed up.
      rules: category to text, in the order of the file.
    """

    version: int
    rules: Mapping[str, str]


def builtin_rules() -> RuleBook:
    """Our own rules: the twelve hazard categories of `CATEGORIES`, and "general"."""
    text = (importlib.resources.files("jaxalign.data") / "files" / "rules.yaml").read_text("utf-8")
    return _parse(text, "rules.yaml")


def load_rules(path: str | Path) -> RuleBook:
    """Reads a rule book of the user's own.

    The file is YAML: `version`, a whole number from 1, and `rules`, a mapping of categories
    (lower-case words joined by _) to texts of at most 400 characters without < and >, which mark
    the tool's tags.

    Raises:
      InputError: the file is missing or not as described; names the file, the category and the
        remedy.
    """
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}; give a YAML file in UTF-8") from None
    return _parse(text, str(path))


def _parse(text: str, source: str) -> RuleBook:
    try:
        book = yaml.load(text, _UniqueKeys)  # a safe loader: it builds plain values only
    except (yaml.YAMLError, ValueError, IndexError) as error:  # the last two: ill-formed scalars
        reason = " ".join(str(error).split())
        raise InputError(f"{source}: not a YAML file of plain texts: {reason}; mend it") from None
    if not isinstance(book, dict) or set(book) != {"version", "rules"}:
        raise InputError(f"{source}: must have the two fields version and rules, and no other")
    version, rules = book["version"], book["rules"]
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise InputError(f"{source}: version is {version!r}; use a whole number from 1")
    if not isinstance(rules, dict) or not rules:
        raise InputError(f"{source}: rules must map at least one category to its text")
    for category, rule in rules.items():
        _check(category, rule, source)
    texts = {category: " ".join(rule.split()) for category, rule in rules.items()}
    return RuleBook(version, MappingProxyType(texts))


def _check(category: Any, rule: Any, source: str) -> None:
    if not isinstance(category, str) or not re.fullmatch(r"[a-z]+(_[a-z]+)*", category):
        raise InputError(
            f"{source}: category {category!r}; use lower-case letters joined by _, as in self_harm"
        )
    if not isinstance(rule, str) or not rule.strip():
        raise InputError(f"{source}: rule {category} must be a text")
    if len(rule) > MAX_RULE_CHARACTERS:
        raise InputError(
            f"{source}: rule {category} has {len(rule)} characters; "
            f"shorten it to {MAX_RULE_CHARACTERS}"
        )
    if not " ".join(rule.split()).isprintable():
        raise InputError(f"{source}: rule {category} has an unprintable character; take it out")
    if "<" in rule or ">" in rule:
        raise InputError(f"{source}: rule {category} has < or >, which mark tags; leave them out")


class _UniqueKeys(yaml.SafeLoader):
    """YAML lets a later key replace an earlier one of the same name; a lost rule must not pass."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.YAMLError(f"{key!r} occurs twice, at {node.start_mark}")
        return super().construct_mapping(node, deep)
