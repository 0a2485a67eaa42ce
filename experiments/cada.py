"""CADA (arXiv 2601.08000): learn to judge from cases, and answer without them in context.

    python experiments/cada.py smollm2
    python experiments/cada.py smollm2 --run runs/detailed --context detailed-code
    python experiments/cada.py smollm2 --run runs/refusal --arm refusal
    python experiments/cada.py smollm2 --run runs/dpo --arm preference \
        --generated runs/cada/generated.jsonl
    python experiments/cada.py smollm2 --run runs/rl --model runs/cada/model --arm rl

The model answers harmful requests with a short code and cases in context; what is well-formed and
refuses is kept, at most --cap of each hazard. --arm says what is learned, always from the request
alone, without code or cases:

    reasoning     those answers, by cross-entropy on packed rows
    preference    those answers rather than ones that comply, or than a bare refusal (DPO)
    refusal       one sentence that refuses: the arm without reasoning
    rl            nothing is generated before: the reward is refusal + format, the loss has a KL to
                  the start model

The arms that need no training, code or cases in context, are `jaxalign eval --template cases` (or
short-code, detailed-code). `python -m experiments.ablations.cada` compares all of them.

Presets (the first word) stand below with the hardware they are meant for. Every setting is a flag,
also those of the arm that --arm chooses; `--help` behind preset and arm lists them.

The run folder is as experiments/alphaalign.py has it (samples.jsonl with rl alone); with
self-generation also generated.jsonl, unsafe.jsonl (DPO), what each depends on (*.facts.json), and
yield.md (what was kept, and dropped why).
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from jaxalign.data import Prompt
from jaxalign.data.templates import Template, alphaalign_messages, bare_messages
from jaxalign.methods.cada.arms import GENERATED, RL, Arm, Reasoning
from jaxalign.models import Transformer
from jaxalign.rewards import Safety, safety_verifiers
from jaxalign.runs.choices import FLAT
from jaxalign.runs.presets import large
from jaxalign.runs.recipe import Recipe
from jaxalign.runs.script import main_of
from jaxalign.runs.settings import Learning, Loop, Settings
from jaxalign.runs.start_model import tokenizer_of


@dataclasses.dataclass(frozen=True)
class Cada(Settings):
    """Settings of a run."""

    run: Path = Path("runs/cada")
    """Run folder to write."""
    template: Literal["bare", "examples"] = "bare"
    """How training and evaluation ask, without code or cases: bare, the request alone; examples,
    with AlphaAlign's instruction and worked examples, which RL needs with a small start model."""
    arm: Annotated[Arm, FLAT] = Reasoning()
    """What is learned, see above."""
    learning: Annotated[Learning, FLAT] = Learning(learning_rate=2e-5, decay_steps=20)
    """The optimizer."""
    loop: Annotated[Loop, FLAT] = Loop(steps=30)
    """The steps."""

    @property
    def rl(self) -> RL | None:
        """The arm, where it is RL."""
        return self.arm if isinstance(self.arm, RL) else None

    @property
    def first_stage(self) -> str | None:
        """The self-generated answers."""
        return GENERATED


PRESETS: dict[str, Cada] = {
    # SmolLM2-135M on two CPU cores.
    "smollm2": Cada(),
}
# 3B- and 8B-class models, on v5e:4x4; ours, not run. `jaxalign plan … -- --arm rl
# --samples-per-prompt 8 --objective.kl.coefficient 0.05` says what the RL arm takes.
PRESETS |= large(
    Cada(),
    "cada",
    cases_per_outcome=2,
    generated_samples=8,
    cap=200,
    row_length=4096,
    examples_per_step=64,
    steps=100,
    decay_steps=80,
    learning_rate=2e-6,
)

TEMPLATES: dict[str, Template] = {"bare": bare_messages, "examples": alphaalign_messages}


def build(settings: Cada, model: Transformer, tokenizer: Any, prompts: list[Prompt]) -> Recipe:
    """How prompts are asked, and what the arm learns: by a reward, or from answers."""
    template, arm = TEMPLATES[settings.template], settings.arm
    if not isinstance(arm, RL):
        own = getattr(arm, "own", None)
        facts = {"context_text": "" if own is None else own.context_text()}
        return Recipe(template, tune=arm.tune, facts=facts)
    with tokenizer_of(settings.start.model):
        verifiers = safety_verifiers(tokenizer)
    reward = Safety(verifiers, arm.format_weight, arm.refusal_weight, arm.balance)
    return Recipe(template, lambda params: reward)


main = main_of("cada", PRESETS, build, __doc__)

if __name__ == "__main__":
    raise SystemExit(main())
