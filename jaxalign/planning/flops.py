"""Floating-point operations of a traced program, loops counted as often as they run."""

import math
from collections.abc import Iterator
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


def count_flops(jaxpr: Any, *, loop_trips: int, inside: str | None = None) -> float:
    """FLOPs of the matrix products of a program, 2·M·N·K each, of all devices together.

    What the backward pass recomputes counts as often as it runs. Loops of known length (`scan`) are
    exact; a `while` loop is taken to run `loop_trips` times; of a `cond` the dearest branch counts.
    With `inside` only what is within calls of the jitted function of this name counts. The program
    is such as `jax.jit(f).trace(*arguments).jaxpr`.
    """
    total = 0.0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        kind, parameters = equation.primitive.name, equation.params
        within = None if parameters.get("name") == inside else inside
        if kind == "dot_general" and inside is None:
            total += _product(equation)
        parts = [
            count_flops(part, loop_trips=loop_trips, inside=within) for part in _parts(parameters)
        ]
        if not parts:
            continue
        if kind == "cond":
            total += max(parts)
        else:
            if kind == "scan":
                times = parameters["length"]
            elif kind == "while":
                times = loop_trips
            else:  # what `shard_map` calls works on one device's part
                times = parameters["mesh"].size if kind == "shard_map" else 1
            total += times * sum(parts)
    return total


def _product(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    depth = math.prod(left[axis] for axis in contracted)
    return 2.0 * depth * math.prod(equation.outvars[0].aval.shape)


def _parts(parameters: dict[str, Any]) -> Iterator[Any]:
    """The programs that an equation calls."""
    for value in parameters.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, Jaxpr | ClosedJaxpr):
                yield part
