"""CADA's material (arXiv 2601.08000): a safety code, short and detailed, and worked cases.

The texts are ours, `files/code.yaml` and `files/cases.yaml`; the paper's are not copied. A user's
own files have the same form.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from jaxalign.data.order import first_of_each
from jaxalign.data.yaml_files import OWN, by_category, check_text, named_errors, read_yaml
from jaxalign.host.errors import InputError

#: The longest text, in characters: of the short code, and of a clause, request or reasoning.
MAX_SHORT_CHARACTERS, MAX_TEXT_CHARACTERS = 800, 300

Outcome = Literal["refuse", "comply"]


@dataclasses.dataclass(frozen=True)
class Code:
    """A safety code: `short` in a paragraph, `detailed` category to clauses, which `cite` names.

    A run reports its version.
    """

    version: int
    short: str
    detailed: Mapping[str, tuple[str, ...]]

    def cite(self) -> dict[str, str]:
        """Every clause by the name a reasoning can cite, such as privacy.1."""
        return {
            f"{category}.{number}": clause
            for category, clauses in self.detailed.items()
            for number, clause in enumerate(clauses, start=1)
        }


@dataclasses.dataclass(frozen=True)
class Case:
    """A request, how one reasons about it in a sentence or two, and what follows.

    The category is the hazard that it is about, or that it only sounds like.
    """

    category: str
    request: str
    reasoning: str
    outcome: Outcome


def code_text(code: Code, *, detailed: bool = False, cases: Sequence[Case] = ()) -> str:
    """What CADA's arms put into the model's context: a code, and worked cases if there are any.

    The code is its short paragraph, or detailed its clauses with the names to cite.
    """
    if detailed:
        lines = ["Safety code:", *(f"{name}: {clause}" for name, clause in code.cite().items())]
    else:
        lines = [f"Safety code: {code.short}"]
    if cases:
        lines += ["", "Cases:"]
        lines += [
            f"Request: {case.request} Reasoning: {case.reasoning} Outcome: {case.outcome}."
            for case in cases
        ]
    return "\n".join(lines)


def pick_cases(cases: Sequence[Case], *, per_outcome: int) -> list[Case]:
    """The first `per_outcome` cases to refuse, and as many to answer, of each category, in order.

    Raises:
      InputError: a category has fewer.
    """
    picked = first_of_each(cases, lambda case: (case.category, case.outcome), per_outcome)
    for category in dict.fromkeys(case.category for case in cases):
        for outcome in ("refuse", "comply"):
            here = [c for c in picked if c.category == category and c.outcome == outcome]
            if len(here) < per_outcome:
                raise InputError(
                    f"cases_per_outcome={per_outcome}, but {category} has {len(here)} cases that "
                    f"end in {outcome}: lower it, or add cases"
                )
    return picked


ContextName = Literal["short-code", "detailed-code", "cases"]


def context_text(
    name: ContextName,
    *,
    code: str | Path | None = None,
    cases: str | Path | None = None,
    cases_per_outcome: int = 1,
) -> str:
    """What one of CADA's arms puts into the model's context.

    It is the short code, the detailed one, or, for `cases`, the short one followed by
    `cases_per_outcome` cases to refuse and as many to answer of each category. Code and cases are
    those of a file (`load_code`, `load_cases`), or our own.

    Raises:
      InputError: as `load_code`, `load_cases` and `pick_cases`.
    """
    book = builtin_code() if code is None else load_code(code)
    if name != "cases":
        return code_text(book, detailed=name == "detailed-code")
    every = builtin_cases() if cases is None else load_cases(cases)
    return code_text(book, cases=pick_cases(every, per_outcome=cases_per_outcome))


def builtin_code() -> Code:
    """Our own code: the twelve hazard categories."""
    return load_code(OWN / "code.yaml")


def load_code(path: str | Path) -> Code:
    """Reads a code of the user's own.

    The file is YAML: `version`, a whole number from 1; `short`, a text of at most 800 characters;
    `detailed`, a mapping of categories (lower-case words joined by _) to lists of clauses, each at
    most 300 characters.

    Raises:
      InputError: the file is missing or not as described; names the file, the place and the remedy.
    """
    with named_errors(path):
        code = read_yaml(path, ("version", "short", "detailed"))
        short = check_text(code["short"], "short", limit=MAX_SHORT_CHARACTERS)
        detailed = {
            category: tuple(
                check_text(clause, f"clause {category}.{number}", limit=MAX_TEXT_CHARACTERS)
                for number, clause in enumerate(clauses, start=1)
            )
            for category, clauses in _lists(code["detailed"], "detailed").items()
        }
    return Code(code["version"], short, MappingProxyType(detailed))


def builtin_cases() -> tuple[Case, ...]:
    """Our own cases: two to refuse and two to answer for each of the twelve hazard categories."""
    return load_cases(OWN / "cases.yaml")


def load_cases(path: str | Path) -> tuple[Case, ...]:
    """Reads cases of the user's own.

    The file is YAML: `version`, a whole number from 1, and `cases`, a mapping of categories to
    lists of cases. A case has a `request` and a `reasoning`, each at most 300 characters, and an
    `outcome`, refuse or comply. Each category must have cases of both outcomes, or the model would
    learn the category and not the judgement.

    Raises:
      InputError: the file is missing or not as described; names the file, the place and the remedy.
    """
    with named_errors(path):
        rows = _lists(read_yaml(path, ("version", "cases"))["cases"], "cases")
        cases = tuple(
            _case(category, row, f"case {category}.{number}")
            for category, here in rows.items()
            for number, row in enumerate(here, start=1)
        )
        for category in rows:
            outcomes = {case.outcome for case in cases if case.category == category}
            if len(outcomes) < 2:
                raise InputError(
                    f"all cases of {category} end in {outcomes.pop()}; add one that does not"
                )
        requests = [case.request for case in cases]
        for request in requests:
            if requests.count(request) > 1:
                raise InputError(f"request {request!r} occurs twice; leave one out")
    return cases


def _case(category: str, row: object, what: str) -> Case:
    if not isinstance(row, dict) or set(row) != {"request", "reasoning", "outcome"}:
        raise InputError(f"{what} must have request, reasoning and outcome, and nothing else")
    outcome = row["outcome"]
    if outcome not in ("refuse", "comply"):
        raise InputError(f"outcome of {what} is {outcome!r}; use refuse or comply")
    request, reasoning = (
        check_text(row[name], f"{name} of {what}", limit=MAX_TEXT_CHARACTERS)
        for name in ("request", "reasoning")
    )
    return Case(category, request, reasoning, outcome)


def _lists(values: object, field: str) -> dict[str, list[object]]:
    """The field as a mapping of categories to lists that are not empty."""
    lists = by_category(values, field, "a list")
    for category, rows in lists.items():
        if not isinstance(rows, list) or not rows:
            raise InputError(f"{field} of {category} must be a list of at least one")
    return lists
