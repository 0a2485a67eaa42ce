"""Direct-refusal tuning, the baseline that AlphaAlign is held to: one sentence for what is harmful.

    python experiments/direct_refusal.py smollm2
    python experiments/direct_refusal.py smollm2 --run runs/harmful-only --harmless none

The model learns, by cross-entropy on packed rows, one short refusal for every harmful training
prompt. With `--harmless own` (the default) it also learns what the start model itself answers to
the harmless ones, refusals left out: without them tuning has no reason not to refuse everything.
Which of the two the paper's own baseline is, it does not say; the answers of one's own are ours.

Prompts are asked bare, without instruction or examples. The run folder is as
experiments/alphaalign.py has it, with own_answers.jsonl in the place of samples.jsonl.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from jaxalign.data.prompts import Asked, Prompt
from jaxalign.data.templates import bare_messages
from jaxalign.host.errors import InputError
from jaxalign.methods.cada.arms import sample_answers
from jaxalign.methods.cada.selection import refusal_tokens
from jaxalign.models import Transformer
from jaxalign.records import Params
from jaxalign.runs.choices import FLAT
from jaxalign.runs.experiment import Experiment
from jaxalign.runs.loop import Training
from jaxalign.runs.recipe import Recipe
from jaxalign.runs.script import main_of
from jaxalign.runs.settings import Learning, Packed, Settings
from jaxalign.runs.tuning import supervised

OWN_ANSWERS = "own_answers.jsonl"


@dataclasses.dataclass(frozen=True)
class DirectRefusal(Settings):
    """Settings of a run; lengths and temperature are those of answers of its own."""

    run: Path = Path("runs/direct-refusal")
    """Run folder to write."""
    harmless: Literal["own", "none"] = "own"
    """What is learned of harmless prompts: the start model's own answers, or nothing."""
    own_answers: Path | None = None
    """File of the start model's answers to write, to go on with, or to use; by default
    own_answers.jsonl in the run folder."""
    rows: Annotated[Packed, FLAT] = Packed()
    """How answers are learned."""
    learning: Annotated[Learning, FLAT] = Learning(learning_rate=2e-5)
    """The optimizer."""

    @property
    def first_stage(self) -> str | None:
        """The start model's answers."""
        return OWN_ANSWERS


PRESETS = {
    # SmolLM2-135M on two CPU cores.
    "smollm2": DirectRefusal(),
}


def build(
    settings: DirectRefusal, model: Transformer, tokenizer: Any, prompts: list[Prompt]
) -> Recipe:
    """How prompts are asked, and what is learned."""
    return Recipe(bare_messages, tune=tune)


def tune(run: Experiment, params: Params) -> Training:
    """Cross-entropy of a refusal of what is harmful, and of own answers to what is not."""
    ids = refusal_tokens(run.tokenizer)
    answers = [(prompt.asked, ids) for prompt in run.prompts if prompt.is_harmful]
    if not answers:
        raise InputError("prompts: none of them is harmful: there is nothing to refuse")
    if run.settings.harmless == "own":
        answers += own_answers(run, params)
    return supervised(run, answers, run.settings.rows)


def own_answers(run: Experiment, params: Params) -> list[tuple[Asked, list[int]]]:
    """One answer of the start model to each harmless prompt; those that refuse are left out.

    An answer that was cut off is learned as far as it goes.
    """
    harmless = [prompt for prompt in run.prompts if not prompt.is_harmful]
    if not harmless:
        raise InputError("prompts: all of them are harmful: give harmless ones, or --harmless none")
    made = sample_answers(
        run,
        params,
        harmless,
        run.settings.own_answers or run.settings.run / OWN_ANSWERS,
        "answering harmless prompts",
        batch_size=64,
    )
    kept = [(one.asked, one.tokens) for one in made if not one.refused]
    print(f"own answers: {len(made)}, {len(made) - len(kept)} refuse and are left out")
    if not kept:
        raise InputError("the start model refuses every harmless prompt: use --harmless none")
    return kept


main = main_of("direct_refusal", PRESETS, build, __doc__)

if __name__ == "__main__":
    raise SystemExit(main())
