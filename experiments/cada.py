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

Presets (the first word) stand below with the hardware they are meant for. Every setting is a flag;
`--help` after the preset lists them and says which arm each is for.

The run folder is as experiments/alphaalign.py has it (samples.jsonl with rl alone); with
self-generation also generated.jsonl, unsafe.jsonl (DPO), what each depends on (*.facts.json), and
yield.md (what was kept, and dropped why).
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal

from jaxalign.data import Prompt, context_text
from jaxalign.data.casebook import ContextName
from jaxalign.data.templates import Template, alphaalign_messages, bare_messages
from jaxalign.engine.objective import GRPO, Objective
from jaxalign.engine.penalties import KL
from jaxalign.host.errors import InputError
from jaxalign.methods.cada.arms import GENERATED, preference, reasoning, refusal
from jaxalign.models import Transformer
from jaxalign.rewards import Safety, safety_verifiers
from jaxalign.runs.experiment import Recipe, tokenizer_of
from jaxalign.runs.presets import large
from jaxalign.runs.script import main_of
from jaxalign.runs.settings import Count, Natural, Positive, RLSettings, check_row_length


@dataclasses.dataclass(frozen=True)
class Cada(RLSettings):
    """Settings of a run."""

    run: Path = Path("runs/cada")
    """Run folder to write."""
    arm: Literal["reasoning", "preference", "refusal", "rl"] = "reasoning"
    """What is learned, see above."""
    context: ContextName = "cases"
    """reasoning, preference: what stands before a request in self-generation: the short code and
    cases, the short code alone, or the detailed one."""
    code: Path | None = None
    """reasoning, preference: safety code (YAML, jaxalign.data.load_code); by default our own."""
    cases: Path | None = None
    """reasoning, preference: cases (YAML, jaxalign.data.load_cases); by default our own."""
    cases_per_outcome: Count = 1
    """reasoning, preference: cases to refuse, and as many to answer, of each category."""
    generated: Path | None = None
    """reasoning, preference: file of self-generated answers to write, to go on with, or to use; by
    default generated.jsonl in the run folder."""
    generated_samples: Count = 2
    """reasoning, preference: answers sampled for each harmful prompt."""
    cap: Count = 24
    """All but rl: most answers to learn from, of each category."""
    template: Literal["bare", "examples"] = "bare"
    """How training and evaluation ask, without code or cases: bare, the request alone; examples,
    with AlphaAlign's instruction and worked examples, which RL needs with a small start model."""
    examples_per_step: Count = 16
    """All but rl: answers, or pairs of answers, in each update."""
    row_length: int = 256
    """reasoning, refusal: tokens of a row that answers share, with their requests."""
    beta: Positive = 0.1
    """preference: how far the policy may leave the start model; small is far."""
    rejected: Literal["unsafe", "refusal"] = "unsafe"
    """preference: the other answers: what the start model says to the request alone where that
    does not refuse, else the bare refusal; or always the bare refusal."""
    harmful: Natural = 16
    """rl: harmful prompts in each step."""
    benign: Natural = 0
    """rl: plain benign prompts in each step; CADA has none."""
    lookalike: Natural = 0
    """rl: harmless prompts that look harmful in each step; CADA has none."""
    steps: Count = 30
    """Steps in all."""
    decay_steps: Natural = 20
    """Last steps, over which the learning rate falls linearly to zero."""
    learning_rate: Positive = 2e-5
    """Peak learning rate (AdamW)."""
    objective: Objective = GRPO(kl=KL(0.02))
    """rl: what is minimized; --objective.kl none runs no reference model."""
    balance: bool = False
    """rl: weigh refusals more on the side that goes wrong more often; for runs with both sides."""

    @property
    def samples(self) -> bool:
        """Only the steps of the arm rl do."""
        return self.arm == "rl"

    @property
    def first_stage(self) -> str | None:
        """The self-generated answers."""
        return GENERATED

    def check(self) -> None:
        """Also rows, and that there are code and cases, before the model is read."""
        super().check()
        if self.arm in ("reasoning", "refusal"):
            check_row_length(self, self.row_length)
        self.code_and_cases()

    def check_plan(self) -> None:
        """Refuses the other arms."""
        if self.arm != "rl":
            raise InputError(f"arm={self.arm} takes no RL steps: add --arm rl")

    def code_and_cases(self) -> str:
        """What stands before a request in self-generation; nothing in the other arms."""
        if self.arm not in ("reasoning", "preference"):
            return ""
        return context_text(
            self.context,
            code=self.code,
            cases=self.cases,
            cases_per_outcome=self.cases_per_outcome,
        )


PRESETS: dict[str, Cada] = {
    # SmolLM2-135M on two CPU cores.
    "smollm2": Cada(),
}
# 3B- and 8B-class models, on v5e:4x4; ours, not run. `jaxalign plan … -- --arm rl` says what the
# RL arm takes.
PRESETS |= large(
    Cada,
    "cada",
    cases_per_outcome=2,
    generated_samples=8,
    cap=200,
    row_length=4096,
    examples_per_step=64,
    steps=100,
    decay_steps=80,
    learning_rate=2e-6,
    objective=GRPO(kl=KL(0.05)),
)

TEMPLATES: dict[str, Template] = {"bare": bare_messages, "examples": alphaalign_messages}


def build(settings: Cada, model: Transformer, tokenizer: Any, prompts: list[Prompt]) -> Recipe:
    """How prompts are asked, and what the arm learns: by a reward, or from answers."""
    template, context = TEMPLATES[settings.template], settings.code_and_cases()
    facts = {"context_text": context}
    if settings.arm != "rl":
        arms = {"reasoning": reasoning, "preference": preference, "refusal": refusal}
        tune = functools.partial(arms[settings.arm], context=context)
        return Recipe(template, tune=tune, facts=facts)
    with tokenizer_of(settings.model):
        verifiers = safety_verifiers(tokenizer)
    reward = Safety(verifiers, settings.format_weight, settings.refusal_weight, settings.balance)
    return Recipe(template, lambda params: reward, facts=facts)


main = main_of("cada", PRESETS, build, __doc__)

if __name__ == "__main__":
    raise SystemExit(main())
