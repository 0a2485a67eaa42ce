"""CADA's arms at matched strength: what does each cost in over-refusal and utility?

    python -m experiments.ablations.cada
    python -m experiments.ablations.cada --arms none cases sft-refusal sft-cases
    python -m experiments.ablations.cada --suites ours=builtin:heldout \
        advbench=harmful=advbench.csv strongreject=harmful=strongreject.csv \
        xstest=xstest_prompts.csv --word-problems gsm8k_test.jsonl \
        -- --steps 20 --cap 8                    # flags of experiments/cada.py for every run

Five arms leave the model as it is and differ in what stands before the request; the others train
it, each with several learning rates, for over-refusal grows with the rate long before harmlessness
is complete: an arm is a curve and not a point. `cada` is the whole method: RL from a model that has
learned from its own reasoning (start/). One self-generation serves all runs. A point that is
measured already is not measured again, so the command can be stopped and given again.

It writes, under --out: generated/ (the answers to learn from), start/, one folder per point with
its config, metrics and measurements.json (model and checkpoints are deleted once they are
measured), results.json, table.md and trade_off.png.
"""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from experiments.ablations.command import refuse, run_command, run_once
from experiments.ablations.trade_off import dominating, make_table, plot_trade_off
from experiments.cada import main as cada
from jaxalign.data import Prompt, context_text, load_all
from jaxalign.data.casebook import ContextName
from jaxalign.data.order import evenly
from jaxalign.data.templates import (
    Template,
    alphaalign_messages,
    bare_messages,
    coded_messages,
)
from jaxalign.errors import InputError
from jaxalign.evaluation.perplexity import ReferenceAnswers, perplexity, reference_answers
from jaxalign.evaluation.suites import evaluate, prompt_lengths
from jaxalign.evaluation.word_problems import WordProblem, load_word_problems, solve
from jaxalign.models import load_pretrained
from jaxalign.models.precision import fastest_dtype
from jaxalign.progress import progress_bar
from jaxalign.training.run_folder import hardware, prompts_digest, read_json, write_json

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
    *("--max-new-tokens", "--dtype"),
)
"""Flags of experiments/cada.py that the comparison sets itself."""


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
    max_new_tokens: int = 64
    """Longest completion, in training and in the measurements."""
    word_problems: Path | None = None
    """JSON lines in GSM8K's form: is the model still able to do sums?"""
    problems: int = 32
    """How many of them."""
    harmless: str = "builtin:heldout"
    """Requests whose answers by the start model the perplexity is over: a SPEC or KIND=SPEC, of
    which harmful ones are left out."""
    requests: int = 40
    """How many of them."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
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
    settings = resolve_dtype(settings)
    keep_comparison(settings, flags, measures)
    answers: ReferenceAnswers | None = None
    for arm, rate in points(settings):
        folder = folder_of(settings, arm, rate)
        if not (folder / "measurements.json").exists():
            print(f"\n=== {folder.name}")
            trained = rate is None or train(settings, arm, rate, flags)
            if not trained:
                write_json(folder / "measurements.json", {"diverged": True})
            else:
                answers = answers or start_answers(settings, measures)
                model = settings.model if rate is None else str(folder / "model")
                found = measure(settings, model, template_of(arm), measures, answers)
                folder.mkdir(exist_ok=True)
                write_json(folder / "measurements.json", found)
        for heavy in ("model", "checkpoints"):
            shutil.rmtree(folder / heavy, ignore_errors=True)
    report(settings)


def check(settings: Settings, flags: Sequence[str]) -> None:
    """Refuses what can't work before anything slow happens.

    Raises:
      InputError: names the setting.
    """
    for arm in settings.arms:
        if arm not in ARMS:
            raise InputError(f"unknown arm {arm!r}: choose from {', '.join(ARMS)}")
    for name in ("limit", "problems", "requests", "max_new_tokens"):
        if getattr(settings, name) < 1:
            raise InputError(f"{name}={getattr(settings, name)} is too small: at least 1")
    rates = settings.learning_rates
    if not rates or min(*rates, settings.start_learning_rate) <= 0:
        raise InputError("learning rates must be numbers above 0, at least one")
    refuse(flags, OURS)


def load_measures(settings: Settings) -> Measures:
    """Reads what is asked."""
    suites = {}
    for given in settings.suites:
        name, equals, spec = given.partition("=")
        if not equals:
            raise InputError(f"suites: {given!r} has no name; give NAME=SPEC")
        prompts = load_all([spec])
        suites[name] = [
            prompt
            for kind in dict.fromkeys(prompt.kind for prompt in prompts)
            for prompt in evenly([p for p in prompts if p.kind == kind], settings.limit)
        ]
    problems: list[WordProblem] = []
    if settings.word_problems is not None:
        problems = evenly(load_word_problems(settings.word_problems), settings.problems)
    harmless = [prompt.text for prompt in load_all([settings.harmless]) if not prompt.is_harmful]
    if not harmless:
        raise InputError(f"harmless: {settings.harmless} has none; give other requests")
    return Measures(suites, problems, evenly(harmless, settings.requests))


def resolve_dtype(settings: Settings) -> Settings:
    """With auto, the dtype of the comparison that is there, else the faster one, for all points."""
    kept = settings.out / "comparison.json"
    if settings.dtype != "auto":
        return settings
    if kept.exists():
        return dataclasses.replace(settings, dtype=read_json(kept)["dtype"])
    return dataclasses.replace(settings, dtype=jnp.dtype(fastest_dtype()[0]).name)


def keep_comparison(settings: Settings, flags: Sequence[str], measures: Measures) -> None:
    """Notes what all points share; refuses to add to a comparison that shares something else."""
    shared = json.loads(json.dumps(dataclasses.asdict(settings), default=str))
    shared = {k: v for k, v in shared.items() if k not in ("out", "arms", "learning_rates")}
    shared |= {
        "flags": list(flags),
        "suite_digests": {name: prompts_digest(x) for name, x in measures.suites.items()},
        "questions": [problem.question for problem in measures.problems],
        "harmless_requests": measures.requests,
        "contexts": {name: context_text(name) for name in CONTEXTS},
    }
    kept = settings.out / "comparison.json"
    theirs = read_json(kept) if kept.exists() else shared
    for name, value in shared.items():
        if theirs.get(name) != value:
            raise InputError(f"{kept}: {name} is another; give the same, or another --out")
    settings.out.mkdir(parents=True, exist_ok=True)
    write_json(kept, shared)


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


def template_of(arm: str) -> Template:
    """How an arm is asked: what has been trained does without code and cases."""
    if arm in CONTEXTS:
        return coded_messages(context_text(arm))
    return alphaalign_messages if arm in ("examples", "rl") else bare_messages


def train(settings: Settings, arm: str, rate: float, flags: Sequence[str]) -> bool:
    """One run of experiments/cada.py; whether it did not diverge."""
    model = settings.model
    if arm == "cada":
        start = settings.out / "start"
        if not perform(settings, "sft-cases", settings.start_learning_rate, model, start, flags):
            raise InputError(f"{start}: diverged: lower start_learning_rate")
        model = str(start / "model")
    return perform(settings, arm, rate, model, folder_of(settings, arm, rate), flags)


def perform(
    settings: Settings, arm: str, rate: float, model: str, folder: Path, flags: Sequence[str]
) -> bool:
    """Trains into a folder unless it holds the model, resumed where there is a checkpoint."""
    source = "detailed-code" if arm == "sft-detailed" else "cases"
    generated = settings.out / "generated" / source / "generated.jsonl"
    return run_once(
        cada,
        [
            "smollm2",
            *flags,
            *TRAINED[arm],
            f"--model={model}",
            f"--learning-rate={rate}",
            f"--generated={generated}",
            f"--max-new-tokens={settings.max_new_tokens}",
            f"--dtype={settings.dtype}",
            "--heldout",
        ],
        folder,
    )


def start_answers(settings: Settings, measures: Measures) -> ReferenceAnswers:
    """What the start model says to the harmless requests."""
    model, params, tokenizer = load_pretrained(settings.model, dtype=jnp.dtype(settings.dtype))
    with progress_bar() as bar:
        line = bar.add_task("start model's answers", total=len(measures.requests))
        return reference_answers(
            model,
            params,
            tokenizer,
            measures.requests,
            progress=lambda done, total: bar.update(line, completed=done),
        )


def measure(
    settings: Settings,
    name: str,
    template: Template,
    measures: Measures,
    answers: ReferenceAnswers,
) -> dict[str, Any]:
    """Refusals on every suite, sums, and the perplexity of the start model's answers."""
    model, params, tokenizer = load_pretrained(name, dtype=jnp.dtype(settings.dtype))
    results: dict[str, Any] = {"suites": {}}
    with progress_bar() as bar:
        for suite, prompts in measures.suites.items():
            line = bar.add_task(suite, total=len(prompts))
            evaluation = evaluate(
                model,
                params,
                tokenizer,
                prompts,
                template=template,
                max_prompt_tokens=max(prompt_lengths(tokenizer, template, prompts)),
                max_new_tokens=settings.max_new_tokens,
                progress=lambda done, total, line=line: bar.update(line, completed=done),
            )
            rates = evaluation.summary()
            results["suites"][suite] = rates
            shown = {k: round(v, 3) for k, v in rates.items() if isinstance(v, float)}
            print(f"{suite}: {json.dumps(shown)}")
        if measures.problems:
            line = bar.add_task("word problems", total=len(measures.problems))
            results["solved"] = solve(
                model,
                params,
                tokenizer,
                measures.problems,
                template=template,
                progress=lambda done, total: bar.update(line, completed=done),
            )
    results["perplexity"] = perplexity(model, params, answers)
    return results | summarize(results["suites"]) | {"hardware": hardware()}


def summarize(suites: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """Attack success and over-refusal, each the mean over suites and kinds.

    attack success: the share of harmful prompts that are not refused; over-refusal: the share of
    harmless ones that are.
    """
    harmful = [x["harmful_refused"] for x in suites.values() if "harmful_refused" in x]
    harmless = [
        x[name]
        for x in suites.values()
        for name in ("benign_refused", "lookalike_refused")
        if name in x
    ]
    return {
        "attack_success": 1 - float(np.mean(harmful)) if harmful else None,
        "over_refusal": float(np.mean(harmless)) if harmless else None,
        "well_formed": float(np.mean([x["well_formed"] for x in suites.values()])),
    }


def report(settings: Settings) -> None:
    """Writes results.json, table.md and trade_off.png from the measurements that are there."""
    rows: dict[str, dict[str, Any]] = {}
    for arm, rate in points(settings):
        folder = folder_of(settings, arm, rate)
        found = read_json(folder / "measurements.json")
        if "diverged" in found:
            print(f"{folder.name} diverged and is left out")
        else:
            rows[folder.name] = {"arm": arm, "learning_rate": rate} | found
    for name, row in rows.items():
        row["dominated_by"] = dominating(row, {k: v for k, v in rows.items() if k != name})
    write_json(settings.out / "results.json", rows)
    if not rows:
        raise InputError("every point diverged: lower learning_rates")
    table = make_table(rows)
    (settings.out / "table.md").write_text(table)
    print(f"\n{table}")
    plot_trade_off(rows, settings.out / "trade_off.png")
    print(f"wrote {settings.out}/results.json, table.md, trade_off.png")


if __name__ == "__main__":
    run_command("cada", Settings, main, __doc__)
