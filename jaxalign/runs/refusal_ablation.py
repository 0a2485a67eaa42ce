"""Ablations whose models are asked suites, and compared in what they refuse.

Each point's answers and verdicts are in its evaluation/ and prefilled/, as `jaxalign eval` writes
them.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import jax.numpy as jnp
import numpy as np

from jaxalign.answers import Asking, LanguageModel
from jaxalign.data import Prompt, load_all
from jaxalign.data.order import evenly, grouped
from jaxalign.data.prompts import of_each_kind, prompts_digest
from jaxalign.evaluation.attacks import make_attack
from jaxalign.evaluation.judges import make_judge
from jaxalign.evaluation.measure import RESULTS, evaluate
from jaxalign.host.errors import InputError
from jaxalign.host.fields import Checked, Count, Rule
from jaxalign.host.hardware import hardware
from jaxalign.host.json_files import read_json, write_json
from jaxalign.host.progress import progress_bar
from jaxalign.models.precision import fastest_dtype
from jaxalign.reports import trade_off
from jaxalign.reports import trade_off_tables as tables
from jaxalign.reports.evaluation_folder import read_evaluation
from jaxalign.reports.trade_off_plots import plot_axes, plot_trade_off
from jaxalign.runs import ablation
from jaxalign.runs.ablation import Arm, Point
from jaxalign.text.chat_template import day_of
from jaxalign.utility.word_problems import WordProblem, load_word_problems, solve

JUDGES = ("phrases", "first-sentence")
EVALUATION, PREFILLED = "evaluation", "prefilled"
"""Of a point: folders as `jaxalign eval` writes them."""


Rates = Annotated[
    tuple[float, ...],
    Rule(lambda x: bool(x) and min(x) > 0, "must be numbers above 0, at least one"),
]


@dataclasses.dataclass(frozen=True)
class RefusalAblation(Checked):
    """What is compared, what every model is asked, and in which dtype."""

    out: Path
    """Folder of the comparison."""
    arms: tuple[str, ...]
    """Which arms."""
    model: str = "smollm2"
    """Start model, as for the experiments."""
    suites: tuple[str, ...] = ("ours=builtin:heldout",)
    """What is asked: NAME=SPEC or NAME=KIND=SPEC, with a SPEC as for --heldout of the experiments
    and a KIND where the data does not tell."""
    limit: Count = 60
    """Prompts of each kind of each suite, evenly spread over it."""
    max_new_tokens: Count = 96
    """Longest completion in the measurements; training's is a flag behind --."""
    word_problems: Path | None = None
    """JSON lines in GSM8K's form: is the model still able to do sums?"""
    problems: Count = 32
    """How many of them."""
    batch_size: Count = 32
    """Prompts at a time in the measurements: more is faster on an accelerator."""
    template_date: str | None = None
    """What a chat template takes for today, as YYYY-MM-DD; by default the day of the beginning."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Compute dtype of everything: bfloat16, float32, or auto, the faster one in a probe, the first
    time."""


OURS = (
    *("--model", "--run", "--resume", "--learning-rate", "--heldout", "--dtype"),
    *("--template", "--template-date", "--seeds"),
)
"""Flags of every run that the ablation sets itself."""

AnyAblation = TypeVar("AnyAblation", bound=RefusalAblation)


@dataclasses.dataclass(frozen=True)
class Measures:
    """What every model is put to.

    Attributes:
      suites: name -> prompts.
      problems: sums in words.
      attacked: prompts whose answers are made to begin with so many tokens of a harmful one.
      prefill: those numbers of tokens.
    """

    suites: dict[str, list[Prompt]]
    problems: list[WordProblem]
    attacked: Sequence[Prompt] = ()
    prefill: Sequence[int] = ()


def load_measures(settings: RefusalAblation) -> Measures:
    """Reads what is asked, of each kind of a suite at most `limit` prompts, evenly spread over it.

    Raises:
      InputError: a suite without a name, two of one name, one called like an attack, or data that
        cannot be read.
    """
    suites: dict[str, list[Prompt]] = {}
    for given in settings.suites:
        name, equals, spec = given.partition("=")
        if not equals:
            raise InputError(f"suites: {given!r} has no name; give NAME=SPEC")
        if name in suites:
            raise InputError(f"suites: two are named {name}; give each a name of its own")
        if name.startswith("prefill-"):
            raise InputError(f"suites: {name} is what attacks are called: give it another name")
        suites[name] = of_each_kind(load_all([spec]), settings.limit)
    problems: list[WordProblem] = []
    if settings.word_problems is not None:
        problems = evenly(load_word_problems(settings.word_problems), settings.problems)
    return Measures(suites, problems)


def compare_arms(
    settings: AnyAblation,
    flags: Sequence[str],
    arms: Mapping[str, Arm],
    measures: Measures,
    *,
    train: Callable[[AnyAblation, Point], bool],
    more: Callable[[AnyAblation, Point, LanguageModel], dict[str, Any]] = lambda *_: {},
    seeds: Sequence[int | None] = (None,),
    references: Sequence[str] = (),
    may_differ: Sequence[str] = (),
    **shared: Any,
) -> None:
    """Trains and measures what is missing, then writes and prints the tables.

    Date and dtype of all points are by default those of the ablation that is there, else today and
    the faster one: the functions given here get settings that have them.

    Args:
      settings: of the command.
      flags: of every run.
      arms: by name, all of them.
      measures: what every model is asked.
      train: makes a point's model, as `train_point` does.
      more: measures what else there is to a point's model.
      seeds: of arms that train.
      references: as for `report_arms`.
      may_differ: settings that may be others when the command is given again.
      **shared: what must not, beside flags, measures and the other settings.

    Raises:
      InputError: as `keep_shared`.
    """
    out, kept = settings.out, settings.out / "comparison.json"
    theirs = read_json(kept) if kept.exists() else {}
    day: Any = day_of(settings.template_date or theirs.get("template_date"))
    dtype: Any = settings.dtype
    if dtype == "auto":
        dtype = theirs["dtype"] if theirs else jnp.dtype(fastest_dtype()[0]).name
    settings = dataclasses.replace(settings, template_date=day, dtype=dtype)
    # Of the suites and the sums the content is compared.
    left_out = ("out", "arms", "suites", "word_problems", *may_differ)
    shared |= {k: v for k, v in dataclasses.asdict(settings).items() if k not in left_out}
    shared |= {"suite_digests": {name: prompts_digest(x) for name, x in measures.suites.items()}}
    shared |= {"flags": list(flags), "questions": [x.question for x in measures.problems]}
    ablation.keep_shared(out, shared)

    def measure(point: Point) -> dict[str, Any]:
        arm = arms[point.arm]
        name = settings.model if arm.page is None else str(out / point.name / "model")
        lm, found = measure_answers(settings, name, arm, measures, folder=out / point.name)
        return found | more(settings, point, lm)

    report = functools.partial(report_arms, out, arms, references)
    points = ablation.points_of(arms, settings.arms, seeds)
    ablation.measure_points(
        out, points, train=functools.partial(train, settings), measure=measure, report=report
    )
    print(f"\n{report()}\nsee {out}/results.json, table.md, trade_off.png and arms.png")


def train_point(
    settings: RefusalAblation, arm: Arm, flags: Sequence[str], *, rate: float, folder: Path
) -> bool:
    """One run of an arm's page, if it has one; whether there is a model then."""
    if arm.page is None:
        return True
    preset, *own = arm.flags
    shared = [f"--model={settings.model}", f"--dtype={settings.dtype}", f"--learning-rate={rate}"]
    shared += [f"--template-date={settings.template_date}", "--heldout"]
    return ablation.run_once(arm.page, [preset, *flags, *own, *shared], folder)


def measure_answers(
    settings: RefusalAblation, model: str, arm: Arm, measures: Measures, *, folder: Path
) -> tuple[LanguageModel, dict[str, Any]]:
    """Asks a model the suites and the sums; its answers go to evaluation/ and prefilled/.

    Args:
      settings: with a dtype.
      model: its name or folder.
      arm: how it is asked.
      measures: what is asked.
      folder: of the point.

    Returns:
      the model; `well_formed`, `finished`, `distinct`: shares of the suites' answers; `tokens`:
      their mean length; `solved`: share of the `problems`, where there are any; `hardware`.
    """
    lm = LanguageModel.load(model, settings.dtype, template_date=settings.template_date)
    asking = Asking(
        arm.template, max_new_tokens=settings.max_new_tokens, batch_size=settings.batch_size
    )
    results: dict[str, Any] = {"hardware": hardware()}
    with progress_bar() as bar:
        task = bar.add_task("loading")

        def show(name: str, done: int, total: int, tokens: int = 0) -> None:
            bar.update(task, description=name, completed=done, total=total)

        attacks = [make_attack(f"prefill={count}") for count in measures.prefill]
        for part, suites, sent in (
            (EVALUATION, measures.suites, [make_attack("none")]),
            (PREFILLED, {"attacked": measures.attacked}, attacks),
        ):
            if sent:
                evaluate(
                    lm,
                    suites,
                    asking,
                    folder / part,
                    model=model,
                    settings={"judge": JUDGES},
                    attacks=sent,
                    judges=[make_judge(judge) for judge in JUDGES],
                    progress=show,
                )
        if measures.problems:
            results["problems"] = len(measures.problems)
            results["solved"] = solve(
                lm,
                measures.problems,
                dataclasses.replace(asking, max_new_tokens=192),
                progress=functools.partial(show, "word problems"),
            )
    judged = read_evaluation(folder / EVALUATION).judged.values()
    rows = [row for those in judged for one in those for row in one.rows]
    formed = [x for those in judged for one in those for x in one.well_formed]
    return lm, results | {
        "well_formed": sum(formed) / len(rows),
        "finished": sum(row["finished"] for row in rows) / len(rows),
        "tokens": sum(row["tokens"] for row in rows) / len(rows),
        "distinct": len({row["completion"] for row in rows}) / len(rows),
    }


def read_outcomes(point: Path, measured: Mapping[str, Any]) -> trade_off.Outcomes:
    """Refusals in the folder of a point.

    Raises:
      InputError: it is of an older version, by its files or by its measurements.
    """
    if not (point / EVALUATION / RESULTS).exists() or isinstance(measured.get("solved"), str):
        raise InputError(
            f"{point}: measured by an older jaxalign; delete that folder, or give another --out"
        )
    folders = (point / EVALUATION, point / PREFILLED)
    return trade_off.outcomes_of([read_evaluation(x) for x in folders if (x / RESULTS).exists()])


def report_arms(out: Path, arms: Mapping[str, Arm], references: Sequence[str] = ()) -> str:
    """Writes results.json, table.md, trade_off.png and arms.png of all points; returns the tables.

    Args:
      out: folder of the ablation.
      arms: by name, in the order of the tables.
      references: arms that the others are held to in tables of differences; the seeds of the first
        one are held to each other.
    """
    measured, lost = ablation.measured_points(out, list(arms))
    notes = [f"{x.name} diverged, or had nothing to learn from, and is left out.\n" for x in lost]
    rows: dict[str, list[dict[str, Any]]] = {}
    draws: dict[str, trade_off.Draws] = {}
    by_seed: dict[str, dict[int | None, trade_off.Draws]] = {}
    results: dict[str, Any] = {}
    for label, points in grouped(measured, lambda point: point.label).items():
        rows[label] = [measured[point] for point in points]
        made = {x.seed: read_outcomes(out / x.name, measured[x]) for x in points}
        draws[label] = trade_off.drawn_rates(list(made.values()))
        by_seed[label] = {seed: trade_off.drawn_rates([one]) for seed, one in made.items()}
        results[label] = {
            "arm": points[0].arm,
            "rate": points[0].rate,
            "group": arms[points[0].arm].group,
            "from": arms[points[0].arm].start,
            "seeds": len(points),
            "seeded": points[0].seed is not None,
            **trade_off.with_intervals(draws[label]),
            "by_seed": [{x: float(y[0]) for x, y in z.items()} for z in by_seed[label].values()],
            "suites": trade_off.suite_rates(list(made.values())),
            **{
                key: float(np.mean([row[key] for row in rows[label]]))
                for key in (*tables.MEANS, "problems", "solved")
                if key in rows[label][0]
            },
        }
    for label, row in results.items():
        apart = [other for other in results if tables.tells(results, label, other)]
        row["dominated_by"] = [x for x in apart if trade_off.dominates(draws[x], draws[label])]
    write_json(out / "results.json", results)
    if not results:
        return "".join(notes)
    texts = [
        tables.suites_table(results),
        tables.axes_table(results),
        tables.matched_table(results),
        *(tables.reference_table(results, draws, reference) for reference in references),
        tables.nearest_table(results, draws),
        *(tables.seeds_table(first, by_seed.get(first, {})) for first in references[:1]),
        tables.hardware_note(rows),
        *notes,
    ]
    text = "\n".join(filter(None, texts))
    (out / "table.md").write_text(text)
    plot_trade_off(results, out / "trade_off.png")
    plot_axes(results, out / "arms.png")
    return text
