"""Settings from the command line: flags, a file of them, and what a run's config.json says.

    alphaalign.py demo --objective.surrogate clipped --objective.surrogate.high 0.28
    alphaalign.py demo --objective ppo --objective.value-clip None
    alphaalign.py demo --settings runs/mine/config.json --run runs/again

What is chosen (`jaxalign.runs.choices`) comes with flags of its own, which tyro makes of its
fields. Flags may stand in any order.
"""

import dataclasses
import typing
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import tyro

from jaxalign.data.yaml_files import load_yaml, named_errors
from jaxalign.host.colors import NO_COLOR
from jaxalign.host.errors import InputError
from jaxalign.host.fields import Checked, checked_later
from jaxalign.runs.choices import (
    NONE,
    at,
    choosable,
    choose_objects,
    fields_of,
    flag_name,
    to_json,
)

FILE_FLAG = "--settings"

AnySettings = TypeVar("AnySettings")


def parse_flags(settings: AnySettings, arguments: Sequence[str], *, prog: str) -> AnySettings:
    """Settings with those of a file that `--settings` names on top, and flags on top of that.

    The file is YAML or JSON and gives settings by the names of their flags; a run's config.json is
    one.

    Args:
      settings: a dataclass with the defaults.
      arguments: the flags.
      prog: the command's name in messages.

    Raises:
      InputError: a choice that there is not, a value that may not be, or a file that can't be read
        or names what is no setting.
      SystemExit: tyro's, after help or a message on a flag.
    """
    rest = list(arguments)
    place = next((i for i, word in enumerate(rest) if word.split("=")[0] == FILE_FLAG), None)
    if place is not None:
        flag, equals, name = rest.pop(place).partition("=")
        if not equals:
            if place == len(rest):
                raise InputError(f"{flag}: give a file, such as a run's config.json")
            name = rest.pop(place)
        with named_errors(name):
            words = _words_of(settings, load_yaml(name))
            try:
                settings = _parse(settings, words, prog)
            except SystemExit:
                raise InputError("what is said above is of this file: correct it there") from None
    return _parse(settings, rest, prog)


def _parse(settings: AnySettings, arguments: Sequence[str], prog: str) -> AnySettings:
    with checked_later():  # what is chosen last counts, and tyro would frame what is said
        chosen, rest = choose_objects(settings, arguments)
        about = (type(chosen).__doc__ or "").strip()
        parsed = tyro.cli(
            type(chosen),
            prog=prog,
            description=f"{about}\n\n{describe_choices(chosen)}\n\n{NO_COLOR}",
            default=chosen,
            args=rest,
            config=(tyro.conf.AvoidSubcommands, tyro.conf.SuppressFixed),
            registry=_REGISTRY,
        )
    _check(parsed, "")
    return parsed


def _check(value: Any, above: str) -> None:
    if isinstance(value, Checked):
        value.check_fields(above)
    for name, _, flat in fields_of(type(value)) if dataclasses.is_dataclass(value) else ():
        _check(getattr(value, name), above if flat else f"{above}{name}.")


_REGISTRY = tyro.constructors.ConstructorRegistry()


@_REGISTRY.struct_rule
def _flags_of_optional(info: tyro.constructors.StructTypeInfo) -> Any:
    """Gives an optional field, such as `kl: Penalty | None`, the flags of what it holds."""
    if not typing.get_args(info.type) or not dataclasses.is_dataclass(info.default):
        return None
    held = dataclasses.replace(info, type=type(info.default))
    return tyro.constructors.ConstructorRegistry.get_struct_spec(held)


def _words_of(settings: Any, given: Any) -> list[str]:
    """The flags for what a file gives, but for what is so in the settings already."""
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise InputError("must give settings by name, as a run's config.json does")
    if "run_format" in given:  # of a run, with facts of it
        given = {key: x for key, x in given.items() if key not in ("run_format", "facts", "resume")}
    present, named = to_json(settings), [key.replace("-", "_") for key in given]
    classes = [one for choice in choosable(settings) for one in choice.classes]
    known = present.keys() | {name for one in classes for name in _names(one)}
    flat = {name for name, _, flat in fields_of(type(settings)) if flat}
    for name in named:
        if name in flat - known:
            raise InputError(f"{name}: leave the name out, and write what is in it by itself")
        if name not in known:
            nested = "; write what is behind a dot nested, as in objective: {discount: 0.9}"
            raise InputError(f"{name} is no setting; --help lists them{nested * ('.' in name)}")
        if named.count(name) > 1:
            raise InputError(f"{name} is given twice: give it once")
    words = [
        _words(f"--{name}", value)
        for name, value in zip(named, given.values(), strict=True)
        if name not in present or value != present[name]
    ]
    return sum(words, [])


def _names(owner: type) -> Iterator[str]:
    """The names of the fields of a dataclass and of those that are `FLAT` in it."""
    for name, kinds, flat in fields_of(owner):
        yield name
        for kind in kinds if flat else ():
            yield from _names(kind)


def _words(flag: str, value: Any) -> list[str]:
    """The flags that give a value of a file."""
    if isinstance(value, dict):
        chosen = [flag, str(value["is"])] if "is" in value else []
        more = [_words(f"{flag}.{key}", part) for key, part in value.items() if key != "is"]
        return sum(more, chosen)
    if isinstance(value, bool):
        above, dot, name = flag.removeprefix("--").rpartition(".")
        return [f"--{above}{dot}{'' if value else 'no-'}{name}"]
    if isinstance(value, list) and len(value) != 1:
        if any(str(part).startswith("-") for part in value):
            raise InputError(f"{flag[2:]}: of several values none may begin with a dash")
        return [flag, *map(str, value)]
    value = value[0] if isinstance(value, list) else value  # which may begin with a dash
    return [f"{flag}={value}"]


def describe_choices(settings: Any) -> str:
    """What can be chosen, for the help."""
    lines = [
        f"{FILE_FLAG} FILE reads settings from YAML, or a run's config.json; flags go over it.",
        "",
        "Flags that choose, each of which brings flags of its own:",
    ]
    for choice in choosable(settings):
        names = [flag_name(one) for one in choice.classes] + [NONE] * choice.optional
        present = at(settings, choice.path)
        chosen = NONE if present is None else flag_name(type(present))
        lines.append(f"  --{choice.flag} {{{','.join(names)}}} (default: {chosen})")
    return "\n".join(lines)
