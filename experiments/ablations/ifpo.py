"""GRPO against IFPO on a real model: how often does each kind of request consult, and what for?

    python -m experiments.ablations.ifpo
    python -m experiments.ablations.ifpo --seeds 5 --arms grpo weight-group --out runs/ifpo
    python -m experiments.ablations.ifpo -- --steps 30 --samples-per-prompt 8 --harmful 2 \
        --benign 1 --lookalike 1        # flags of experiments/ascl.py for every run

The rules are those of short_rules.yaml, so that a consultation takes few tokens (`-- --rules FILE`
takes others). One cold start of experiments/ascl.py serves all runs; then each arm trains from it
with each seed. A run that is there already is not repeated, and one that was cut short is resumed,
so the command can be stopped and given again: tables and plot show all runs of --out. It writes,
under --out: start/ (the cold start), one run folder per arm and seed (model and checkpoints are
deleted at its end), results.json, table.md and consulting.png.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import ascl
from experiments.ablations.two_modes import plot_training
from jaxalign.data import KINDS, builtin_prompts
from jaxalign.data.order import grouped
from jaxalign.data.prompts import of_each_kind
from jaxalign.evaluation.measure import right_shares, summary
from jaxalign.evaluation.probes import own_text
from jaxalign.host.command import run_command
from jaxalign.host.errors import InputError
from jaxalign.host.fields import Checked, Count
from jaxalign.host.json_files import write_json
from jaxalign.host.markdown import markdown_table
from jaxalign.host.metrics import read_metrics
from jaxalign.host.statistics import mean_and_spread
from jaxalign.reports.evaluation_folder import read_evaluation
from jaxalign.rewards.parts import RULE_TAGS, split
from jaxalign.runs import ablation
from jaxalign.runs.ablation import Arm, Point, run_once


def _ifpo(form: str, scope: str, *more: str) -> Arm:
    """Of experiments/ascl.py, with IFPO."""
    chosen = ["--objective.adjust", "inverse-frequency", "--objective.adjust.form", form]
    return Arm(ascl, ["smollm2", *chosen, "--objective.adjust.scope", scope, *more])


ARMS = {
    "grpo": Arm(ascl, ["smollm2", "--objective.adjust", "none"]),
    "weight-group": _ifpo("weight", "group"),
    "weight-group-capped": _ifpo("weight", "group", "--objective.adjust.max-weight", "1.5"),
    "weight-batch": _ifpo("weight", "batch"),
    "baseline-group": _ifpo("baseline", "group"),
    "baseline-batch": _ifpo("baseline", "batch"),
}


@dataclasses.dataclass(frozen=True)
class Settings(Checked):
    """What to compare."""

    out: Path = Path("runs/ifpo")
    """Folder of the comparison."""
    arms: tuple[str, ...] = tuple(ARMS)
    """Which arms."""
    seeds: Count = 5
    """Runs of each arm."""
    heldout: Count = 24
    """Held-out prompts of each kind, spread over the categories, asked after each run."""
    last: Count = 5
    """Steps at the end of a run that the table averages over."""


OURS = ("--run", "--resume", "--seed", "--seeds", "--objective", "--heldout")
"""Flags of experiments/ascl.py that the comparison sets itself; IFPO's baseline form excludes other
advantages than the group's."""


def main(settings: Settings, flags: Sequence[str]) -> None:
    """Runs what is missing, then writes the tables and the plot."""
    ablation.check(settings, ARMS, flags, ours=OURS)
    out, start = settings.out, settings.out / "start"
    ablation.keep_shared(out, {"flags": flags, "heldout": settings.heldout})
    prompts = of_each_kind(builtin_prompts("heldout"), settings.heldout)
    rows = [{"prompt": p.text, "kind": p.kind, "id": p.id, "category": p.category} for p in prompts]
    heldout = out / "heldout.jsonl"
    heldout.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rules = Path(__file__).with_name("short_rules.yaml")
    common = ["--objective.advantages=group", f"--rules={rules}", *flags, f"--heldout={heldout}"]
    if not (start / "cold_start").exists():
        if not run_once(ascl, ["smollm2", *common, "--steps=1"], start):
            raise InputError(f"{start}: diverged: lower the learning rate")
    begin = [f"--model={start / 'cold_start'}", "--cold-start", "none"]
    common = [*ablation.flags_but(common, "cold_start".__eq__), *begin]

    def train(point: Point) -> bool:
        preset, *own = ARMS[point.arm].flags
        return run_once(ascl, [preset, *common, *own, f"--seed={point.seed}"], out / point.name)

    points = ablation.points_of(ARMS, settings.arms, range(settings.seeds))
    ablation.measure_points(out, points, train=train)
    print(write_report(out, last=settings.last, heldout=settings.heldout), end="")


COLUMNS = (
    *(f"{kind}_{what}" for what in ("consulted", "refused") for kind in KINDS),
    *("well_formed", "right", "reward", "rule_repeated"),
)
"""Of the tables, those that there are."""


def write_report(out: Path, *, last: int, heldout: int) -> str:
    """Writes results.json, table.md and consulting.png of all runs there are; returns the tables.

    Args:
      out: folder of the comparison.
      last: steps at the end that training's figures are means over.
      heldout: prompts of each kind that were asked after it.
    """
    points, lost = ablation.measured_points(out, list(ARMS))
    metrics = {x: read_metrics(out / x.name) for x in points}
    trained = {x: means(map(with_right, rows[-last:])) for x, rows in metrics.items()}
    grpo = {x.seed: row for x, row in trained.items() if x.arm == "grpo"}
    less = {
        x: {name: y - grpo[x.seed][name] for name, y in row.items() if name in grpo[x.seed]}
        for x, row in trained.items()
        if x.arm != "grpo" and x.seed in grpo
    }
    parts: dict[str, tuple[str, dict[Point, dict[str, float]]]] = {
        "trained": (f"Samples of the last {last} steps, mean ± deviation over seeds", trained),
        "difference": ("The same less GRPO's with the same seed, so the same prompts", less),
        "heldout": (
            f"{heldout} held-out prompts of each kind after training, greedy",
            {x: heldout_means(out / x.name) for x in points},
        ),
    }
    results: dict[str, Any] = {}
    text = "".join(
        f"{x.name} diverged and is left out; another --out with a lower rate may do.\n"
        for x in lost
    )
    for part, (title, found) in parts.items():
        names = [name for name in COLUMNS if any(name in row for row in found.values())]
        results[part] = {
            arm: {name: mean_and_spread(found[x].get(name) for x in own) for name in names}
            for arm, own in grouped(found, lambda point: point.arm).items()
        }
        signed = "{:+.2f}" if part == "difference" else "{:.2f}"
        lines = [
            [arm, *("–" if x is None else f"{signed.format(x)} ± {y or 0:.2f}" for x, y in row)]
            for arm, row in ((arm, found.values()) for arm, found in results[part].items())
        ]
        head = ["arm", *(name.replace("_", " ") for name in names)]
        text += f"\n{title}:\n\n{markdown_table(head, lines)}" if lines else ""
    write_json(out / "results.json", results)
    (out / "table.md").write_text(text)
    if points:
        consulted = {
            arm: [[[row[f"{kind}_consulted"] for kind in KINDS] for row in metrics[x]] for x in own]
            for arm, own in grouped(points, lambda point: point.arm).items()
        }  # None, and so NaN, in a step without prompts of a kind
        rates = {arm: np.array(values, float) for arm, values in consulted.items()}
        plot_training(rates, out / "consulting.png")
    return text


def means(rows: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Of each of `COLUMNS` the mean of the numbers there are; nothing of none."""
    rows = list(rows)
    found = {name: mean_and_spread(row.get(name) for row in rows)[0] for name in COLUMNS}
    return {name: x for name, x in found.items() if x is not None}


def with_right(row: Mapping[str, Any]) -> dict[str, Any]:
    """Adds the mean over kinds of the share that was refused, or not, as it should be: `right`.

    It is beside the reward, in which the weight of a refusal follows what goes wrong in a step.
    """
    return {**row, "right": mean_and_spread(list(right_shares(row).values()))[0]}


def heldout_means(run: Path) -> dict[str, float]:
    """Of the held-out prompts, with how many of those that consulted repeat the rule."""
    evaluated = read_evaluation(run / "after")
    rows = [row for those in evaluated.judged.values() for judged in those for row in judged.rows]
    repeated = [{"rule_repeated": repeats_rule(row)} for row in rows if row["consulted"]]
    return means([with_right(summary(evaluated.results))]) | means(repeated)


def repeats_rule(row: Mapping[str, Any]) -> bool:
    """Whether the answer is words of the rule that came back, which no reward here notices."""
    answer = split(own_text(row)).answer.strip()
    rule = row["completion"].partition(RULE_TAGS[0])[2].partition(RULE_TAGS[1])[0]
    return bool(answer) and answer in rule


if __name__ == "__main__":
    run_command("ifpo", Settings, main, __doc__, passes_on=True)
