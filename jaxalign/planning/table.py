"""Plans as a table for people and as JSON for programs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from jaxalign.planning.chips import GIB, chip_of
from jaxalign.planning.compiled_step import Phase, Plan


def plan_json(plan: Plan, topology: str, *, completions: int) -> dict[str, Any]:
    """A plan with its chip's figures and the times that follow from them.

    Args:
      plan: of one device.
      topology: such as `v5e:4x4`.
      completions: of a step, each of `max_new_tokens` tokens.
    """
    chip = chip_of(topology)

    def phase(phase: Phase) -> dict[str, Any]:
        return dataclasses.asdict(phase) | {"seconds": phase.seconds(chip)}

    return {
        "topology": topology,
        "mesh": dict(zip(("data", "fsdp", "tensor"), plan.mesh, strict=True)),
        "chip": {
            name: value for name, value in dataclasses.asdict(chip).items() if name != "slices"
        },
        "bytes_per_device": plan.memory | {"all": plan.bytes},
        "within_temporary": plan.within,
        "sampling": phase(plan.sampling),
        "update": phase(plan.update),
        "decoding_loop": [dataclasses.asdict(message) for message in plan.decoding_loop],
        "step_seconds_at_least": plan.step_seconds(chip),
        "completions": completions,
        "seconds_to_compile": plan.seconds_to_compile,
    }


def plan_table(plans: Mapping[str, Plan | str], title: str) -> Table:
    """One column for each topology; a text in place of a plan says why there is none."""
    table = Table(title=title)
    table.add_column("of each device")
    for topology in plans:
        table.add_column(topology, justify="right")

    def row(label: str, value: Any) -> None:
        cells = ["" if isinstance(p, str) else value(p, chip_of(t)) for t, p in plans.items()]
        table.add_row(label, *cells)

    row("mesh (data x fsdp x tensor)", lambda p, _: " x ".join(map(str, p.mesh)))
    for name in ("parameters", "optimizer", "frozen", "batch", "outputs", "program", "temporary"):
        row(f"{name}, GiB", lambda p, _, name=name: _gib(p.memory[name]))
    row("all, GiB", lambda p, chip: f"{_gib(p.bytes)} of {chip.memory / GIB:.0f}")
    for name in ("decoding_weights", "cache", "gradients"):
        label = name.replace("_", " ")
        row(f"of temporary: {label}, GiB", lambda p, _, name=name: _gib(p.within[name]))
    for name in ("sampling", "update"):
        row(f"{name}: TFLOP", lambda p, _, n=name: f"{getattr(p, n).flops / 1e12:.2f}")
        for kind in sorted(
            {k for p in plans.values() if not isinstance(p, str) for k in getattr(p, name).messages}
        ):
            row(
                f"{name}: {kind}, GB",
                lambda p, _, n=name, k=kind: _giga(getattr(p, n).messages.get(k, 0.0)),
            )
        for part in ("products", "memory", "messages"):
            row(
                f"{name}: {part}, s",
                lambda p, c, n=name, k=part: f"{getattr(p, n).seconds(c)[k]:.2f}",
            )
    row(
        "decoding a token: largest all-gather, MB",
        lambda p, _: f"{p.largest_gather_of_a_token / 1e6:.2f}",
    )
    row("step, s at least", lambda p, chip: f"{p.step_seconds(chip):.2f}")
    refused = [p if isinstance(p, str) else "fits" for p in plans.values()]
    table.add_row("", *refused)
    return table


def _gib(count: float) -> str:
    return f"{count / GIB:.2f}"


def _giga(count: float) -> str:
    return f"{count / 1e9:.2f}"
