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

It writes, under --out: one folder per point with its config, metrics, evaluations.json (every
completion) and measurements.json (model and checkpoints are deleted once they are measured),
results.json, table.md, trade_off.png and ablations.png.
"""

import dataclasses
import itertools
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.ablations.alphaalign_tables import report
from experiments.ablations.command import refuse, run_command, run_once
from experiments.ablations.comparison import keep_shared, load_suites, resolve_dtype
from experiments.alphaalign import PRESETS as REINFORCING
from experiments.alphaalign import main as alphaalign
from experiments.direct_refusal import PRESETS as TUNING
from experiments.direct_refusal import main as direct_refusal
from jaxalign.answers import Asking, LanguageModel
from jaxalign.answers.completing import prompt_lengths
from jaxalign.answers.generation import opening_ids
from jaxalign.data import Prompt
from jaxalign.data.order import evenly
from jaxalign.data.prompts import prompts_digest
from jaxalign.data.templates import Template, alphaalign_messages, bare_messages
from jaxalign.evaluation.attacks import harmful_opening
from jaxalign.evaluation.heldout import evaluate
from jaxalign.host.errors import InputError
from jaxalign.host.hardware import hardware
from jaxalign.host.json_files import write_json
from jaxalign.host.progress import progress_bar
from jaxalign.runs.settings import parse
from jaxalign.utility.word_problems import WordProblem, load_word_problems, solve

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
    "--label-noise",
    *("--format", "--refusal", "--harmless", "--own-answers", "--samples-per-prompt"),
    *("--harmful", "--benign", "--lookalike"),
)
"""Flags that the comparison sets itself."""

MAY_DIFFER = (
    *("out", "arms", "seeds", "sft_learning_rates", "batch_size"),
    *("suites", "word_problems"),  # their content is compared
)
"""Settings that points of one comparison need not share."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to compare."""

    out: Path = Path("runs/alphaalign-arms")
    """Folder of the comparison."""
    arms: tuple[str, ...] = ARMS
    """Which arms."""
    seeds: int = 3
    """Runs of each arm that trains."""
    learning_rate: float = 6e-5
    """Of every arm of AlphaAlign."""
    sft_learning_rates: tuple[float, ...] = (5e-6, 2e-5, 6e-5)
    """Of the arms of direct refusals."""
    model: str = "smollm2"
    """Start model, as for experiments/alphaalign.py."""
    suites: tuple[str, ...] = ("ours=builtin:heldout",)
    """What is asked: NAME=SPEC or NAME=KIND=SPEC, with a SPEC as for --heldout of the experiments
    and a KIND where the data does not tell."""
    limit: int = 60
    """Prompts of each kind of each suite, evenly spread over it."""
    prefill: tuple[int, ...] = (5, 10, 20)
    """Prefilling attacks: tokens of a harmful answer that are forced; none for no attack."""
    prefill_suite: str = "ours"
    """The suite whose harmful prompts are attacked so."""
    max_new_tokens: int = 96
    """Longest completion in the measurements; training's is a flag behind --."""
    word_problems: Path | None = None
    """JSON lines in GSM8K's form: is the model still able to do sums?"""
    problems: int = 32
    """How many of them."""
    batch_size: int = 32
    """Prompts at a time in the measurements: more is faster on an accelerator."""
    dtype: str = "auto"
    """Compute dtype of everything: bfloat16, float32, or auto, the faster one in a probe, the first
    time."""


@dataclasses.dataclass(frozen=True)
class Point:
    """One model to measure: an arm, its learning rate if it trains with several, and a seed."""

    arm: str
    rate: float | None = None
    seed: int | None = None

    @property
    def name(self) -> str:
        """Of its folder."""
        parts = (self.arm, self.rate and f"{self.rate:g}", self.seed)
        return "-".join(str(part) for part in parts if part is not None)


@dataclasses.dataclass(frozen=True)
class Measures:
    """What every model is put to."""

    suites: dict[str, list[Prompt]]
    problems: list[WordProblem]


def main(settings: Settings, flags: Sequence[str]) -> None:
    """Runs and measures what is missing, then writes the tables and the plots."""
    check(settings, flags)
    measures = load_measures(settings)
    settings = dataclasses.replace(settings, dtype=resolve_dtype(settings.dtype, settings.out))
    keep_comparison(settings, flags, measures)
    for point in points(settings):
        folder = settings.out / point.name
        if not (folder / "measurements.json").exists():
            print(f"\n=== {point.name}")
            folder.mkdir(exist_ok=True)
            known = dataclasses.asdict(point)
            if point.arm in UNTRAINED or train(settings, point, flags):
                write_json(folder / "measurements.json", known | measure(settings, point, measures))
            else:
                write_json(folder / "measurements.json", known | {"diverged": True})
        for heavy in ("model", "checkpoints"):
            shutil.rmtree(folder / heavy, ignore_errors=True)
    print(f"\n{report(settings.out, ARMS)}\nsee {settings.out}/results.json, table.md and plots")


def check(settings: Settings, flags: Sequence[str]) -> None:
    """Refuses what can't work before anything slow happens.

    Raises:
      InputError: names the setting.
      SystemExit: a flag that one of the arms' scripts does not have, after its message.
    """
    if not settings.arms:
        raise InputError(f"arms: name at least one of {', '.join(ARMS)}")
    for arm in settings.arms:
        if arm not in ARMS:
            raise InputError(f"unknown arm {arm!r}: choose from {', '.join(ARMS)}")
    for name in ("seeds", "limit", "problems", "max_new_tokens", "batch_size"):
        if getattr(settings, name) < 1:
            raise InputError(f"{name}={getattr(settings, name)} is too small: at least 1")
    if any(count < 1 for count in settings.prefill):
        raise InputError("prefill: tokens to force must be at least 1")
    if not settings.sft_learning_rates or min(settings.sft_learning_rates) <= 0:
        raise InputError("sft_learning_rates must be numbers above 0, at least one")
    if settings.learning_rate <= 0:
        raise InputError(f"learning_rate={settings.learning_rate} must be a number above 0")
    refuse(flags, OURS)
    arms = set(settings.arms)
    if arms & set(TUNED):
        parse(["smollm2", *flags], TUNING, script="direct_refusal.py", doc="")
    if arms & set(REINFORCED):
        parse(["demo", *flags], REINFORCING, script="alphaalign.py", doc="")


def load_measures(settings: Settings) -> Measures:
    """Reads what is asked."""
    suites = load_suites(settings.suites, settings.limit)
    for name in suites:
        if name.startswith("prefill-"):
            raise InputError(f"suites: {name} is what attacks are called: give it another name")
    attacked = [p for p in suites.get(settings.prefill_suite, ()) if p.is_harmful]
    if settings.prefill and not attacked:
        raise InputError(
            f"prefill_suite: {settings.prefill_suite} is no suite with harmful prompts; name one "
            f"of {', '.join(suites)}, or give --prefill without numbers"
        )
    problems: list[WordProblem] = []
    if settings.word_problems is not None:
        problems = evenly(load_word_problems(settings.word_problems), settings.problems)
    return Measures(suites, problems)


def keep_comparison(settings: Settings, flags: Sequence[str], measures: Measures) -> None:
    """Notes what all points share; refuses to add to a comparison that shares something else."""
    shared = {k: v for k, v in dataclasses.asdict(settings).items() if k not in MAY_DIFFER}
    keep_shared(
        settings.out,
        shared
        | {
            "flags": list(flags),
            "suite_digests": {name: prompts_digest(x) for name, x in measures.suites.items()},
            "questions": [problem.question for problem in measures.problems],
        },
    )


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
    """One run of the arm's script; whether it came to an end, and did not diverge."""
    folder = settings.out / point.name
    common = [
        *flags,
        f"--model={settings.model}",
        f"--seed={point.seed}",
        f"--dtype={settings.dtype}",
        f"--learning-rate={settings.learning_rate if point.rate is None else point.rate}",
    ]
    if point.arm in REINFORCED:
        arguments = ["demo", *common, *REINFORCED[point.arm], "--heldout"]
        return run_once(alphaalign, arguments, folder)
    answers = settings.out / f"own_answers-{point.seed}.jsonl"
    arguments = ["smollm2", *common, *TUNED[point.arm], f"--own-answers={answers}", "--heldout"]
    return run_once(direct_refusal, arguments, folder)


def measure(settings: Settings, point: Point, measures: Measures) -> dict[str, Any]:
    """Refusals on every suite and under attack, sums, and how long completions are."""
    folder = settings.out / point.name
    name = settings.model if point.arm in UNTRAINED else str(folder / "model")
    template = template_of(point.arm)
    lm = LanguageModel.load(name, settings.dtype)
    evaluations: dict[str, Any] = {}
    results: dict[str, Any] = {"hardware": hardware()}

    def ask(suite: str, prompts: Sequence[Prompt], openings: dict[str, list[int]]) -> None:
        line = bar.add_task(suite, total=len(prompts))
        width = max(prompt_lengths(lm.tokenizer, template, prompts))
        width += max(settings.prefill, default=0)
        evaluation = evaluate(
            lm,
            prompts,
            Asking(
                template,
                max_prompt_tokens=64 * math.ceil(width / 64),  # few widths, few compilations
                max_new_tokens=settings.max_new_tokens,
                batch_size=settings.batch_size,
            ),
            openings=openings,
            progress=lambda done, total: bar.update(line, completed=done),
        )
        evaluations[suite] = evaluation.to_json()
        shown = {k: round(v, 3) for k, v in evaluation.summary().items() if isinstance(v, float)}
        print(f"{suite}: {json.dumps(shown)}")

    with progress_bar() as bar:
        for suite, prompts in measures.suites.items():
            ask(suite, prompts, {})
        attacked = [p for p in measures.suites.get(settings.prefill_suite, ()) if p.is_harmful]
        for count in settings.prefill:
            forced = {p.id: opening_ids(lm.tokenizer, harmful_opening(p), count) for p in attacked}
            ask(f"prefill-{count}", attacked, forced)
        if measures.problems:
            line = bar.add_task("word problems", total=len(measures.problems))
            results["solved"] = solve(
                lm,
                measures.problems,
                Asking(template, max_new_tokens=192, batch_size=settings.batch_size),
                progress=lambda done, total: bar.update(line, completed=done),
            )
            results["problems"] = len(measures.problems)
    write_json(folder / "evaluations.json", evaluations)
    rows = [row for suite in measures.suites for row in evaluations[suite]["rows"]]
    for share_of in ("well_formed", "finished"):
        results[share_of] = sum(row[share_of] for row in rows) / len(rows)
    lengths = [len(lm.tokenizer(row["completion"]).input_ids) for row in rows]
    results["tokens"] = sum(lengths) / len(lengths)
    results["distinct"] = len({row["completion"] for row in rows}) / len(rows)
    return results


if __name__ == "__main__":
    run_command("alphaalign", Settings, main, __doc__)
