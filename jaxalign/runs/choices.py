"""Which objects flags choose, and where settings hold them: `--objective.surrogate clipped`.

A field whose type stands in `CHOICES`, or that may hold one of several dataclasses, is chosen by
the name of a class. The fields of one that is `FLAT` count as those of the dataclass it is in.
"""

import dataclasses
import functools
import json
import re
import typing
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar

import tyro

import jaxalign.engine as engine
from jaxalign.engine.optimizer import Decay
from jaxalign.host.errors import InputError

CHOICES: dict[Any, tuple[type, ...]] = {
    engine.Objective: (engine.GRPO, engine.PPO),
    engine.Advantages: (engine.Group, engine.WholeBatch, engine.Shrinkage, engine.LeaveOneOut),
    engine.Adjust: (engine.InverseFrequency, engine.PerTerm),
    engine.Surrogate: (engine.Clipped, engine.Cispo, engine.SoftGated),
    engine.Penalty: (engine.KL, engine.K2, engine.K3),
    engine.Aggregation: (
        engine.TokenMean,
        engine.SequenceMean,
        engine.SequenceSum,
        engine.Constant,
    ),
    engine.Keep: (engine.Finished, engine.Informative),
    engine.Optimizer: (engine.AdamW, engine.Adafactor),
    Decay: (engine.Linear, engine.Cosine),
}
"""What may stand in a field of each type."""

NONE = "none"

FLAT = tyro.conf.arg(name="")
"""Annotates a field with a dataclass whose flags stand beside those of the dataclass it is in."""

AnySettings = TypeVar("AnySettings")


def choose_objects(settings: Any, arguments: Sequence[str]) -> tuple[Any, list[str]]:
    """The settings with the objects that flags name, and the other flags."""
    rest = list(arguments)
    while True:
        choices = {f"--{choice.flag}": choice for choice in choosable(settings)}
        flags = [word.partition("=")[0].replace("_", "-") for word in rest]
        named = next((flag for flag in choices if flag in flags), None)
        if named is None:
            return settings, rest
        place = flags.index(named)
        flag, equals, name = rest.pop(place).partition("=")
        if not equals:
            if place == len(rest):
                raise InputError(f"{flag}: give the name of what you choose")
            name = rest.pop(place)
        settings = _choose(settings, name, choices[named])  # which has other choices below it


class Choice(NamedTuple):
    """A field that is chosen.

    Attributes:
      flag: its name, without dashes before it.
      path: where it is in the settings.
      classes: what may be chosen.
      optional: whether None will do.
    """

    flag: str
    path: tuple[str, ...]
    classes: tuple[type, ...]
    optional: bool


def choosable(settings: Any, above: str = "", path: tuple[str, ...] = ()) -> Iterator[Choice]:
    """Every field that is chosen, outer ones first.

    That is one of a type in `CHOICES`, or of several dataclasses, or of one or None.
    """
    for name, kinds, flat in fields_of(type(settings)):
        flag, value = above + name.replace("_", "-"), getattr(settings, name)
        ours: Any = tuple(kind for kind in kinds if dataclasses.is_dataclass(kind))
        known = [CHOICES[kind] for kind in kinds if kind in CHOICES]
        classes = known[0] if known else ours if len(kinds) > 1 else ()
        if classes:
            yield Choice(flag, (*path, name), classes, type(None) in kinds)
        if dataclasses.is_dataclass(value):
            yield from choosable(value, above if flat else f"{flag}.", (*path, name))


def fields_of(owner: Any) -> list[tuple[str, tuple[Any, ...], bool]]:
    """Name, types, and whether it is `FLAT`, of each field of a dataclass."""
    hints = typing.get_type_hints(owner, include_extras=True)
    found = []
    for field in dataclasses.fields(owner):
        hint, flat = hints[field.name], False
        if typing.get_origin(hint) is Annotated:
            hint, *more = typing.get_args(hint)
            flat = FLAT in more
        found.append((field.name, typing.get_args(hint) or (hint,), flat))
    return found


def flat_parts(settings: Any) -> Iterator[Any]:
    """The dataclasses in its `FLAT` fields, and those in theirs."""
    for name, _, flat in fields_of(type(settings)):
        if flat:
            yield (part := getattr(settings, name))
            yield from flat_parts(part)


def change(settings: AnySettings, **values: Any) -> AnySettings:
    """Settings with other values, by the names of the flags: also of what `FLAT` fields hold.

    Raises:
      ValueError: there is no such field.
    """
    changed = {name: values.pop(name) for name in list(values) if name in vars(settings)}
    for name, _, flat in fields_of(type(settings)):
        part = changed.get(name, getattr(settings, name))
        theirs = {key: values.pop(key) for key in list(values) if flat and _has(part, key)}
        if theirs:
            changed[name] = change(part, **theirs)
    if values:
        raise ValueError(f"{type(settings).__name__} has no {', '.join(values)}")
    return dataclasses.replace(settings, **changed)  # type: ignore[type-var]


def _has(part: Any, name: str) -> bool:
    return any(name in vars(one) for one in (part, *flat_parts(part)))


def flag_name(one: type) -> str:
    """`WholeBatch` is `whole-batch`, `K2` is `k2`, `AdamW` is `adamw`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "-", one.__name__).lower()


def _choose(settings: Any, name: str, choice: Choice) -> Any:
    """The settings with the object of that name: the present one if it has it, else a new one.

    A new one keeps the fields that it shares with the present one, such as an objective's surrogate
    or a KL's coefficient.
    """
    if choice.optional and name.lower() == NONE:
        return _replace(settings, choice.path, None)
    by_name = {flag_name(one): one for one in choice.classes}
    if name not in by_name:
        names = ", ".join([*by_name, *([NONE] if choice.optional else [])])
        raise InputError(f"--{choice.flag}: unknown value {name!r}; use one of {names}")
    present, wanted = at(settings, choice.path), by_name[name]
    if type(present) is wanted:
        return settings
    new = wanted()
    shared: dict[str, Any] = {}
    for part in (present, *flat_parts(present)) if dataclasses.is_dataclass(present) else ():
        shared |= {name: value for name, value in vars(part).items() if _has(new, name)}
    return _replace(settings, choice.path, change(new, **shared))


def at(settings: Any, path: tuple[str, ...]) -> Any:
    """What is at a `Choice.path`."""
    return functools.reduce(getattr, path, settings)


def _replace(settings: Any, path: tuple[str, ...], value: Any) -> Any:
    name, *below = path
    if below:
        value = _replace(getattr(settings, name), tuple(below), value)
    return dataclasses.replace(settings, **{name: value})


def to_json(settings: Any) -> dict[str, Any]:
    """The settings by the names of their flags, with paths as text, as `--settings` reads them."""
    found: dict[str, Any] = json.loads(json.dumps(_plain(settings, False), default=_text))
    return found


def _text(value: Any) -> Any:
    """A path as text; functions and other objects by name: addresses differ between processes."""
    if isinstance(value, functools.partial):
        return [value.func, *value.args, value.keywords]
    if type(value).__repr__ is object.__repr__:
        value = type(value)
    named = hasattr(value, "__qualname__")
    return f"{value.__module__}.{value.__qualname__}" if named else str(value)


def _plain(value: Any, chosen: bool) -> Any:
    """Dataclasses as dictionaries; one that was chosen by a flag says what it is."""
    if not dataclasses.is_dataclass(value):
        return value
    fields: dict[str, Any] = {"is": flag_name(type(value))} if chosen else {}  # type: ignore[arg-type]
    several = {choice.path[0] for choice in choosable(value) if len(choice.path) == 1}
    for name, _, flat in fields_of(type(value)):
        part = getattr(value, name)
        if flat:
            fields |= {name: flag_name(type(part))} if name in several else {}
            fields |= _plain(part, False)
        else:
            fields[name] = _plain(part, name in several)
    return fields
