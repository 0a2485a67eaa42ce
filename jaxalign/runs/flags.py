"""Command-line flags that choose objects: `--objective.surrogate clipped` and then its fields.

    alphaalign.py demo --objective.surrogate clipped --objective.surrogate.high 0.28
    alphaalign.py demo --objective ppo --objective.value-clip None

A field whose type stands in `CHOICES` is chosen by the name of a class; what is chosen comes with
flags of its own, which tyro makes of its fields. Flags may stand in any order.
"""

import dataclasses
import functools
import re
import typing
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

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
    Decay: (engine.Linear, engine.Cosine),
}
"""What may stand in a field of each type."""

NONE = "none"

AnySettings = TypeVar("AnySettings")


def parse_flags(settings: AnySettings, arguments: Sequence[str], *, prog: str) -> AnySettings:
    """Settings with flags on top.

    Args:
      settings: a dataclass with the defaults.
      arguments: the flags.
      prog: the command's name in messages.

    Raises:
      InputError: a choice that there is not.
      SystemExit: tyro's, after help or a message on a flag.
    """
    chosen, rest = choose_objects(settings, arguments)
    return tyro.cli(
        type(chosen),
        prog=prog,
        description=f"{(type(chosen).__doc__ or '').strip()}\n\n{describe_choices(chosen)}",
        default=chosen,
        args=rest,
        config=(tyro.conf.AvoidSubcommands, tyro.conf.SuppressFixed),
        registry=_REGISTRY,
    )


_REGISTRY = tyro.constructors.ConstructorRegistry()


@_REGISTRY.struct_rule
def _flags_of_optional(info: tyro.constructors.StructTypeInfo) -> Any:
    """Gives an optional field, such as `kl: Penalty | None`, the flags of what it holds."""
    if not typing.get_args(info.type) or not dataclasses.is_dataclass(info.default):
        return None
    held = dataclasses.replace(info, type=type(info.default))
    return tyro.constructors.ConstructorRegistry.get_struct_spec(held)


def choose_objects(settings: Any, arguments: Sequence[str]) -> tuple[Any, list[str]]:
    """The settings with the objects that flags name, and the other flags."""
    rest = list(arguments)
    while True:
        choices = {f"--{choice[0]}": choice for choice in choosable(settings)}
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
        settings = _choose(settings, name, *choices[named])  # which has other choices below it


def choosable(settings: Any, above: str = "") -> Iterator[tuple[str, tuple[type, ...], bool]]:
    """Path, classes and whether None will do, of every field that is chosen; outer ones first."""
    hints = typing.get_type_hints(type(settings))
    for field in dataclasses.fields(settings):
        kinds = typing.get_args(hints[field.name]) or (hints[field.name],)
        path, value = above + field.name.replace("_", "-"), getattr(settings, field.name)
        for kind in kinds:
            if isinstance(kind, type) and kind in CHOICES:
                yield path, CHOICES[kind], type(None) in kinds
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            yield from choosable(value, f"{path}.")


def describe_choices(settings: Any) -> str:
    """What can be chosen, for the help."""
    lines = ["Flags that choose, each of which brings flags of its own:"]
    for path, classes, optional in choosable(settings):
        names = [flag_name(one) for one in classes] + [NONE] * optional
        present = _at(settings, path)
        chosen = NONE if present is None else flag_name(type(present))
        lines.append(f"  --{path} {{{','.join(names)}}} (default: {chosen})")
    return "\n".join(lines)


def flag_name(one: type) -> str:
    """`WholeBatch` is `whole-batch`, `K2` is `k2`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", one.__name__).lower()


def _choose(settings: Any, name: str, path: str, classes: tuple[type, ...], optional: bool) -> Any:
    """The settings with the object of that name: the present one if it has it, else a new one.

    A new one keeps the fields that it shares with the present one, such as an objective's surrogate
    or a KL's coefficient.
    """
    if optional and name.lower() == NONE:
        return _replace(settings, path, None)
    by_name = {flag_name(one): one for one in classes}
    if name not in by_name:
        names = ", ".join([*by_name, *([NONE] if optional else [])])
        raise InputError(f"--{path}: unknown value {name!r}; use one of {names}")
    present, wanted = _at(settings, path), by_name[name]
    if type(present) is wanted:
        return settings
    fields: Any = dataclasses.fields(wanted)  # type: ignore[arg-type]
    kept = {f.name: getattr(present, f.name) for f in fields if hasattr(present, f.name)}
    return _replace(settings, path, wanted(**kept))


def _at(settings: Any, path: str) -> Any:
    return functools.reduce(getattr, path.replace("-", "_").split("."), settings)


def _replace(settings: Any, path: str, value: Any) -> Any:
    name, _, below = path.partition(".")
    name = name.replace("-", "_")
    if below:
        value = _replace(getattr(settings, name), below, value)
    return dataclasses.replace(settings, **{name: value})
