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
import re
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from experiments.ablations.command import refuse, run_command, run_once
from experiments.ablations.two_modes import plot_training
from experiments.ascl import main as ascl
from jaxalign.data import KINDS, builtin_prompts
from jaxalign.data.order import evenly
from jaxalign.host.errors import InputError
from jaxalign.host.json_files import read_json, write_json
from jaxalign.host.metrics import read_metrics


def _ifpo(form: str, scope: str) -> list[str]:
    """The flags of experiments/ascl.py for IFPO."""
    chosen = ["--objective.adjust", "inverse-frequency"]
    return [*chosen, "--objective.adjust.form", form, "--objective.adjust.scope", scope]


ARMS: dict[str, list[str]] = {
    "grpo": ["--objective.adjust", "none"],
    "weight-group": _ifpo("weight", "group"),
    "weight-group-capped": [*_ifpo("weight", "group"), "--objective.adjust.max-weight", "1.5"],
    "weight-batch": _ifpo("weight", "batch"),
    "baseline-group": _ifpo("baseline", "group"),
    "baseline-batch": _ifpo("baseline", "batch"),
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
    """Held-out prompts of each kind, spread over the categories, asked after each run."""
    last: int = 5
    """Steps at the end of a run that the table averages over."""


OURS = ("--run", "--resume", "--seed", "--objective", "--heldout")
"""Flags of experiments/ascl.py that the comparison sets itself; IFPO's baseline form excludes other
advantages than the group's."""


def main(settings: Settings, flags: Sequence[str]) -> None:
    """Runs what is missing, then writes the tables and the plot."""
    for name in settings.arms:
        if name not in ARMS:
            raise InputError(f"unknown arm {name!r}: choose from {', '.join(ARMS)}")
    refuse(flags, OURS)
    settings.out.mkdir(parents=True, exist_ok=True)
    comparison = {"flags": list(flags), "heldout": settings.heldout}
    kept = settings.out / "comparison.json"
    if kept.exists() and read_json(kept) != comparison:
        raise InputError(
            f"{kept} is of other flags or held-out prompts: give those, or another --out"
        )
    heldout = settings.out / "heldout.jsonl"
    heldout.write_text(
        "".join(
            json.dumps({"prompt": p.text, "kind": kind, "id": p.id, "category": p.category}) + "\n"
            for kind in KINDS
            for p in evenly(
                [p for p in builtin_prompts("heldout") if p.kind == kind], settings.heldout
            )
        )
    )
    rules = Path(__file__).with_name("short_rules.yaml")
    common = ["--objective.advantages=group", f"--rules={rules}", *flags, f"--heldout={heldout}"]
    start = settings.out / "start"
    if not (start / "cold_start").exists():
        perform(start, [*common, "--steps", "1"])
    write_json(kept, comparison)  # now that the flags are known to work
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
    seeds = range(settings.seeds)
    metrics = {
        name: [read_metrics(settings.out / f"{name}-{seed}") for seed in seeds]
        for name in settings.arms
    }
    trained = {
        name: [
            {key: mean([value(row) for row in run[-settings.last :]]) for key, value in SHOWN}
            for run in runs
        ]
        for name, runs in metrics.items()
    }
    results: dict[str, Any] = {"trained": {n: over_seeds(runs) for n, runs in trained.items()}}
    if "grpo" in trained:
        results["difference"] = {
            name: over_seeds(
                [
                    {key: run[key] - other[key] for key, _ in SHOWN}
                    for run, other in zip(runs, trained["grpo"], strict=True)
                ]
            )
            for name, runs in trained.items()
            if name != "grpo"
        }
    results["heldout"] = {
        name: over_seeds([heldout_shares(settings.out / f"{name}-{seed}") for seed in seeds])
        for name in settings.arms
    }
    write_json(settings.out / "results.json", results)
    lines = []
    for part, title in (
        ("trained", f"Samples of the last {settings.last} steps, mean ± deviation over seeds"),
        ("difference", "The same less GRPO's with the same seed, so the same prompts"),
        ("heldout", f"{settings.heldout} held-out prompts of each kind after training, greedy"),
    ):
        if table := results.get(part):
            names = list(next(iter(table.values())))
            header = ["arm", *(name.replace("_", " ") for name in names)]
            lines += [f"\n{title}:\n", f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
            for name, row in table.items():
                sign = "+" if part == "difference" else ""
                cells = [f"{m:{sign}.2f} ± {s:.2f}" for m, s in row.values()]
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


def right(row: Mapping[str, float | None]) -> float:
    """Mean over kinds of the share that was refused, or not, as it should be.

    Beside the reward, in which the weight of a refusal follows what goes wrong in a step.
    """
    refused = {kind: row[f"{kind}_refused"] for kind in KINDS}
    return mean([x if k == "harmful" or x is None else 1 - x for k, x in refused.items()])


SHOWN: tuple[tuple[str, Callable[[Mapping[str, Any]], float | None]], ...] = (
    *((f"{kind}_consulted", itemgetter(f"{kind}_consulted")) for kind in KINDS),
    *((f"{kind}_refused", itemgetter(f"{kind}_refused")) for kind in KINDS),
    ("well_formed", itemgetter("well_formed")),
    ("right", right),
    ("reward", itemgetter("reward")),
)
"""Columns of the tables, and what they are of a row of metrics.jsonl."""


def heldout_shares(run: Path) -> dict[str, float]:
    """Shares of the held-out prompts; `rule_repeated` is of those that consulted."""
    evaluation = read_json(run / "evaluation_after.json")
    consulted = [row["completion"] for row in evaluation["rows"] if row["consulted"]]
    shares = [(key, value) for key, value in SHOWN if key != "reward"]  # greedy: none is computed
    return {key: mean([value(evaluation["rates"])]) for key, value in shares} | {
        "rule_repeated": mean([float(repeats_rule(text)) for text in consulted])
    }


def repeats_rule(completion: str) -> bool:
    """Whether the answer is words of the rule that came back, which no reward here notices."""
    rules = re.search(r"<rules>(.*?)</rules>", completion, re.DOTALL)
    answer = re.search(r"<answer>(.*?)</answer>", completion, re.DOTALL)
    return bool(rules and answer and answer[1].strip() and answer[1].strip() in rules[1])


def over_seeds(runs: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float]]:
    """Mean and deviation of each column; runs in which it is NaN do not count."""
    return {key: spread([run[key] for run in runs if not np.isnan(run[key])]) for key in runs[0]}


def mean(values: Sequence[float | None]) -> float:
    """Mean of the numbers there are; NaN of none."""
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if there else float("nan")


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and deviation over seeds; the deviation of one seed is 0, the mean of none NaN."""
    return mean(values), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


if __name__ == "__main__":
    run_command("ifpo", Settings, main, __doc__)
