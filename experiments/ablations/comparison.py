"""The frame of comparisons: arms x seeds or learning rates, each point trained and measured once.

A comparison is a folder. Each point has a folder in it, which holds measurements.json once it is
measured; comparison.json says what all points share.
"""

import dataclasses
import functools
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax.numpy as jnp

from jaxalign.answers import Asking, LanguageModel
from jaxalign.data import Prompt, load_all
from jaxalign.data.order import evenly
from jaxalign.data.prompts import prompts_digest
from jaxalign.data.templates import Template
from jaxalign.evaluation.attacks import make_attack
from jaxalign.evaluation.judges import make_judge
from jaxalign.evaluation.measure import RESULTS, evaluate
from jaxalign.host.errors import InputError
from jaxalign.host.hardware import hardware
from jaxalign.host.json_files import read_json, write_json
from jaxalign.host.progress import progress_bar
from jaxalign.models.precision import fastest_dtype
from jaxalign.reports.evaluation_folder import Evaluated, read_evaluation
from jaxalign.runs.settings import has_checkpoint
from jaxalign.text.chat_template import day_of
from jaxalign.utility.word_problems import WordProblem, load_word_problems, solve


@dataclasses.dataclass(frozen=True)
class Comparison:
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
    limit: int = 60
    """Prompts of each kind of each suite, evenly spread over it."""
    max_new_tokens: int = 96
    """Longest completion in the measurements; training's is a flag behind --."""
    word_problems: Path | None = None
    """JSON lines in GSM8K's form: is the model still able to do sums?"""
    problems: int = 32
    """How many of them."""
    batch_size: int = 32
    """Prompts at a time in the measurements: more is faster on an accelerator."""
    template_date: str | None = None
    """What a chat template takes for today, as YYYY-MM-DD; by default the day of the beginning."""
    dtype: str = "auto"
    """Compute dtype of everything: bfloat16, float32, or auto, the faster one in a probe, the first
    time."""


JUDGES = ("phrases", "first-sentence")
EVALUATION, PREFILLED = "evaluation", "prefilled"
"""Of a point: folders as `jaxalign eval` writes them."""

AnyComparison = TypeVar("AnyComparison", bound=Comparison)


@dataclasses.dataclass(frozen=True)
class Point:
    """One model to measure: an arm, its learning rate if it trains with several, and a seed."""

    arm: str
    rate: float | None = None
    seed: int | None = None

    @property
    def label(self) -> str:
        """The arm, with its rate if it has one."""
        return self.arm if self.rate is None else f"{self.arm} {self.rate:g}"

    @property
    def name(self) -> str:
        """Of its folder."""
        label = self.label.replace(" ", "-")
        return label if self.seed is None else f"{label}-{self.seed}"


@dataclasses.dataclass(frozen=True)
class Measures:
    """What every model is put to.

    Attributes:
      suites: name -> prompts.
      problems: sums in words.
      attacked: prompts whose answers are made to begin in some way.
      requests: those whose answers a perplexity is over.
    """

    suites: dict[str, list[Prompt]]
    problems: list[WordProblem]
    attacked: Sequence[Prompt] = ()
    requests: Sequence[str] = ()


def check(
    settings: Any, known: Sequence[str], flags: Sequence[str], *, ours: Sequence[str], counts: str
) -> None:
    """Refuses what no comparison can work with.

    Args:
      settings: of the command, with `arms`.
      known: the arms there are.
      flags: behind `--`.
      ours: flags that the comparison sets itself, and so those of their fields.
      counts: settings that must be at least 1, with spaces between.

    Raises:
      InputError: names the arm, the flag or the setting.
    """
    for arm in settings.arms:
        if arm not in known:
            raise InputError(f"unknown arm {arm!r}: choose from {', '.join(known)}")
    for given in flags:
        name = given.partition("=")[0].replace("_", "-")
        for flag in ours:
            if name == flag:
                raise InputError(f"{flag} is the comparison's to set: leave it out behind --")
            if name.startswith(f"{flag}."):
                raise InputError(
                    f"{name}: flags that begin with {flag} are the comparison's to set: leave it "
                    "out behind --"
                )
    for name in counts.split():
        if getattr(settings, name) < 1:
            raise InputError(f"{name}={getattr(settings, name)} is too small: at least 1")


def flags_but(flags: Sequence[str], leave: Callable[[str], bool]) -> list[str]:
    """The flags, with their values, but for those to leave by their names, such as `cold_start`."""
    kept: list[str] = []
    keep = True
    for word in flags:
        if word.startswith("--"):
            name = re.split(r"[=.]", word.removeprefix("--").removeprefix("no-"))[0]
            keep = not leave(name.replace("-", "_"))
        kept += [word] if keep else []
    return kept


def of_each_kind(prompts: Sequence[Prompt], limit: int) -> list[Prompt]:
    """At most `limit` prompts of each kind, evenly spread over it."""
    return [
        prompt
        for kind in dict.fromkeys(prompt.kind for prompt in prompts)
        for prompt in evenly([p for p in prompts if p.kind == kind], limit)
    ]


def load_measures(settings: Comparison) -> Measures:
    """Reads what is asked, of each kind of a suite at most `limit` prompts, evenly spread over it.

    Raises:
      InputError: a suite without a name, two of one name, or data that cannot be read.
    """
    suites: dict[str, list[Prompt]] = {}
    for given in settings.suites:
        name, equals, spec = given.partition("=")
        if not equals:
            raise InputError(f"suites: {given!r} has no name; give NAME=SPEC")
        if name in suites:
            raise InputError(f"suites: two are named {name}; give each a name of its own")
        suites[name] = of_each_kind(load_all([spec]), settings.limit)
    problems: list[WordProblem] = []
    if settings.word_problems is not None:
        problems = evenly(load_word_problems(settings.word_problems), settings.problems)
    return Measures(suites, problems)


def begin(
    settings: AnyComparison,
    flags: Sequence[str],
    measures: Measures,
    *,
    may_differ: Sequence[str],
    **more: Any,
) -> AnyComparison:
    """Begins a comparison, or goes on with the one that is there.

    Its points share flags, measures, `more`, and the settings but those named in `may_differ`.

    Returns:
      the settings with the date and dtype of all points: by default those of the one that is there,
      else today and the faster one.

    Raises:
      InputError: an unknown dtype, or as `keep_shared`.
    """
    if settings.dtype not in ("auto", "bfloat16", "float32"):
        raise InputError(f"dtype: unknown value {settings.dtype!r}; use auto, bfloat16 or float32")
    kept = settings.out / "comparison.json"
    theirs = read_json(kept) if kept.exists() else {}
    day = day_of(settings.template_date or theirs.get("template_date"))
    settings = dataclasses.replace(settings, template_date=day)
    if settings.dtype == "auto":
        dtype = theirs["dtype"] if theirs else jnp.dtype(fastest_dtype()[0]).name
        settings = dataclasses.replace(settings, dtype=str(dtype))
    # Of the suites and the sums the content is compared.
    left_out = ("out", "arms", "suites", "word_problems", *may_differ)
    shared = {k: v for k, v in dataclasses.asdict(settings).items() if k not in left_out}
    shared |= {
        "flags": list(flags),
        "suite_digests": {name: prompts_digest(x) for name, x in measures.suites.items()},
        "questions": [problem.question for problem in measures.problems],
    }
    keep_shared(settings.out, shared | more)
    return settings


def keep_shared(out: Path, shared: Mapping[str, Any]) -> None:
    """Notes what all points share; refuses to add to a comparison that shares something else.

    Where no point has begun there is nothing to add to: after a mistyped model, say.

    Raises:
      InputError: names what is another, or a folder that cannot be made.
    """
    values = json.loads(json.dumps(shared, default=str))
    kept = out / "comparison.json"
    begun = any(path.is_file() for path in out.glob("*/*")) or any(out.glob("*.jsonl"))
    theirs = read_json(kept) if kept.exists() and begun else values
    for name, value in values.items():
        if theirs.get(name) != value:
            raise InputError(f"{kept}: {name} is another; give the same, or another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out: {out} cannot be made ({error.strerror}); give another") from error
    write_json(kept, values)


def measure_points(
    out: Path,
    points: Sequence[Point],
    *,
    train: Callable[[Point], bool],
    measure: Callable[[Point], Mapping[str, Any]],
    report: Callable[[], object] = lambda: None,
) -> None:
    """Trains and measures each point that is not measured yet, then deletes its model.

    Args:
      out: folder of the comparison.
      points: in their order.
      train: makes the point's model if it needs one; whether there is one then.
      measure: the content of its measurements.json.
      report: called after each point that was measured.
    """
    for point in points:
        folder = out / point.name
        if not (folder / "measurements.json").exists():
            print(f"\n=== {point.name}")
            folder.mkdir(exist_ok=True)
            found = measure(point) if train(point) else {"diverged": True}
            write_json(folder / "measurements.json", {**dataclasses.asdict(point), **found})
            report()
        for heavy in ("model", "checkpoints"):
            shutil.rmtree(folder / heavy, ignore_errors=True)


def measured_points(
    out: Path, order: Sequence[str]
) -> tuple[dict[Point, dict[str, Any]], list[Point]]:
    """The measurements of all points there are, by arm in an order, rate and seed.

    Returns:
      those that have a model, and those that came to none.
    """
    rows = {
        Point(row["arm"], row["rate"], row["seed"]): row
        for row in map(read_json, out.glob("*/measurements.json"))
    }
    points = sorted(rows, key=lambda x: (order.index(x.arm), x.rate or 0, x.seed or 0))
    lost = [point for point in points if "diverged" in rows[point]]
    return {point: rows[point] for point in points if point not in lost}, lost


def run_once(script: Callable[[Sequence[str]], int], arguments: Sequence[str], run: Path) -> bool:
    """Runs an experiment unless it is done, resumed where there is a checkpoint.

    Args:
      script: its `main`.
      arguments: all but --run and --resume.
      run: its folder.

    Returns:
      whether it came to an end; not if it diverged.

    Raises:
      SystemExit: the script's code after an error; 130 when it was interrupted.
    """
    done = run / "summary.json"  # is written after the model
    if done.exists():
        return True
    resume = ["--resume"] if has_checkpoint(run) else []
    code = script([*arguments, f"--run={run}", *resume])
    if code == 1:
        return False
    if code or not done.exists():
        raise SystemExit(code or 130)
    return True


def measure_answers(
    settings: Comparison,
    model: str,
    template: Template,
    measures: Measures,
    *,
    folder: Path,
    prefill: Sequence[int] = (),
) -> tuple[LanguageModel, dict[str, Any]]:
    """Asks a model the suites and the sums; its answers go to evaluation/ and prefilled/.

    Args:
      settings: of the comparison.
      model: its name or folder.
      template: how it is asked.
      measures: what is asked.
      folder: of the point.
      prefill: so many tokens of a harmful answer the answers to `measures.attacked` begin with.

    Returns:
      the model; `well_formed`, `finished`, `distinct`: shares of the suites' answers; `tokens`:
      their mean length; `solved`: share of the `problems`, where there are any; `hardware`.
    """
    lm = LanguageModel.load(model, settings.dtype, template_date=settings.template_date)
    asking = Asking(
        template,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
    )
    attacks = [make_attack(f"prefill={count}") for count in prefill]
    results: dict[str, Any] = {"hardware": hardware()}
    with progress_bar() as bar:
        task = bar.add_task("loading")

        def show(name: str, done: int, total: int, tokens: int = 0) -> None:
            bar.update(task, description=name, completed=done, total=total)

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
                Asking(template, max_new_tokens=192, batch_size=settings.batch_size),
                progress=functools.partial(show, "word problems"),
            )
    rows = [
        (row, formed)
        for those in read_evaluation(folder / EVALUATION).judged.values()
        for judged in those
        for row, formed in zip(judged.rows, judged.well_formed, strict=True)
    ]
    return lm, results | {
        "well_formed": sum(formed for _, formed in rows) / len(rows),
        "finished": sum(row["finished"] for row, _ in rows) / len(rows),
        "tokens": sum(row["tokens"] for row, _ in rows) / len(rows),
        "distinct": len({row["completion"] for row, _ in rows}) / len(rows),
    }


def read_evaluations(point: Path) -> list[Evaluated]:
    """What `measure_answers` wrote into the folder of a point.

    Raises:
      InputError: nothing, which an older version did.
    """
    if not (point / EVALUATION / RESULTS).exists():
        raise InputError(
            f"{point}: measured by an older jaxalign; delete that folder, or give another --out"
        )
    folders = (point / EVALUATION, point / PREFILLED)
    return [read_evaluation(folder) for folder in folders if (folder / RESULTS).exists()]
