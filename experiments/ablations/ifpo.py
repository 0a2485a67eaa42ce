"""GRPO against IFPO on a real model: how often does each kind of request consult, and what for?

    python -m experiments.ablations.ifpo
    python -m experiments.ablations.ifpo --seeds 5 --arms grpo weight-group --out runs/ifpo
    python -m experiments.ablations.ifpo -- --steps 30 --samples-per-prompt 8 --harmful 2 \
        --benign 1 --lookalike 1        # flags of experiments/ascl.py for every run

The rules are those of short_rules.yaml, so that a consultation takes few tokens (`-- --rules FILE`
takes others). One cold start of experiments/ascl.py serves all runs; then each arm trains from it
with each seed. A run that is there already is not repeated, and one that was cut short is resumed,
so the command can be stopped and given again. It writes, under --out: start/ (the cold start), one
run folder per arm and seed, results.json, table.md and consulting.png.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.ablations.command import run_command, run_once
from experiments.ablations.two_modes import plot_training
from experiments.ascl import main as ascl
from jaxalign.data import KINDS, builtin_prompts
from jaxalign.errors import InputError
from jaxalign.training.metrics import read_metrics
from jaxalign.training.run_folder import read_json, write_json

ARMS: dict[str, list[str]] = {
    "grpo": ["--ifpo", "none"],
    "weight-group": ["--ifpo", "weight", "--scope", "group"],
    "weight-group-capped": ["--ifpo", "weight", "--scope", "group", "--max-weight", "1.5"],
    "weight-batch": ["--ifpo", "weight", "--scope", "batch"],
    "baseline-group": ["--ifpo", "baseline", "--scope", "group"],
    "baseline-batch": ["--ifpo", "baseline", "--scope", "batch"],
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to compare."""

    out: Path = Path("runs/ifpo")
    """Folder of the comparison."""
    arms: tuple[str, ...] = tuple(ARMS)
    """Which arms."""
    seeds: int = 5
    """Runs of each arm."""
    heldout: int = 24
    """Held-out prompts of each kind, asked after each run."""
    last: int = 5
    """Steps at the end of a run that the table averages over."""


def main(settings: Settings, flags: Sequence[str]) -> None:
    """Runs what is missing, then writes the table and the plot."""
    for name in settings.arms:
        if name not in ARMS:
            raise InputError(f"unknown arm {name!r}: choose from {', '.join(ARMS)}")
    settings.out.mkdir(parents=True, exist_ok=True)
    comparison = {"flags": list(flags), "heldout": settings.heldout}
    kept = settings.out / "comparison.json"
    if kept.exists() and read_json(kept) != comparison:
        raise InputError(
            f"{kept} is of other flags or held-out prompts: give those, or another --out"
        )
    write_json(kept, comparison)
    heldout = settings.out / "heldout.jsonl"
    heldout.write_text(
        "".join(
            json.dumps({"prompt": prompt.text, "kind": kind, "id": prompt.id}) + "\n"
            for kind in KINDS
            for prompt in [p for p in builtin_prompts("heldout") if p.kind == kind][
                : settings.heldout
            ]
        )
    )
    rules = str(Path(__file__).with_name("short_rules.yaml"))
    common = ["--baseline", "group", "--rules", rules, *flags, "--heldout", str(heldout)]
    start = settings.out / "start"
    if not (start / "cold_start").exists():
        perform(start, [*common, "--steps", "1"])
    from_start = ["--model", str(start / "cold_start"), "--cold-start-rounds", "0"]
    # Seeds in the outer loop: a comparison that is stopped has as many runs of each arm.
    for seed in range(settings.seeds):
        for name in settings.arms:
            run = settings.out / f"{name}-{seed}"
            if not (run / "summary.json").exists():
                print(f"\n=== {name}, seed {seed}")
                perform(run, [*common, *from_start, *ARMS[name], "--seed", str(seed)])
    report(settings)


def perform(run: Path, arguments: Sequence[str]) -> None:
    """One run of experiments/ascl.py."""
    if not run_once(ascl, ["smollm2", *arguments], run):
        raise InputError(f"{run}: diverged: lower the learning rate")


def report(settings: Settings) -> None:
    """Writes results.json, table.md and consulting.png from the runs that are there."""
    metrics = {
        name: [read_metrics(settings.out / f"{name}-{seed}") for seed in range(settings.seeds)]
        for name in settings.arms
    }
    measures = (
        *(f"{kind}_consulted" for kind in KINDS),
        *(f"{kind}_refused" for kind in KINDS),
        "well_formed",
        "reward",
    )
    results: dict[str, Any] = {}
    for name, runs in metrics.items():
        trained = {
            measure: spread([mean([row[measure] for row in run[-settings.last :]]) for run in runs])
            for measure in measures
        }
        after = [
            read_json(settings.out / f"{name}-{seed}" / "summary.json")["after"]
            for seed in range(settings.seeds)
        ]
        held = {
            measure: spread([row[measure] for row in after])
            for measure in measures
            if measure in after[0]
        }
        results[name] = {"trained": trained, "heldout": held}
    write_json(settings.out / "results.json", results)
    lines = []
    for part, title in (
        ("trained", f"Samples of the last {settings.last} steps"),
        ("heldout", "Held-out prompts after training, greedy"),
    ):
        names = list(next(iter(results.values()))[part])
        header = ["arm", *(measure.replace("_", " ") for measure in names)]
        lines += [f"\n{title}:\n", f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
        for name, result in results.items():
            cells = [f"{m:.2f} ± {s:.2f}" for m, s in result[part].values()]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    (settings.out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    rates = {
        name: np.array(
            [[[row[f"{kind}_consulted"] for kind in KINDS] for row in run] for run in runs],
            float,  # a step without prompts of a kind has None: NaN
        )
        for name, runs in metrics.items()
    }
    plot_training(rates, settings.out / "consulting.png")


def mean(values: Sequence[float | None]) -> float:
    """Mean of the numbers there are."""
    return float(np.mean([value for value in values if value is not None]))


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and deviation over seeds; the deviation of one seed is 0."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


if __name__ == "__main__":
    run_command("ifpo", Settings, main, __doc__)
