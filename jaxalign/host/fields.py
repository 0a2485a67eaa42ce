"""Dataclasses that check themselves: what a field may be is annotated at it."""

import contextlib
import contextvars
import functools
import math
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


Count = Annotated[int, at_least(1)]
Natural = Annotated[int, at_least(0)]
Positive = Annotated[float, Rule(lambda x: 0 < x < math.inf, "must be a number above 0")]
Weight = Annotated[float, Rule(lambda x: 0 <= x < math.inf, "must be a number, 0 or above")]
Share = Annotated[float, Rule(lambda x: 0 <= x <= 1, "must be from 0 to 1")]
BelowOne = Annotated[float, Rule(lambda x: 0 <= x < 1, "must be from 0 to below 1")]


class Checked:
    """A dataclass whose fields are checked when it is made; None passes.

    Raises:
      InputError: names the class, the field and what it may be.
    """

    def __post_init__(self) -> None:
        if not _LATER.get():
            self.check_fields(f"{type(self).__name__}.")

    def check_fields(self, above: str) -> None:
        """Raises an `InputError` for what may not be; `above` goes before a field's name."""
        owner: Any = type(self)
        for name, rules in _rules(owner).items():
            value = getattr(self, name)
            for rule in rules if value is not None else ():
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
def _rules(owner: type) -> dict[str, list[Rule]]:
    hints = typing.get_type_hints(owner, include_extras=True)
    found = {name: (hint, *typing.get_args(hint)) for name, hint in hints.items()}
    return {
        name: [rule for x in parts for rule in getattr(x, "__metadata__", ()) if type(rule) is Rule]
        for name, parts in found.items()
    }
