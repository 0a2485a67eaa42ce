"""CADA's arms: what is generated, what is kept of it, and what a run then trains."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

from jaxalign.data import Prompt, context_text
from jaxalign.data.casebook import ContextName
from jaxalign.data.order import first_of_each
from jaxalign.data.templates import Template, bare_messages, coded_messages
from jaxalign.engine.dpo import PairBatches, make_preference_step
from jaxalign.engine.objective import GRPO, Objective
from jaxalign.engine.penalties import KL
from jaxalign.host.errors import InputError
from jaxalign.host.fields import Checked, Count, Natural, Positive
from jaxalign.host.processes import is_first
from jaxalign.methods.cada.selection import choose, make_pairs, refusal_tokens, yield_table
from jaxalign.methods.cada.self_generation import Generated, self_generate
from jaxalign.records import Params
from jaxalign.runs import settings
from jaxalign.runs.choices import FLAT
from jaxalign.runs.experiment import Experiment
from jaxalign.runs.loop import Training
from jaxalign.runs.schedule import make_run_optimizer
from jaxalign.runs.settings import Packed, Settings
from jaxalign.runs.tuning import supervised, tuning
from jaxalign.sampling import Temperature

GENERATED = "generated.jsonl"
"""What self-generation writes into the run folder."""


@dataclasses.dataclass(frozen=True)
class SelfGeneration(Checked):
    """Settings of the answers that a run learns from, which the start model writes itself."""

    context: ContextName = "cases"
    """What stands before a request in self-generation: the short code and cases, the short code
    alone, or the detailed one."""
    code: Path | None = None
    """Safety code (YAML, jaxalign.data.load_code); by default our own."""
    cases: Path | None = None
    """Cases (YAML, jaxalign.data.load_cases); by default our own."""
    cases_per_outcome: Count = 1
    """Cases to refuse, and as many to answer, of each category."""
    generated: Path | None = None
    """File of self-generated answers to write, to go on with, or to use; by default generated.jsonl
    in the run folder."""
    generated_samples: Count = 2
    """Answers sampled for each harmful prompt."""
    cap: Count = 24
    """Most answers to learn from, of each category."""

    def context_text(self) -> str:
        """What stands before a request."""
        return context_text(
            self.context,
            code=self.code,
            cases=self.cases,
            cases_per_outcome=self.cases_per_outcome,
        )

    def check_with(self, settings: Settings) -> None:
        """Reads code and cases, which may be wrong, before the model is read."""
        del settings
        self.context_text()

    def file(self, run: Experiment) -> Path:
        """Where the answers are."""
        return self.generated or run.settings.run / GENERATED

    def answers(
        self, run: Experiment, params: Params, path: Path, template: Template
    ) -> list[Generated]:
        """Answers to the harmful prompts, from the file where it has them."""
        return sample_answers(
            run,
            params,
            harmful_of(run),
            path,
            f"generating {path.name}",
            template=template,
            samples=self.generated_samples,
            batch_size=16,
        )

    def kept_answers(self, run: Experiment, params: Params) -> list[Generated]:
        """Answers with code or cases in context that pass the filters; writes yield.md."""
        template = coded_messages(self.context_text())
        made = self.answers(run, params, self.file(run), template)
        kept, table = choose(made, cap=self.cap)
        path = run.settings.run / "yield.md"
        if is_first():
            path.write_text(yield_table(table))
        print(f"self-generation: {len(made)} answers, {len(kept)} kept; see {path}")
        for category, counts in table.items():
            if not counts["kept"]:
                print(f"self-generation: nothing is left of {category}")
        if not kept:
            raise InputError(
                f"no self-generated answer is well-formed and refuses ({path}): in another --run "
                "raise generated_samples or max_new_tokens, or take a larger model"
            )
        return kept


@dataclasses.dataclass(frozen=True)
class Reasoning:
    """Learns the answers that were kept, by cross-entropy on packed rows."""

    own: Annotated[SelfGeneration, FLAT] = SelfGeneration()
    """The answers."""
    rows: Annotated[Packed, FLAT] = Packed()
    """How they are learned."""

    def tune(self, run: Experiment, params: Params) -> Training:
        """What the run trains with."""
        kept = self.own.kept_answers(run, params)
        return supervised(run, [(one.asked, one.tokens) for one in kept], self.rows)


@dataclasses.dataclass(frozen=True)
class Refusal(Checked):
    """Learns one sentence that refuses: the arm without reasoning."""

    cap: Count = 24
    """Most prompts of each category."""
    rows: Annotated[Packed, FLAT] = Packed()
    """How they are learned."""

    def tune(self, run: Experiment, params: Params) -> Training:
        """What the run trains with."""
        prompts = first_of_each(harmful_of(run), lambda prompt: prompt.category, self.cap)
        ids = refusal_tokens(run.tokenizer)
        return supervised(run, [(prompt.asked, ids) for prompt in prompts], self.rows)


@dataclasses.dataclass(frozen=True)
class Preference(Checked):
    """Learns the answers that were kept rather than others (DPO)."""

    own: Annotated[SelfGeneration, FLAT] = SelfGeneration()
    """The answers."""
    examples_per_step: Count = 16
    """Pairs of answers in each update."""
    micro_batches: Count = 1
    """Parts of an update's pairs that gradients are accumulated over, for memory."""
    beta: Positive = 0.1
    """How far the policy may leave the start model; small is far."""
    rejected: Literal["unsafe", "refusal"] = "unsafe"
    """The other answers: what the start model says to the request alone where that does not refuse,
    else the bare refusal; or always the bare refusal."""

    def tune(self, run: Experiment, params: Params) -> Training:
        """What the run trains with."""
        kept, unsafe = self.own.kept_answers(run, params), []
        if self.rejected == "unsafe":
            path = self.own.file(run).with_name("unsafe.jsonl")
            unsafe = self.own.answers(run, params, path, bare_messages)
        pairs, prefix = make_pairs(run.tokenizer, run.recipe.template, kept, unsafe)
        with run.interruption.heeded("reading pairs", len(pairs), "pairs, reading them") as heed:
            batches = PairBatches(
                run.model,
                params,
                pairs,
                batch_size=self.examples_per_step,
                seed=run.settings.seed,
                prefix=prefix,
                micro_batches=self.micro_batches,
                progress=heed,
            )
        optimizer = make_run_optimizer(run.settings)
        step = make_preference_step(
            run.model, optimizer, beta=self.beta, micro_batches=self.micro_batches
        )
        return tuning(run, step, optimizer, batches)


@dataclasses.dataclass(frozen=True)
class RL(settings.RL):
    """Generates nothing before: the reward is refusal and format, the loss has a KL to the start.

    CADA asks harmful prompts alone.
    """

    harmful: Natural = 16
    """Harmful prompts in each step."""
    benign: Natural = 0
    """Plain benign prompts in each step; CADA has none."""
    lookalike: Natural = 0
    """Harmless prompts that look harmful in each step; CADA has none."""
    objective: Objective = GRPO(kl=KL(0.02))
    """What is minimized; --objective.kl none runs no reference model."""
    balance: bool = False
    """Weigh refusals more on the side that goes wrong more often; for runs with both sides."""


Arm = Reasoning | Preference | Refusal | RL


def harmful_of(run: Experiment) -> list[Prompt]:
    """The training prompts that ought to be refused."""
    harmful = [prompt for prompt in run.prompts if prompt.is_harmful]
    if not harmful:
        raise InputError("prompts: none of them is harmful, and the others are not learned from")
    return harmful


def sample_answers(
    run: Experiment, params: Params, prompts: list[Prompt], path: Path, label: str, **asking: Any
) -> list[Generated]:
    """`self_generate` as a run's settings and fields of `Asking` say, with a progress bar."""
    method = Temperature(run.settings.completions.temperature)
    with run.interruption.heeded(label, len(prompts), f"prompts, {label}") as heed:
        return self_generate(
            run.lm(params),
            prompts,
            path,
            run.asking(method=method, seed=run.settings.seed, **asking),
            progress=heed,
        )
