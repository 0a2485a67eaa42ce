"""Plans as a table for people and as JSON for programs."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from jaxalign.planning.chips import GIB, Chip, chip_of
from jaxalign.planning.compiled_step import Phase, Plan


def plan_json(plan: Plan, topology: str, *, completions: int) -> dict[str, Any]:
    """A plan of one device with the figures of its chip and the times that follow from them.

    A step has so many completions, each of `max_new_tokens` tokens.
    """
    chip = chip_of(topology)

    def phase(phase: Phase) -> dict[str, Any]:
        return dataclasses.asdict(phase) | {"seconds": phase.seconds(chip)}

    return {
        "topology": topology,
        "mesh": dict(zip(("data", "fsdp", "tensor"), plan.mesh, strict=True)),
        "chip": {name: x for name, x in dataclasses.asdict(chip).items() if name != "slices"},
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
    made = [plan for plan in plans.values() if not isinstance(plan, str)]
    kinds = {
        name: sorted({kind for plan in made for kind in getattr(plan, name).messages})
        for name in ("sampling", "update")
    }
    columns = [
        {} if isinstance(plan, str) else _column(plan, chip_of(topology), kinds)
        for topology, plan in plans.items()
    ]
    for label in dict.fromkeys(label for column in columns for label in column):
        table.add_row(label, *(column.get(label, "") for column in columns))
    table.add_row("", *(plan if isinstance(plan, str) else "fits" for plan in plans.values()))
    return table


def _column(plan: Plan, chip: Chip, kinds: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The cells of a plan by their labels; `kinds` of messages in sampling and update."""
    cells = {"mesh (data x fsdp x tensor)": " x ".join(map(str, plan.mesh))}
    cells |= {f"{name}, GiB": f"{size / GIB:.2f}" for name, size in plan.memory.items()}
    cells["all, GiB"] = f"{plan.bytes / GIB:.2f} of {chip.memory / GIB:.0f}"
    for name, size in plan.within.items():
        cells[f"of temporary: {name.replace('_', ' ')}, GiB"] = f"{size / GIB:.2f}"
    for name, its_kinds in kinds.items():
        phase = getattr(plan, name)
        cells[f"{name}: TFLOP"] = f"{phase.flops / 1e12:.2f}"
        for kind in its_kinds:
            cells[f"{name}: {kind}, GB"] = f"{phase.messages.get(kind, 0.0) / 1e9:.2f}"
        cells |= {f"{name}: {part}, s": f"{x:.2f}" for part, x in phase.seconds(chip).items()}
    largest = plan.largest_gather_of_a_token
    cells["decoding a token: largest all-gather, MB"] = f"{largest / 1e6:.2f}"
    return cells | {"step, s at least": f"{plan.step_seconds(chip):.2f}"}
