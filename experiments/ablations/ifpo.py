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
import itertools
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.ablations import comparison
from experiments.ablations.comparison import Point
from experiments.ablations.two_modes import plot_training
from experiments.ascl import main as ascl
from jaxalign.data import KINDS, builtin_prompts
from jaxalign.evaluation.measure import summary
from jaxalign.evaluation.probes import own_text
from jaxalign.host.command import run_command
from jaxalign.host.errors import InputError
from jaxalign.host.json_files import read_json, write_json
from jaxalign.host.markdown import markdown_table
from jaxalign.host.metrics import read_metrics
from jaxalign.reports.evaluation_folder import read_evaluation
from jaxalign.rewards.parts import RULE_TAGS, split


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


OURS = ("--run", "--resume", "--seed", "--seeds", "--objective", "--heldout")
"""Flags of experiments/ascl.py that the comparison sets itself; IFPO's baseline form excludes other
advantages than the group's."""


def main(settings: Settings, flags: Sequence[str]) -> None:
    """Runs what is missing, then writes the tables and the plot."""
    comparison.check(settings, tuple(ARMS), flags, ours=OURS, counts="")
    settings.out.mkdir(parents=True, exist_ok=True)
    shared = {"flags": list(flags), "heldout": settings.heldout}
    kept = settings.out / "comparison.json"
    if kept.exists() and read_json(kept) != shared:
        raise InputError(
            f"{kept} is of other flags or held-out prompts: give those, or another --out"
        )
    heldout = settings.out / "heldout.jsonl"
    prompts = comparison.of_each_kind(builtin_prompts("heldout"), settings.heldout)
    rows = [{"prompt": p.text, "kind": p.kind, "id": p.id, "category": p.category} for p in prompts]
    heldout.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rules = Path(__file__).with_name("short_rules.yaml")
    common = ["--objective.advantages=group", f"--rules={rules}", *flags, f"--heldout={heldout}"]
    start = settings.out / "start"
    if not (start / "cold_start").exists():
        perform(start, [*common, "--steps", "1"])
    write_json(kept, shared)  # now that the flags are known to work
    from_start = ["--model", str(start / "cold_start"), "--cold-start", "none"]
    common = comparison.flags_but(common, lambda name: name == "cold_start")
    # Seeds in the outer loop: a comparison that is stopped has as many runs of each arm.
    for seed, arm in itertools.product(range(settings.seeds), settings.arms):
        run = settings.out / Point(arm, seed=seed).name
        if not (run / "summary.json").exists():
            print(f"\n=== {arm}, seed {seed}")
            perform(run, [*common, *from_start, *ARMS[arm], "--seed", str(seed)])
    report(settings)


def perform(run: Path, arguments: Sequence[str]) -> None:
    """One run of experiments/ascl.py."""
    if not comparison.run_once(ascl, ["smollm2", *arguments], run):
        raise InputError(f"{run}: diverged: lower the learning rate")


COLUMNS = (
    *(f"{kind}_{what}" for what in ("consulted", "refused") for kind in KINDS),
    *("well_formed", "right", "reward"),
)
"""Of the tables, from rows of metrics.jsonl."""


def report(settings: Settings) -> None:
    """Writes results.json, table.md and consulting.png from the runs that are there."""
    runs = {
        arm: [settings.out / Point(arm, seed=seed).name for seed in range(settings.seeds)]
        for arm in settings.arms
    }
    metrics = {arm: [read_metrics(run) for run in each] for arm, each in runs.items()}
    trained = {
        arm: nan_mean([[shares(row) for row in run[-settings.last :]] for run in each], axis=1)
        for arm, each in metrics.items()
    }
    grpo = trained.get("grpo")
    less = {arm: x - grpo for arm, x in trained.items() if grpo is not None and arm != "grpo"}
    heldout = {arm: np.array([heldout_shares(run) for run in each]) for arm, each in runs.items()}
    asked = (*COLUMNS[:-1], "rule_repeated")  # greedy answers: no reward is computed
    values = {"trained": trained, "difference": less, "heldout": heldout}
    titles = {
        "trained": f"Samples of the last {settings.last} steps, mean ± deviation over seeds",
        "difference": "The same less GRPO's with the same seed, so the same prompts",
        "heldout": f"{settings.heldout} held-out prompts of each kind after training, greedy",
    }
    results: dict[str, Any] = {}
    tables = []
    for part in (part for part in values if values[part]):
        columns = asked if part == "heldout" else COLUMNS
        results[part] = {
            arm: dict(zip(columns, over_seeds(x), strict=True)) for arm, x in values[part].items()
        }
        sign = "+" if part == "difference" else ""
        lines = [
            [arm, *(f"{mean:{sign}.2f} ± {deviation:.2f}" for mean, deviation in row.values())]
            for arm, row in results[part].items()
        ]
        head = ["arm", *(name.replace("_", " ") for name in columns)]
        tables.append(f"\n{titles[part]}:\n\n{markdown_table(head, lines)}")
    write_json(settings.out / "results.json", results)
    (settings.out / "table.md").write_text("".join(tables))
    print("".join(tables), end="")
    # A step without prompts of a kind has None: NaN.
    consulted = [COLUMNS.index(f"{kind}_consulted") for kind in KINDS]
    rates = {
        arm: np.array([[shares(row) for row in run] for run in each], float)[:, :, consulted]
        for arm, each in metrics.items()
    }
    plot_training(rates, settings.out / "consulting.png")


def shares(row: Mapping[str, Any]) -> list[float | None]:
    """`COLUMNS` of a row of metrics or of an evaluation's rates; None of what is not there.

    `right` is the mean over kinds of the share that was refused, or not, as it should be: beside
    the reward, in which the weight of a refusal follows what goes wrong in a step.
    """
    refused = np.array([row[f"{kind}_refused"] for kind in KINDS], float)
    right = np.where([kind == "harmful" for kind in KINDS], refused, 1 - refused)
    return [row.get(name) for name in COLUMNS[:-2]] + [nan_mean(right), row.get("reward")]


def heldout_shares(run: Path) -> list[float | None]:
    """`shares` of the held-out prompts; in the reward's place how many that consulted repeat."""
    evaluated = read_evaluation(run / "after")
    rows = [row for those in evaluated.judged.values() for judged in those for row in judged.rows]
    repeated = nan_mean([repeats_rule(row) for row in rows if row["consulted"]])
    return [*shares(summary(evaluated.results))[:-1], repeated]


def repeats_rule(row: Mapping[str, Any]) -> bool:
    """Whether the answer is words of the rule that came back, which no reward here notices."""
    answer = split(own_text(row)).answer.strip()
    rule = row["completion"].partition(RULE_TAGS[0])[2].partition(RULE_TAGS[1])[0]
    return bool(answer) and answer in rule


def nan_mean(values: Any, axis: int | None = None) -> Any:
    """Mean of the numbers there are; NaN of none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(np.array(values, float), axis=axis)


def over_seeds(values: np.ndarray) -> list[tuple[float, float]]:
    """Mean and deviation of each column `[seeds, columns]`, but for NaN; of one seed it is 0."""
    columns = [column[~np.isnan(column)] for column in values.astype(float).T]
    return [(float(nan_mean(x)), float(np.std(x, ddof=1)) if len(x) > 1 else 0.0) for x in columns]


if __name__ == "__main__":
    run_command("ifpo", Settings, main, __doc__, passes_on=True)
