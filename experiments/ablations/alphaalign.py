"""AlphaAlign beside direct-refusal tuning, and without each of its parts: arms x seeds, one table.

    python -m experiments.ablations.alphaalign
    python -m experiments.ablations.alphaalign --arms base sft grpo ppo zero --seeds 3
    python -m experiments.ablations.alphaalign --suites ours=builtin:heldout \
        advbench=harmful=advbench.csv xstest=xstest_prompts.csv --word-problems gsm8k_test.jsonl \
        -- --steps 80                        # flags of every run, of both scripts

Every arm trains from the same model, on the same prompts, for as many steps. The arms `sft` and
`sft-harmful-only` (experiments/direct_refusal.py) train with several learning rates, for how much
they refuse depends on that. A point that is measured already is not measured again and a run that
was cut short is resumed, so the command can be stopped and given again, with other arms and more
seeds too: tables and plots show all points of --out.

It writes, under --out: one folder per point with its config, metrics, evaluation/ and prefilled/
(as `jaxalign eval` does), and measurements.json (model and checkpoints are deleted once they are
measured); results.json, table.md, trade_off.png and ablations.png.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.ablations import comparison
from experiments.ablations.alphaalign_tables import report
from experiments.ablations.comparison import Measures, Point
from experiments.alphaalign import PRESETS as REINFORCING
from experiments.alphaalign import main as alphaalign
from experiments.direct_refusal import PRESETS as TUNING
from experiments.direct_refusal import main as direct_refusal
from jaxalign.data.templates import Template, alphaalign_messages, bare_messages
from jaxalign.host.command import run_command
from jaxalign.host.errors import InputError
from jaxalign.runs.settings import parse

UNTRAINED: dict[str, Template] = {"base": bare_messages, "base-examples": alphaalign_messages}
"""The start model: asked bare, and with AlphaAlign's instruction and examples."""

TUNED: dict[str, list[str]] = {
    "sft": ["--harmless", "own"],
    "sft-harmful-only": ["--harmless", "none"],
}
"""Arms of experiments/direct_refusal.py."""

REINFORCED: dict[str, list[str]] = {
    "alphaalign": [],
    "grpo": ["--objective.advantages", "group"],
    "reinforce++": ["--objective.advantages", "whole-batch"],
    "ppo": ["--objective", "ppo"],
    "ppo-2-epochs": ["--objective", "ppo", "--epochs", "2", "--minibatches", "2"],
    "zero": ["--helpfulness-weight", "0"],
    "no-normalisation": ["--no-normalise"],
    "no-format": ["--format-weight", "0"],
    "group-2": ["--samples-per-prompt=2", "--harmful=16", "--benign=8", "--lookalike=8"],
    "group-8": ["--samples-per-prompt=8", "--harmful=4", "--benign=2", "--lookalike=2"],
    "group-16": ["--samples-per-prompt=16", "--harmful=2", "--benign=1", "--lookalike=1"],
    "noise-10": ["--label-noise", "0.1"],
    "noise-30": ["--label-noise", "0.3"],
    "loose-format": ["--format", "loose"],
    "first-sentence": ["--refusal", "first-sentence"],
}
"""Arms of experiments/alphaalign.py: `alphaalign` is its preset demo, whose baseline spans half of
the batch and half of the prompt (4 samples of 16 prompts); each other one changes one thing. `zero`
is the safety reward alone. Groups of 2, 8 and 16 keep the completions of a step at 64."""

ARMS = (*UNTRAINED, *TUNED, *REINFORCED)

OURS = (
    *("--model", "--run", "--resume", "--heldout", "--seed", "--learning-rate", "--dtype"),
    *("--template", "--objective", "--helpfulness-weight", "--normalise", "--no-normalise"),
    *("--label-noise", "--template-date", "--seeds"),
    *("--format", "--refusal", "--harmless", "--own-answers", "--samples-per-prompt"),
    *("--harmful", "--benign", "--lookalike"),
)
"""Flags that the comparison sets itself."""


@dataclasses.dataclass(frozen=True)
class Settings(comparison.Comparison):
    """What to compare."""

    out: Path = Path("runs/alphaalign-arms")
    arms: tuple[str, ...] = ARMS
    seeds: int = 3
    """Runs of each arm that trains."""
    learning_rate: float = 6e-5
    """Of every arm of AlphaAlign."""
    sft_learning_rates: tuple[float, ...] = (5e-6, 2e-5, 6e-5)
    """Of the arms of direct refusals."""
    prefill: tuple[int, ...] = (5, 10, 20)
    """Prefilling attacks: tokens of a harmful answer that are forced; none for no attack."""
    prefill_suite: str = "ours"
    """The suite whose harmful prompts are attacked so."""


def main(settings: Settings, flags: Sequence[str]) -> None:
    """Runs and measures what is missing, then writes the tables and the plots."""
    check(settings, flags)
    measures = load_measures(settings)
    may_differ = ("seeds", "sft_learning_rates")
    settings = comparison.begin(settings, flags, measures, may_differ=may_differ)
    comparison.measure_points(
        settings.out,
        points(settings),
        train=lambda point: train(settings, point, flags),
        measure=lambda point: measure(settings, point, measures),
    )
    print(f"\n{report(settings.out, ARMS)}\nsee {settings.out}/results.json, table.md and plots")


def check(settings: Settings, flags: Sequence[str]) -> None:
    """Refuses what can't work before anything slow happens.

    Raises:
      InputError: names the setting.
      SystemExit: a flag that one of the arms' scripts does not have, after its message.
    """
    if not settings.arms:
        raise InputError(f"arms: name at least one of {', '.join(ARMS)}")
    counts = "seeds limit problems max_new_tokens batch_size"
    comparison.check(settings, ARMS, flags, ours=OURS, counts=counts)
    if any(count < 1 for count in settings.prefill):
        raise InputError("prefill: tokens to force must be at least 1")
    if not settings.sft_learning_rates or min(settings.sft_learning_rates) <= 0:
        raise InputError("sft_learning_rates must be numbers above 0, at least one")
    if settings.learning_rate <= 0:
        raise InputError(f"learning_rate={settings.learning_rate} must be a number above 0")
    arms = set(settings.arms)
    if arms & set(TUNED):
        parse(["smollm2", *flags], TUNING, script="direct_refusal.py", doc="")
    if arms & set(REINFORCED):
        parse(["demo", *flags], REINFORCING, script="alphaalign.py", doc="")


def load_measures(settings: Settings) -> Measures:
    """Reads what is asked, the prompts of prefilling attacks among it.

    Raises:
      InputError: as for every comparison, a suite called like an attack, or attacks without
        prompts.
    """
    measures = comparison.load_measures(settings)
    for name in measures.suites:
        if name.startswith("prefill-"):
            raise InputError(f"suites: {name} is what attacks are called: give it another name")
    attacked = [p for p in measures.suites.get(settings.prefill_suite, ()) if p.is_harmful]
    if settings.prefill and not attacked:
        raise InputError(
            f"prefill_suite: {settings.prefill_suite} is no suite with harmful prompts; name one "
            f"of {', '.join(measures.suites)}, or give --prefill without numbers"
        )
    return dataclasses.replace(measures, attacked=attacked)


def points(settings: Settings) -> list[Point]:
    """Every arm with each rate and seed; a comparison that is stopped has as many of each arm."""
    found = [Point(arm) for arm in settings.arms if arm in UNTRAINED]
    for seed, arm in itertools.product(range(settings.seeds), settings.arms):
        if arm in TUNED:
            found += [Point(arm, rate, seed) for rate in settings.sft_learning_rates]
        elif arm in REINFORCED:
            found.append(Point(arm, None, seed))
    return found


def template_of(arm: str) -> Template:
    """How an arm is asked: as it was trained."""
    return UNTRAINED.get(arm, bare_messages if arm in TUNED else alphaalign_messages)


def train(settings: Settings, point: Point, flags: Sequence[str]) -> bool:
    """One run of the arm's script, if it has one; whether there is a model then."""
    if point.arm in UNTRAINED:
        return True
    folder = settings.out / point.name
    common = [
        *flags,
        f"--model={settings.model}",
        f"--seed={point.seed}",
        f"--dtype={settings.dtype}",
        f"--template-date={settings.template_date}",
        f"--learning-rate={settings.learning_rate if point.rate is None else point.rate}",
    ]
    if point.arm in REINFORCED:
        arguments = ["demo", *common, *REINFORCED[point.arm], "--heldout"]
        return comparison.run_once(alphaalign, arguments, folder)
    answers = settings.out / f"own_answers-{point.seed}.jsonl"
    arguments = ["smollm2", *common, *TUNED[point.arm], f"--own-answers={answers}", "--heldout"]
    return comparison.run_once(direct_refusal, arguments, folder)


def measure(settings: Settings, point: Point, measures: Measures) -> dict[str, Any]:
    """Refusals on every suite and under attack, sums, and how long completions are."""
    folder = settings.out / point.name
    name = settings.model if point.arm in UNTRAINED else str(folder / "model")
    template = template_of(point.arm)
    _, found = comparison.measure_answers(
        settings, name, template, measures, folder=folder, prefill=settings.prefill
    )
    return found


if __name__ == "__main__":
    run_command("alphaalign", Settings, main, __doc__, passes_on=True)
