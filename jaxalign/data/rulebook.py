"""The safety rules that a model may consult: one short text for each hazard category."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from jaxalign.data.yaml_files import OWN, by_category, check_text, named_errors, read_yaml

#: The longest text of a rule, in characters: it is read in the middle of an answer.
MAX_RULE_CHARACTERS = 400


@dataclasses.dataclass(frozen=True)
class RuleBook:
    """Rules, category to text in the order of the file.

    A run reports the version, so that results under different rules are not mixed up.
    """

    version: int
    rules: Mapping[str, str]


def builtin_rules() -> RuleBook:
    """Our own rules: the twelve hazard categories of `CATEGORIES`, and "general"."""
    return load_rules(OWN / "rules.yaml")


def load_rules(path: str | Path) -> RuleBook:
    """Reads a rule book of the user's own.

    The file is YAML: `version`, a whole number from 1, and `rules`, a mapping of categories
    (lower-case words joined by _) to texts of at most 400 characters without < and >, which mark
    the tool's tags.

    Raises:
      InputError: the file is missing or not as described; names the file, the category and the
        remedy.
    """
    with named_errors(path):
        book = read_yaml(path, ("version", "rules"))
        rules = {
            category: check_text(rule, f"rule {category}", limit=MAX_RULE_CHARACTERS)
            for category, rule in by_category(book["rules"], "rules", "its text").items()
        }
    return RuleBook(book["version"], MappingProxyType(rules))
