"""CADA's arms at matched strength: what does each cost in over-refusal and utility?

    python -m experiments.ablations.cada
    python -m experiments.ablations.cada --arms rl cada --learning-rates 1e-5 4e-5
    python -m experiments.ablations.cada --suites ours=builtin:heldout \
        advbench=harmful=advbench.csv strongreject=harmful=strongreject.csv \
        xstest=xstest_prompts.csv --word-problems gsm8k_test.jsonl \
        -- --steps 20 --cap 8                    # flags of experiments/cada.py for every run

Five arms leave the model as it is and differ in what stands before the request; the others train
it, each with several learning rates, for over-refusal grows with the rate long before harmlessness
is complete: an arm is a curve and not a point. `cada` is the whole method: RL from a model that has
learned from its own reasoning (start/). One self-generation serves all runs. A point that is
measured already is not measured again, so the command can be stopped and given again, with other
arms and learning rates too: the table and the plot show all points of --out.

It writes, under --out: generated/ (the answers to learn from), start/, one folder per point with
its config, metrics, evaluations.json (every completion) and measurements.json (model and
checkpoints are deleted once they are measured), results.json, table.md and trade_off.png.
"""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.ablations.command import refuse, run_command, run_once
from experiments.ablations.comparison import keep_shared, load_suites, resolve_dtype
from experiments.ablations.trade_off import (
    AXES,
    dominates,
    drawn_rates,
    interval,
    make_matched_table,
    make_table,
    measured,
    outcomes_of,
    plot_trade_off,
    refused_at_once,
)
from experiments.cada import main as cada
from jaxalign.answers import Asking, LanguageModel
from jaxalign.answers.completing import prompt_lengths
from jaxalign.data import Prompt, context_text, load_all
from jaxalign.data.casebook import ContextName
from jaxalign.data.order import evenly
from jaxalign.data.prompts import prompts_digest
from jaxalign.data.templates import (
    Template,
    alphaalign_messages,
    bare_messages,
    coded_messages,
)
from jaxalign.evaluation.heldout import evaluate
from jaxalign.host.errors import InputError
from jaxalign.host.hardware import hardware
from jaxalign.host.json_files import read_json, write_json
from jaxalign.host.progress import progress_bar
from jaxalign.utility.perplexity import ReferenceAnswers, perplexity, reference_answers
from jaxalign.utility.word_problems import WordProblem, load_word_problems, solve

CONTEXTS: tuple[ContextName, ...] = ("detailed-code", "short-code", "cases")
"""Arms that put a code or cases before the request."""

TRAINED: dict[str, list[str]] = {
    "sft-refusal": ["--arm", "refusal"],
    "sft-detailed": ["--arm", "reasoning", "--context", "detailed-code"],
    "sft-cases": ["--arm", "reasoning", "--context", "cases"],
    "dpo-unsafe": ["--arm", "preference", "--rejected", "unsafe"],
    "dpo-refusal": ["--arm", "preference", "--rejected", "refusal"],
    "rl": ["--arm", "rl", "--template", "examples"],
    "cada": ["--arm", "rl"],
}
"""Arms that train, and what they are for experiments/cada.py. RL from the start model needs the
worked examples, or no completion of a small model is ever well-formed."""

ARMS = ("none", "examples", *CONTEXTS, *TRAINED)

OURS = (
    *("--model", "--run", "--resume", "--arm", "--template", "--context", "--code", "--cases"),
    *("--cases-per-outcome", "--generated", "--rejected", "--learning-rate", "--heldout"),
    "--dtype",
)
"""Flags of experiments/cada.py that the comparison sets itself."""


MAY_DIFFER = (
    *("out", "arms", "learning_rates", "batch_size"),
    *("suites", "word_problems"),  # their content is compared
)
"""Settings that points of one comparison need not share."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to compare."""

    out: Path = Path("runs/cada-arms")
    """Folder of the comparison."""
    arms: tuple[str, ...] = ARMS
    """Which arms: none and examples ask without and with AlphaAlign's instruction and examples."""
    learning_rates: tuple[float, ...] = (5e-6, 2e-5, 6e-5)
    """Of each arm that trains."""
    start_learning_rate: float = 2e-5
    """Of the model that the arm cada starts from."""
    model: str = "smollm2"
    """Start model, as for experiments/cada.py."""
    suites: tuple[str, ...] = ("ours=builtin:heldout",)
    """What is asked: NAME=SPEC or NAME=KIND=SPEC, with a SPEC as for --heldout of the experiments
    and a KIND where the data does not tell."""
    limit: int = 60
    """Prompts of each kind of each suite, evenly spread over it."""
    max_new_tokens: int = 96
    """Longest completion in the measurements; training's is a flag behind --."""
    code: Path | None = None
    """Safety code, as for experiments/cada.py; by default our own."""
    cases: Path | None = None
    """Cases, likewise."""
    cases_per_outcome: int = 1
    """Cases to refuse, and as many to answer, of each category."""
    word_problems: Path | None = None
    """JSON lines in GSM8K's form: is the model still able to do sums?"""
    problems: int = 32
    """How many of them."""
    harmless: str = "builtin:heldout"
    """Requests whose answers by the start model the perplexity is over: a SPEC or KIND=SPEC, of
    which harmful ones are left out."""
    requests: int = 40
    """How many of them."""
    batch_size: int = 32
    """Prompts at a time in the measurements: more is faster on an accelerator."""
    dtype: str = "auto"
    """Compute dtype of everything; auto takes the faster one in a probe, the first time."""


@dataclasses.dataclass(frozen=True)
class Measures:
    """What every model is put to."""

    suites: dict[str, list[Prompt]]
    problems: list[WordProblem]
    requests: list[str]


def main(settings: Settings, flags: Sequence[str]) -> None:
    """Runs and measures what is missing, then writes the table and the plot."""
    check(settings, flags)
    measures = load_measures(settings)
    settings = dataclasses.replace(settings, dtype=resolve_dtype(settings.dtype, settings.out))
    keep_comparison(settings, flags, measures)
    answers: ReferenceAnswers | None = None
    for arm, rate in points(settings):
        folder = folder_of(settings, arm, rate)
        if not (folder / "measurements.json").exists():
            print(f"\n=== {folder.name}")
            folder.mkdir(exist_ok=True)
            trained = rate is None or train(settings, arm, rate, flags)
            if not trained:
                found: dict[str, Any] = {"nothing_learned": True}
            else:
                answers = answers or start_answers(settings, measures)
                found = measure(settings, arm, rate, measures, answers)
            write_json(folder / "measurements.json", {"arm": arm, "learning_rate": rate} | found)
            report(settings)
        for heavy in ("model", "checkpoints"):
            shutil.rmtree(folder / heavy, ignore_errors=True)
    print(f"\n{report(settings)}see {settings.out}/results.json, table.md, trade_off.png")


def check(settings: Settings, flags: Sequence[str]) -> None:
    """Refuses what can't work before anything slow happens.

    Raises:
      InputError: names the setting.
    """
    for arm in settings.arms:
        if arm not in ARMS:
            raise InputError(f"unknown arm {arm!r}: choose from {', '.join(ARMS)}")
    for name in (
        "limit",
        "problems",
        "requests",
        "max_new_tokens",
        "cases_per_outcome",
        "batch_size",
    ):
        if getattr(settings, name) < 1:
            raise InputError(f"{name}={getattr(settings, name)} is too small: at least 1")
    rates = settings.learning_rates
    if not rates or min(*rates, settings.start_learning_rate) <= 0:
        raise InputError("learning rates must be numbers above 0, at least one")
    refuse(flags, OURS)


def load_measures(settings: Settings) -> Measures:
    """Reads what is asked."""
    suites = load_suites(settings.suites, settings.limit)
    problems: list[WordProblem] = []
    if settings.word_problems is not None:
        problems = evenly(load_word_problems(settings.word_problems), settings.problems)
    harmless = [prompt.text for prompt in load_all([settings.harmless]) if not prompt.is_harmful]
    if not harmless:
        raise InputError(f"harmless: {settings.harmless} has none; give other requests")
    return Measures(suites, problems, evenly(harmless, settings.requests))


def keep_comparison(settings: Settings, flags: Sequence[str], measures: Measures) -> None:
    """Notes what all points share; refuses to add to a comparison that shares something else."""
    shared = {k: v for k, v in dataclasses.asdict(settings).items() if k not in MAY_DIFFER}
    shared |= {
        "flags": list(flags),
        "suite_digests": {name: prompts_digest(x) for name, x in measures.suites.items()},
        "questions": [problem.question for problem in measures.problems],
        "harmless_requests": measures.requests,
        "contexts": {name: context_of(settings, name) for name in CONTEXTS},
    }
    keep_shared(settings.out, shared)


def points(settings: Settings) -> list[tuple[str, float | None]]:
    """Every arm with each of its learning rates."""
    return [
        (arm, rate)
        for arm in settings.arms
        for rate in (settings.learning_rates if arm in TRAINED else (None,))
    ]


def folder_of(settings: Settings, arm: str, rate: float | None) -> Path:
    """Where a point's run and measurements go."""
    return settings.out / (arm if rate is None else f"{arm}-{rate:g}")


def context_of(settings: Settings, name: ContextName) -> str:
    """What stands before a request, from the code and the cases of this comparison."""
    return context_text(
        name,
        code=settings.code,
        cases=settings.cases,
        cases_per_outcome=settings.cases_per_outcome,
    )


def template_of(settings: Settings, arm: str) -> tuple[str, Template]:
    """How an arm is asked, by name: what has been trained does without code and cases."""
    if arm in CONTEXTS:
        return arm, coded_messages(context_of(settings, arm))
    if arm in ("examples", "rl"):
        return "examples", alphaalign_messages
    return "bare", bare_messages


def origin_of(settings: Settings, arm: str) -> str:
    """The point that a trained arm starts from, at learning rate 0."""
    if arm == "cada":
        return f"sft-cases-{settings.start_learning_rate:g}"
    return "examples" if arm == "rl" else "none"


def train(settings: Settings, arm: str, rate: float, flags: Sequence[str]) -> bool:
    """One run of experiments/cada.py; whether it learned, and did not diverge."""
    model = settings.model
    if arm == "cada":
        start = settings.out / "start"
        rate_before = settings.start_learning_rate
        if not perform(settings, "sft-cases", rate_before, model=model, folder=start, flags=flags):
            return False
        model = str(start / "model")
    folder = folder_of(settings, arm, rate)
    return perform(settings, arm, rate, model=model, folder=folder, flags=flags)


def perform(
    settings: Settings, arm: str, rate: float, *, model: str, folder: Path, flags: Sequence[str]
) -> bool:
    """Trains into a folder unless it holds the model, resumed where there is a checkpoint."""
    source = "detailed-code" if arm == "sft-detailed" else "cases"
    generated = settings.out / "generated" / source / "generated.jsonl"
    files = [f"--{x}={getattr(settings, x)}" for x in ("code", "cases") if getattr(settings, x)]
    arguments = [
        "smollm2",
        *flags,
        *TRAINED[arm],
        *files,
        f"--cases-per-outcome={settings.cases_per_outcome}",
        f"--model={model}",
        f"--learning-rate={rate}",
        f"--generated={generated}",
        f"--dtype={settings.dtype}",
        "--heldout",
    ]
    try:
        return run_once(cada, arguments, folder)
    except SystemExit:
        if not nothing_kept(folder):
            raise
        return False  # the other arms go on


def nothing_kept(folder: Path) -> bool:
    """Whether a run ended because no self-generated answer passed the filters."""
    table = folder / "yield.md"
    return table.exists() and table.read_text().rstrip().endswith("| 0 |")


def start_answers(settings: Settings, measures: Measures) -> ReferenceAnswers:
    """What the start model says to the harmless requests."""
    lm = LanguageModel.load(settings.model, settings.dtype)
    with progress_bar() as bar:
        line = bar.add_task("start model's answers", total=len(measures.requests))
        return reference_answers(
            lm,
            measures.requests,
            Asking(max_new_tokens=96, batch_size=settings.batch_size),
            progress=lambda done, total: bar.update(line, completed=done),
        )


def measure(
    settings: Settings,
    arm: str,
    rate: float | None,
    measures: Measures,
    answers: ReferenceAnswers,
) -> dict[str, Any]:
    """Refusals on every suite, sums, and the perplexity of the start model's answers.

    Arms that only change what stands before the request have no perplexity of their own: the
    weights, and so the answers to bare requests, are those of `none`.
    """
    folder = folder_of(settings, arm, rate)
    name = settings.model if rate is None else str(folder / "model")
    asked, template = template_of(settings, arm)
    lm = LanguageModel.load(name, settings.dtype)
    asked_of_all = [prompt for prompts in measures.suites.values() for prompt in prompts]
    width = max(prompt_lengths(lm.tokenizer, template, asked_of_all))  # of all, to compile once
    results: dict[str, Any] = {"asked": asked, "suites": {}}
    evaluations: dict[str, Any] = {}
    with progress_bar() as bar:
        for suite, prompts in measures.suites.items():
            line = bar.add_task(suite, total=len(prompts))
            evaluation = evaluate(
                lm,
                prompts,
                Asking(
                    template,
                    max_prompt_tokens=width,
                    max_new_tokens=settings.max_new_tokens,
                    batch_size=settings.batch_size,
                ),
                progress=lambda done, total, line=line: bar.update(line, completed=done),
            )
            evaluations[suite] = evaluation.to_json()
            rates = evaluation.summary()
            results["suites"][suite] = rates
            shown = {k: round(v, 3) for k, v in rates.items() if isinstance(v, float)}
            print(f"{suite}: {json.dumps(shown)}")
        if measures.problems:
            line = bar.add_task("word problems", total=len(measures.problems))
            share = solve(
                lm,
                measures.problems,
                Asking(template, max_new_tokens=192, batch_size=settings.batch_size),
                progress=lambda done, total: bar.update(line, completed=done),
            )
            results["solved"] = f"{round(share * len(measures.problems))}/{len(measures.problems)}"
    if arm == "none" or rate is not None:
        results["perplexity"] = perplexity(lm, answers)
    write_json(folder / "evaluations.json", evaluations)
    rows = [row for evaluation in evaluations.values() for row in evaluation["rows"]]
    for share_of in ("well_formed", "finished"):
        results[share_of] = sum(row[share_of] for row in rows) / len(rows)
    return results | {"from": origin_of(settings, arm), "hardware": hardware()}


def report(settings: Settings) -> str:
    """Writes results.json, table.md and trade_off.png of all points; returns the tables."""
    rows: dict[str, dict[str, Any]] = {}
    notes = []
    found = [read_json(path) for path in settings.out.glob("*/measurements.json")]
    for row in sorted(found, key=lambda x: (ARMS.index(x["arm"]), x["learning_rate"] or 0)):
        name = folder_of(settings, row["arm"], row["learning_rate"]).name
        if "nothing_learned" in row:
            notes.append(f"{name} diverged, or had nothing to learn from, and is left out.\n")
        else:
            rows[name] = row
    made = {name: read_json(settings.out / name / "evaluations.json") for name in rows}
    draws = {name: drawn_rates(outcomes_of(evaluations)) for name, evaluations in made.items()}
    for name, row in rows.items():
        for axis in AXES:
            row[axis] = measured(draws[name], axis)
        at_once = drawn_rates(outcomes_of(made[name], refused_at_once))
        row["first_sentence"] = [measured(at_once, axis) for axis in AXES]
        row["intervals"] = {axis: interval(values) for axis, values in draws[name].items()}
        others = (other for other in rows if other != name and len(draws[name]) == 2)
        row["dominated_by"] = [x for x in others if dominates(draws[x], draws[name])]
    write_json(settings.out / "results.json", rows)
    if not rows:
        return "".join(notes)
    tables = "\n".join([make_table(rows), make_matched_table(rows), *notes])
    (settings.out / "table.md").write_text(tables)
    plot_trade_off(rows, settings.out / "trade_off.png")
    return tables


if __name__ == "__main__":
    run_command("cada", Settings, main, __doc__)
