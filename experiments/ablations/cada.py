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
checkpoints are deleted once they are measured); results.json, table.md, trade_off.png and arms.png.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import cada
from jaxalign.answers import Asking, LanguageModel
from jaxalign.data import context_text, load_all
from jaxalign.data.casebook import ContextName
from jaxalign.data.order import evenly
from jaxalign.data.templates import alphaalign_messages, bare_messages, coded_messages
from jaxalign.host.command import run_command
from jaxalign.host.errors import InputError
from jaxalign.host.fields import Count, Positive
from jaxalign.host.progress import progress_bar
from jaxalign.runs import refusal_ablation
from jaxalign.runs.ablation import Arm, Point, check, flags_but
from jaxalign.runs.choices import to_json
from jaxalign.runs.refusal_ablation import OURS, Rates, compare_arms, train_point
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


@dataclasses.dataclass(frozen=True)
class Settings(refusal_ablation.RefusalAblation):
    """What to compare."""

    out: Path = Path("runs/cada-arms")
    arms: tuple[str, ...] = ARMS
    """Which arms: none and examples ask without and with AlphaAlign's instruction and examples."""
    learning_rates: Rates = (5e-6, 2e-5, 6e-5)
    """Of each arm that trains."""
    start_learning_rate: Positive = 2e-5
    """Of the model that the arm cada starts from."""
    code: Path | None = None
    """Safety code, as for experiments/cada.py; by default our own."""
    cases: Path | None = None
    """Cases, likewise."""
    cases_per_outcome: Count = 1
    """Cases to refuse, and as many to answer, of each category."""
    harmless: str = "builtin:heldout"
    """Requests whose answers by the start model the perplexity is over: a SPEC or KIND=SPEC, of
    which harmful ones are left out."""
    requests: Count = 40
    """How many of them."""


def arms_of(settings: Settings) -> dict[str, Arm]:
    """By name: what has been trained is asked without code and cases."""
    starts = {"rl": "examples", "cada": Point("sft-cases", settings.start_learning_rate).label}
    contexts = contexts_of(settings).items()
    return {
        "none": Arm(),
        "examples": Arm(template=alphaalign_messages),
        **{name: Arm(template=coded_messages(text)) for name, text in contexts},
        **{
            name: Arm(
                cada,
                ["smollm2", *flags],
                alphaalign_messages if name == "rl" else bare_messages,
                group=name,
                rates=settings.learning_rates,
                start=starts.get(name, "none"),
            )
            for name, flags in TRAINED.items()
        },
    }


def contexts_of(settings: Settings) -> dict[str, str]:
    """What stands before a request in `CONTEXTS`, from the code and the cases given."""
    given: Any = {x: getattr(settings, x) for x in ("code", "cases", "cases_per_outcome")}
    return {name: context_text(name, **given) for name in CONTEXTS}


def main(settings: Settings, flags: Sequence[str]) -> None:
    """Runs and measures what is missing, then writes the tables and the plots."""
    arms, ours = arms_of(settings), ("--code", "--cases", "--cases-per-outcome", "--generated")
    check(settings, arms, flags, ours=(*OURS, *ours))
    measures, requests = refusal_ablation.load_measures(settings), harmless_requests(settings)
    answers = functools.cache(lambda settings: start_answers(settings, requests))

    def more(settings: Settings, point: Point, lm: LanguageModel) -> dict[str, float]:
        # What stands before a request leaves the weights, and so these answers, alone.
        own = point.arm == "none" or point.arm in TRAINED
        return {"perplexity": perplexity(lm, answers(settings))} if own else {}

    compare_arms(
        settings,
        flags,
        arms,
        measures,
        train=functools.partial(train, arms, flags),
        more=more,
        may_differ=("learning_rates",),
        harmless_requests=requests,
        contexts=contexts_of(settings),
    )


def harmless_requests(settings: Settings) -> list[str]:
    """Reads them.

    Raises:
      InputError: there are none.
    """
    harmless = [prompt.text for prompt in load_all([settings.harmless]) if not prompt.is_harmful]
    if not harmless:
        raise InputError(f"harmless: {settings.harmless} has none; give other requests")
    return evenly(harmless, settings.requests)


def start_answers(settings: Settings, requests: Sequence[str]) -> ReferenceAnswers:
    """What the start model says to the harmless requests."""
    lm = LanguageModel.load(settings.model, settings.dtype, template_date=settings.template_date)
    asking = Asking(max_new_tokens=96, batch_size=settings.batch_size)
    with progress_bar() as bar:
        task = bar.add_task("start model's answers", total=len(requests))
        show = lambda done, total: bar.update(task, completed=done)  # noqa: E731
        return reference_answers(lm, requests, asking, progress=show)


def train(arms: Mapping[str, Arm], flags: Sequence[str], settings: Settings, point: Point) -> bool:
    """One run of experiments/cada.py, if the arm trains; whether there is a model then.

    There is none where the run diverged or had nothing to learn from: the other arms go on.
    """
    if point.arm == "cada":
        before = Point("sft-cases", settings.start_learning_rate)
        if not run(arms, flags, settings, before, settings.out / "start"):
            return False
        settings = dataclasses.replace(settings, model=str(settings.out / "start" / "model"))
    return run(arms, flags, settings, point, settings.out / point.name)


def run(
    arms: Mapping[str, Arm], flags: Sequence[str], settings: Settings, point: Point, folder: Path
) -> bool:
    """As `train`, of the settings' model, into a folder."""
    source = "detailed-code" if point.arm == "sft-detailed" else "cases"
    files = [f"--{x}={getattr(settings, x)}" for x in ("code", "cases") if getattr(settings, x)]
    generated = settings.out / "generated" / source / "generated.jsonl"
    ours = [f"--cases-per-outcome={settings.cases_per_outcome}", f"--generated={generated}"]
    given = flags_of_arm(point.arm, [*flags, *files, *ours]) if point.arm in TRAINED else []
    try:
        return train_point(settings, arms[point.arm], given, rate=point.rate, folder=folder)
    except SystemExit:
        table = folder / "yield.md"  # its last row has what was kept of all
        if table.exists() and table.read_text().rstrip().endswith("| 0 |"):
            return False
        raise


def flags_of_arm(arm: str, flags: Sequence[str]) -> list[str]:
    """Those of experiments/cada.py that an arm has, and not another one alone."""
    names = {
        name: set(to_json(parse(["smollm2", *given], cada.PRESETS, script="cada.py", doc=None)))
        for name, given in TRAINED.items()
    }
    elsewhere = set().union(*names.values()) - names[arm]
    return flags_but(flags, elsewhere.__contains__)


if __name__ == "__main__":
    run_command("cada", Settings, main, __doc__, passes_on=True)
