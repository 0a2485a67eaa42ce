"""Dataclasses that check themselves: what a field may be is annotated at it."""

import contextlib
import contextvars
import functools
import math
import numbers
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NamedTuple

from jaxalign.host.errors import InputError


class Rule(NamedTuple):
    """What a value may be, and what is said of one that it may not be."""

    allows: Callable[[Any], bool]
    otherwise: str


def at_least(smallest: int, more: str = "") -> Rule:
    """Of whole numbers."""
    return Rule(lambda x: x >= smallest, f"is too small: at least {smallest}{more}")


INT32 = Rule(lambda x: x < 2**31, f"is too large: at most {2**31 - 1}")

Count = Annotated[int, at_least(1), INT32]
Natural = Annotated[int, at_least(0), INT32]
Positive = Annotated[float, Rule(lambda x: 0 < x < math.inf, "must be a number above 0")]
Weight = Annotated[float, Rule(lambda x: 0 <= x < math.inf, "must be a number, 0 or above")]
Share = Annotated[float, Rule(lambda x: 0 <= x <= 1, "must be from 0 to 1")]
BelowOne = Annotated[float, Rule(lambda x: 0 <= x < 1, "must be from 0 to below 1")]

_KINDS = {
    int: Rule(
        lambda x: isinstance(x, numbers.Integral) and not isinstance(x, bool),
        "must be a whole number",
    ),
    float: Rule(lambda x: isinstance(x, numbers.Real), "must be a number"),
}


class Checked:
    """A dataclass whose annotated fields are checked when it is made.

    Raises:
      InputError: names the class, the field and what it may be.
    """

    def __post_init__(self) -> None:
        if not _LATER.get():
            self.check_fields(f"{type(self).__name__}.")

    def check_fields(self, above: str) -> None:
        """Raises an `InputError` for what may not be; `above` goes before a field's name."""
        owner: Any = type(self)
        for name, rules, optional in _rules(owner):
            value = getattr(self, name)
            for rule in () if value is None and optional else rules:
                if not rule.allows(value):
                    raise InputError(f"{above}{name}={value} {rule.otherwise}")


_LATER = contextvars.ContextVar("checked later", default=False)


@contextlib.contextmanager
def checked_later() -> Iterator[None]:
    """Within it nothing is checked when it is made, for what calls `check_fields` itself."""
    token = _LATER.set(True)
    try:
        yield
    finally:
        _LATER.reset(token)


@functools.cache
def _rules(owner: type) -> list[tuple[str, list[Rule], bool]]:
    """Of each annotated field its name, its rules, and whether it may be None."""
    found = []
    for name, hint in typing.get_type_hints(owner, include_extras=True).items():
        parts = (hint, *typing.get_args(hint))  # such as of `Count | None`
        for base, *more in filter(None, map(typing.get_args, parts)):
            if rules := [x for x in more if type(x) is Rule]:
                kind = [_KINDS[base]] if base in _KINDS else []
                found.append((name, kind + rules, type(None) in parts))
    return found
