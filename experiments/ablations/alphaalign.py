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
measured); results.json, table.md, trade_off.png and arms.png.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from experiments import alphaalign, direct_refusal
from jaxalign.data.templates import alphaalign_messages
from jaxalign.host.command import run_command
from jaxalign.host.errors import InputError
from jaxalign.host.fields import Count, Positive, Rule
from jaxalign.runs import refusal_ablation
from jaxalign.runs.ablation import Arm, Point, check
from jaxalign.runs.refusal_ablation import OURS, Measures, Rates, compare_arms, train_point
from jaxalign.runs.settings import parse

TUNED = {"sft": ["--harmless", "own"], "sft-harmful-only": ["--harmless", "none"]}
"""Arms of experiments/direct_refusal.py."""


def _groups_of(samples: int) -> list[str]:
    """Flags for so many samples of each prompt, 64 in a step."""
    kinds = (
        f"--{x}={n // samples}" for x, n in (("harmful", 32), ("benign", 16), ("lookalike", 16))
    )
    return [f"--samples-per-prompt={samples}", *kinds]


REINFORCED: dict[str, list[str]] = {
    "alphaalign": [],
    "grpo": ["--objective.advantages", "group", *_groups_of(8)],
    "shrinkage": ["--objective.advantages", "shrinkage", *_groups_of(2)],
    "ppo": ["--objective", "ppo"],
    "ppo-2-epochs": ["--objective", "ppo", "--epochs", "2", "--minibatches", "2"],
    "whole-credit": ["--reward.credit", "whole"],
    "paper": ["--reward", "paper"],
    "zero": ["--helpfulness-weight", "0"],
    "no-relevance": ["--relevance", "0"],
    "no-normalisation": ["--no-normalise"],
    "no-format": ["--format-weight", "0"],
    "group-4": _groups_of(4),
    "group-8": _groups_of(8),
    "group-16": _groups_of(16),
    "noise-10": ["--label-noise", "0.1"],
    "noise-30": ["--label-noise", "0.3"],
    "loose-format": ["--format", "loose"],
    "first-sentence": ["--reward", "paper", "--refusal", "first-sentence"],
}
"""Arms of experiments/alphaalign.py: `alphaalign` is its preset demo, one sample of each of 64
prompts held to the batch's mean; each other one changes one thing, but `first-sentence`, which is
the paper's reward with other words for refusals, and `grpo` and `shrinkage`, whose baselines need
groups, of 8 and 2. `paper` has R_s in the place of judgements in words; `zero` has no helpfulness.
`paper` has one advantage for all tokens, as `whole-credit` has, and `ppo` earns the sum. Groups
keep a step's completions at 64."""

ARMS = ("base", "base-examples", *TUNED, *REINFORCED)


@dataclasses.dataclass(frozen=True)
class Settings(refusal_ablation.RefusalAblation):
    """What to compare."""

    out: Path = Path("runs/alphaalign-arms")
    arms: tuple[str, ...] = ARMS
    """Which arms: base and base-examples are the start model, asked bare, and with AlphaAlign's
    instruction and examples."""
    seeds: Count = 3
    """Runs of each arm that trains."""
    learning_rate: Positive = 5e-5
    """Of every arm of AlphaAlign."""
    sft_learning_rates: Rates = (5e-6, 2e-5, 6e-5)
    """Of the arms of direct refusals."""
    prefill: Annotated[
        tuple[int, ...],
        Rule(lambda x: min(x, default=1) > 0, "must be numbers of tokens, each at least 1"),
    ] = (5, 10, 20)
    """Prefilling attacks: tokens of a harmful answer that are forced; none for no attack."""
    prefill_suite: str = "ours"
    """The suite whose harmful prompts are attacked so."""


def arms_of(settings: Settings) -> dict[str, Arm]:
    """By name, each asked as it was trained."""
    tuned: Any = {"group": "direct refusals", "rates": settings.sft_learning_rates, "start": "base"}
    reinforced: Any = {"group": "AlphaAlign", "template": alphaalign_messages}
    return {
        "base": Arm(),
        "base-examples": Arm(template=alphaalign_messages),
        **{name: Arm(direct_refusal, ["smollm2", *x], **tuned) for name, x in TUNED.items()},
        **{name: Arm(alphaalign, ["demo", *x], **reinforced) for name, x in REINFORCED.items()},
    }


def main(settings: Settings, flags: Sequence[str]) -> None:
    """Runs and measures what is missing, then writes the tables and the plots.

    Raises:
      InputError: names the setting that can't work, before anything slow happens.
      SystemExit: a flag that one of the arms' pages does not have, after its message.
    """
    arms = arms_of(settings)
    check(settings, arms, flags, ours=(*OURS, "--seed", "--own-answers"))
    if TUNED.keys() & set(settings.arms):
        parse(["smollm2", *flags], direct_refusal.PRESETS, script="direct_refusal.py", doc="")
    if REINFORCED.keys() & set(settings.arms):
        parse(["demo", *flags], alphaalign.PRESETS, script="alphaalign.py", doc="")

    def train(settings: Settings, point: Point) -> bool:
        given = [*flags, f"--seed={point.seed}"]
        if point.arm in TUNED:
            given.append(f"--own-answers={settings.out}/own_answers/{point.seed}.jsonl")
        rate, folder = point.rate or settings.learning_rate, settings.out / point.name
        return train_point(settings, arms[point.arm], given, rate=rate, folder=folder)

    compare_arms(
        settings,
        flags,
        arms,
        load_measures(settings),
        train=train,
        seeds=range(settings.seeds),
        references=("alphaalign", "base-examples"),  # the latter: the same prompt, untrained
        may_differ=("seeds", "sft_learning_rates"),
    )


def load_measures(settings: Settings) -> Measures:
    """Reads what is asked, the prompts of prefilling attacks among it.

    Raises:
      InputError: as for every ablation, or attacks without prompts.
    """
    measures = refusal_ablation.load_measures(settings)
    attacked = [p for p in measures.suites.get(settings.prefill_suite, ()) if p.is_harmful]
    if settings.prefill and not attacked:
        raise InputError(
            f"prefill_suite: {settings.prefill_suite} is no suite with harmful prompts; name one "
            f"of {', '.join(measures.suites)}, or give --prefill without numbers"
        )
    return dataclasses.replace(measures, attacked=attacked, prefill=settings.prefill)


if __name__ == "__main__":
    run_command("alphaalign", Settings, main, __doc__, passes_on=True)
