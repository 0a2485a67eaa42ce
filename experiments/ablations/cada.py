"""CADA's arms at matched strength: what does each cost in over-refusal and utility?

    python -m experiments.ablations.cada
    python -m experiments.ablations.cada --arms rl cada --learning-rates 1e-5 4e-5
    python -m experiments.ablations.cada --suites ours=builtin:heldout \
        advbench=harmful=advbench.csv strongreject=harmful=strongreject.csv \
        xstest=xstest_prompts.csv --word-problems gsm8k_test.jsonl \
        -- --steps 20 --cap 8        # flags of experiments/cada.py, for the arms that have them

Five arms leave the model as it is and differ in what stands before the request; the others train
it, each with several learning rates, for over-refusal grows with the rate long before harmlessness
is complete: an arm is a curve and not a point. `cada` is the whole method: RL from a model that has
learned from its own reasoning (start/). One self-generation serves all runs. A point that is
measured already is not measured again, so the command can be stopped and given again, with other
arms and learning rates too: the table and the plot show all points of --out.

It writes, under --out: generated/ (the answers to learn from), start/, one folder per point with
its config, metrics, evaluation/ (as `jaxalign eval` does) and measurements.json (model and
checkpoints are deleted once they are measured); results.json, table.md and trade_off.png.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.ablations import comparison, trade_off
from experiments.ablations.comparison import Measures, Point
from experiments.ablations.trade_off import AXES, drawn_rates, outcomes_of
from experiments.cada import PRESETS
from experiments.cada import main as cada
from jaxalign.answers import Asking, LanguageModel
from jaxalign.data import context_text, load_all
from jaxalign.data.casebook import ContextName
from jaxalign.data.order import evenly
from jaxalign.data.templates import Template, alphaalign_messages, bare_messages, coded_messages
from jaxalign.host.command import run_command
from jaxalign.host.errors import InputError
from jaxalign.host.json_files import write_json
from jaxalign.host.progress import progress_bar
from jaxalign.runs.choices import to_json
from jaxalign.runs.settings import parse
from jaxalign.utility.perplexity import ReferenceAnswers, perplexity, reference_answers

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
    *("--dtype", "--template-date", "--seeds"),
)
"""Flags of experiments/cada.py that the comparison sets itself."""


@dataclasses.dataclass(frozen=True)
class Settings(comparison.Comparison):
    """What to compare."""

    out: Path = Path("runs/cada-arms")
    arms: tuple[str, ...] = ARMS
    """Which arms: none and examples ask without and with AlphaAlign's instruction and examples."""
    learning_rates: tuple[float, ...] = (5e-6, 2e-5, 6e-5)
    """Of each arm that trains."""
    start_learning_rate: float = 2e-5
    """Of the model that the arm cada starts from."""
    code: Path | None = None
    """Safety code, as for experiments/cada.py; by default our own."""
    cases: Path | None = None
    """Cases, likewise."""
    cases_per_outcome: int = 1
    """Cases to refuse, and as many to answer, of each category."""
    harmless: str = "builtin:heldout"
    """Requests whose answers by the start model the perplexity is over: a SPEC or KIND=SPEC, of
    which harmful ones are left out."""
    requests: int = 40
    """How many of them."""


def main(settings: Settings, flags: Sequence[str]) -> None:
    """Runs and measures what is missing, then writes the table and the plot."""
    counts = "limit problems requests max_new_tokens cases_per_outcome batch_size"
    comparison.check(settings, ARMS, flags, ours=OURS, counts=counts)
    rates = settings.learning_rates
    if not rates or min(*rates, settings.start_learning_rate) <= 0:
        raise InputError("learning rates must be numbers above 0, at least one")
    measures = load_measures(settings)
    settings = comparison.begin(
        settings,
        flags,
        measures,
        may_differ=("learning_rates",),
        harmless_requests=measures.requests,
        contexts={name: context_of(settings, name) for name in CONTEXTS},
    )
    answers = functools.cache(functools.partial(start_answers, settings, measures))
    comparison.measure_points(
        settings.out,
        points(settings),
        train=lambda point: train(settings, point, flags),
        measure=lambda point: measure(settings, point, measures, answers()),
        report=lambda: report(settings.out),
    )
    print(f"\n{report(settings.out)}see {settings.out}/results.json, table.md, trade_off.png")


def load_measures(settings: Settings) -> Measures:
    """Reads what is asked, harmless requests among it.

    Raises:
      InputError: as for every comparison, or no harmless requests.
    """
    measures = comparison.load_measures(settings)
    harmless = [prompt.text for prompt in load_all([settings.harmless]) if not prompt.is_harmful]
    if not harmless:
        raise InputError(f"harmless: {settings.harmless} has none; give other requests")
    return dataclasses.replace(measures, requests=evenly(harmless, settings.requests))


def points(settings: Settings) -> list[Point]:
    """Every arm with each of its learning rates."""
    return [
        Point(arm, rate)
        for arm in settings.arms
        for rate in (settings.learning_rates if arm in TRAINED else (None,))
    ]


def context_of(settings: Settings, name: ContextName) -> str:
    """What stands before a request, from the code and the cases of this comparison."""
    given = {x: getattr(settings, x) for x in ("code", "cases", "cases_per_outcome")}
    return context_text(name, **given)


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


def train(
    settings: Settings, point: Point, flags: Sequence[str], *, folder: Path | None = None
) -> bool:
    """One run of experiments/cada.py, if the arm trains; whether there is a model then.

    There is none where the run diverged or had nothing to learn from: the other arms go on.
    """
    if point.rate is None:
        return True
    folder, model = folder or settings.out / point.name, settings.model
    if point.arm == "cada":
        before, start = Point("sft-cases", settings.start_learning_rate), settings.out / "start"
        if not train(settings, before, flags, folder=start):
            return False
        model = str(start / "model")
    source = "detailed-code" if point.arm == "sft-detailed" else "cases"
    files = [f"--{x}={getattr(settings, x)}" for x in ("code", "cases") if getattr(settings, x)]
    given = [
        *flags,
        *files,
        f"--cases-per-outcome={settings.cases_per_outcome}",
        f"--generated={settings.out / 'generated' / source / 'generated.jsonl'}",
    ]
    arguments = [
        "smollm2",
        *TRAINED[point.arm],
        *flags_of_arm(TRAINED[point.arm], given),
        f"--model={model}",
        f"--learning-rate={point.rate}",
        f"--dtype={settings.dtype}",
        f"--template-date={settings.template_date}",
        "--heldout",
    ]
    try:
        return comparison.run_once(cada, arguments, folder)
    except SystemExit:
        if not nothing_kept(folder):
            raise
        return False


def flags_of_arm(arm: Sequence[str], flags: Sequence[str]) -> list[str]:
    """Those of experiments/cada.py that an arm has, and not another one alone."""

    def names(chosen: Sequence[str]) -> set[str]:
        return set(to_json(parse(["smollm2", *chosen], PRESETS, script="cada.py", doc=None)))

    elsewhere = set().union(*map(names, TRAINED.values())) - names(arm)
    return comparison.flags_but(flags, elsewhere.__contains__)


def nothing_kept(folder: Path) -> bool:
    """Whether a run ended because no self-generated answer passed the filters."""
    table = folder / "yield.md"
    return table.exists() and table.read_text().rstrip().endswith("| 0 |")


def start_answers(settings: Settings, measures: Measures) -> ReferenceAnswers:
    """What the start model says to the harmless requests."""
    lm = LanguageModel.load(settings.model, settings.dtype, template_date=settings.template_date)
    with progress_bar() as bar:
        task = bar.add_task("start model's answers", total=len(measures.requests))
        return reference_answers(
            lm,
            measures.requests,
            Asking(max_new_tokens=96, batch_size=settings.batch_size),
            progress=lambda done, total: bar.update(task, completed=done),
        )


def measure(
    settings: Settings, point: Point, measures: Measures, answers: ReferenceAnswers
) -> dict[str, Any]:
    """Refusals on every suite, sums, and the perplexity of the start model's answers.

    Arms that only change what stands before the request have no perplexity of their own: the
    weights, and so the answers to bare requests, are those of `none`.
    """
    folder = settings.out / point.name
    name = settings.model if point.rate is None else str(folder / "model")
    asked, template = template_of(settings, point.arm)
    lm, results = comparison.measure_answers(settings, name, template, measures, folder=folder)
    if measures.problems:
        count = len(measures.problems)
        results["solved"] = f"{round(results['solved'] * count)}/{count}"
    if point.arm == "none" or point.rate is not None:
        results["perplexity"] = perplexity(lm, answers)
    return results | {"asked": asked, "from": origin_of(settings, point.arm)}


def report(out: Path) -> str:
    """Writes results.json, table.md and trade_off.png of all points; returns the tables."""
    points, lost = comparison.measured_points(out, ARMS)
    notes = [
        f"{point.name} diverged, or had nothing to learn from, and is left out.\n" for point in lost
    ]
    rows, draws = {}, {}
    for point, row in points.items():
        evaluations = comparison.read_evaluations(out / point.name)
        outcomes = outcomes_of(evaluations)
        draws[point.name] = drawn = drawn_rates(outcomes)
        at_once = drawn_rates(outcomes_of(evaluations, "first-sentence"))
        rows[point.name] = row | {
            **{axis: trade_off.measured(drawn, axis) for axis in AXES},
            "first_sentence": [trade_off.measured(at_once, axis) for axis in AXES],
            "intervals": {axis: trade_off.interval(values) for axis, values in drawn.items()},
            "suites": trade_off.suite_rates([outcomes]),
        }
    for name, row in rows.items():
        others = (other for other in rows if other != name and trade_off.placed(row))
        row["dominated_by"] = [x for x in others if trade_off.dominates(draws[x], draws[name])]
    write_json(out / "results.json", rows)
    if not rows:
        return "".join(notes)
    tables = "\n".join([trade_off.make_table(rows), trade_off.make_matched_table(rows), *notes])
    (out / "table.md").write_text(tables)
    trade_off.plot_trade_off(rows, out / "trade_off.png")
    return tables


if __name__ == "__main__":
    run_command("cada", Settings, main, __doc__, passes_on=True)
