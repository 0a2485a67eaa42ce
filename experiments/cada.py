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

The run folder gets config.json, metrics.jsonl, tensorboard/, checkpoints/, evaluation_before.json,
evaluation_after.json, summary.json, model/ (opens in transformers), PNG plots and report.html; with
self-generation generated.jsonl, unsafe.jsonl (DPO), what each depends on (*.facts.json), and
yield.md (what was kept, and dropped why); with rl samples.jsonl.
"""

import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from jaxalign.data import Prompt, context_text, load_all
from jaxalign.data.casebook import ContextName
from jaxalign.data.documents import answer_documents
from jaxalign.data.order import first_of_each
from jaxalign.data.templates import (
    Template,
    alphaalign_messages,
    bare_messages,
    coded_messages,
)
from jaxalign.engine.dpo import PairBatches, make_preference_step
from jaxalign.engine.objective import GRPO, Objective
from jaxalign.engine.penalties import KL
from jaxalign.engine.sft import PackedBatches, make_supervised_step
from jaxalign.engine.state import TrainState, init_state
from jaxalign.host.errors import InputError
from jaxalign.host.processes import is_first
from jaxalign.host.progress import progress_bar
from jaxalign.methods.cada.selection import (
    choose,
    make_pairs,
    refusal_tokens,
    yield_table,
)
from jaxalign.methods.cada.self_generation import Generated, self_generate
from jaxalign.models import Transformer
from jaxalign.records import Params
from jaxalign.rewards import Safety, safety_verifiers
from jaxalign.runs.experiment import (
    Experiment,
    Reinforcement,
    load_start,
    make_reinforcement,
    make_run_optimizer,
)
from jaxalign.runs.loop import Interruption, LoopStep
from jaxalign.runs.presets import LARGE
from jaxalign.runs.script import Interrupted, run_script
from jaxalign.runs.settings import RLSettings, check, parse


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
    cases_per_outcome: int = 1
    """reasoning, preference: cases to refuse, and as many to answer, of each category."""
    generated: Path | None = None
    """reasoning, preference: file of self-generated answers to write, to go on with, or to use; by
    default generated.jsonl in the run folder."""
    generated_samples: int = 2
    """reasoning, preference: answers sampled for each harmful prompt."""
    cap: int = 24
    """All but rl: most answers to learn from, of each category."""
    template: Literal["bare", "examples"] = "bare"
    """How training and evaluation ask, without code or cases: bare, the request alone; examples,
    with AlphaAlign's instruction and worked examples, which RL needs with a small start model."""
    examples_per_step: int = 16
    """All but rl: answers, or pairs of answers, in each update."""
    row_length: int = 256
    """reasoning, refusal: tokens of a row that answers share, with their requests."""
    beta: float = 0.1
    """preference: how far the policy may leave the start model; small is far."""
    rejected: Literal["unsafe", "refusal"] = "unsafe"
    """preference: the other answers: what the start model says to the request alone where that
    does not refuse, else the bare refusal; or always the bare refusal."""
    harmful: int = 16
    """rl: harmful prompts in each step."""
    benign: int = 0
    """rl: plain benign prompts in each step; CADA has none."""
    lookalike: int = 0
    """rl: harmless prompts that look harmful in each step; CADA has none."""
    steps: int = 30
    """Steps in all."""
    decay_steps: int = 20
    """Last steps, over which the learning rate falls linearly to zero."""
    learning_rate: float = 2e-5
    """Peak learning rate (AdamW)."""
    objective: Objective = GRPO(kl=KL(0.02))
    """rl: what is minimized; --objective.kl none runs no reference model."""
    balance: bool = False
    """rl: weigh refusals more on the side that goes wrong more often; for runs with both sides."""


PRESETS: dict[str, Cada] = {
    # SmolLM2-135M on two CPU cores.
    "smollm2": Cada(),
}
# 3B- and 8B-class models, on v5e:4x4; ours, not run. `jaxalign plan … -- --arm rl` says what the
# RL arm takes.
PRESETS |= {
    name: Cada(
        run=Path(f"runs/cada-{name}"),
        cases_per_outcome=2,
        generated_samples=8,
        cap=200,
        row_length=4096,
        examples_per_step=64,
        steps=100,
        decay_steps=80,
        learning_rate=2e-6,
        objective=GRPO(kl=KL(0.05)),
        **common,
    )
    for name, common in LARGE.items()
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one preset; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def work(interruption: Interruption) -> None:
        run(parse(arguments, PRESETS, script="cada.py", doc=__doc__ or ""), interruption)

    return run_script("cada", work)


def run(settings: Cada, interruption: Interruption) -> None:
    """Evaluates, generates, trains, evaluates again and writes the run folder."""
    begun = time.perf_counter()
    check_settings(settings)
    prompts = load_all(settings.prompts, settings.text_field)
    heldout = load_all(settings.heldout, settings.text_field)
    context = ""
    if settings.arm in ("reasoning", "preference"):
        context = context_text(
            settings.context,
            code=settings.code,
            cases=settings.cases,
            cases_per_outcome=settings.cases_per_outcome,
        )
    model, params, tokenizer = load_start(settings)
    template = template_of(settings)
    experiment = Experiment(
        settings,
        interruption,
        model,
        tokenizer,
        prompts=prompts,
        heldout=heldout,
        template=template,
        begun=begun,
        facts={"context_text": context},
    )
    before = experiment.assess("before", params)
    given = Given(settings, interruption, model, params, tokenizer, prompts, template, context)
    arm = {"rl": reinforcement, "preference": preference}.get(settings.arm, supervision)
    training = arm(given)
    state = training.start(params)
    del params, given  # or the float32 start model would stay in memory
    state, interrupted = experiment.train(
        training.step, state, training.batch_at, describe=training.describe
    )
    if not interrupted:
        after = experiment.assess("after", state.policy)
        speed = None if training.speed is None else training.speed(state.policy)
        experiment.finish(state, {"before": before, "after": after}, speed)


def template_of(settings: Cada) -> Template:
    """How training and evaluation ask."""
    return bare_messages if settings.template == "bare" else alphaalign_messages


def check_settings(settings: Cada) -> None:
    """Refuses settings that can't work."""
    check(
        settings,
        kept=GENERATED,
        samples=settings.arm == "rl",
        least={
            "cases_per_outcome": 1,
            "generated_samples": 1,
            "cap": 1,
            "examples_per_step": 1,
        },
        above_zero=["beta"],
    )
    longest = settings.max_prompt_tokens + settings.max_new_tokens
    if settings.arm in ("reasoning", "refusal") and settings.row_length < longest:
        raise InputError(
            f"row_length={settings.row_length} is too small for max_prompt_tokens + max_new_tokens "
            f"= {longest}: raise it"
        )


@dataclasses.dataclass(frozen=True)
class Given:
    """What an arm prepares its training from."""

    settings: Cada
    interruption: Interruption
    model: Transformer
    params: Params
    tokenizer: Any
    prompts: list[Prompt]
    template: Template
    context: str


@dataclasses.dataclass(frozen=True)
class Training:
    """What an arm trains with: its step, its batches, its transcripts, its sampling speed."""

    step: LoopStep
    start: Callable[[Params], TrainState]
    batch_at: Callable[[int], Any]
    describe: Callable[[int, Any], list[dict[str, Any]]] = lambda step, result: []
    speed: Callable[[Params], float] | None = None


def supervision(given: Given) -> Training:
    """Cross-entropy of self-generated answers, or of one refusal."""
    settings, tokenizer = given.settings, given.tokenizer
    if settings.arm == "refusal":
        prompts = first_of_each(harmful_of(given), lambda prompt: prompt.category, settings.cap)
        answers = [(prompt.text, refusal_tokens(tokenizer)) for prompt in prompts]
    else:
        answers = [(one.prompt, one.tokens) for one in kept_answers(given)]
    documents, prefix = answer_documents(tokenizer, given.template, answers)
    batches = PackedBatches(
        documents,
        batch_size=settings.examples_per_step,
        length=settings.row_length,
        steps=settings.steps,
        seed=settings.seed,
        prefix=prefix,
        micro_batches=settings.micro_batches,
        mesh=given.model.mesh,
    )
    optimizer = make_run_optimizer(settings)
    step = make_supervised_step(given.model, optimizer, micro_batches=settings.micro_batches)
    start = functools.partial(init_state, optimizer=optimizer)
    return Training(lambda state, batch, key: step(state, batch), start, batches)


def preference(given: Given) -> Training:
    """DPO: self-generated answers rather than ones that comply, or than one refusal."""
    settings = given.settings
    kept = kept_answers(given)
    unsafe: list[Generated] = []
    if settings.rejected == "unsafe":
        path = (settings.generated or settings.run / GENERATED).with_name("unsafe.jsonl")
        unsafe = make_answers(given, path, bare_messages)
    pairs, prefix = make_pairs(given.tokenizer, given.template, kept, unsafe)
    with heeded(given, "reading pairs", len(pairs)) as heed:
        batches = PairBatches(
            given.model,
            given.params,
            pairs,
            batch_size=settings.examples_per_step,
            seed=settings.seed,
            prefix=prefix,
            micro_batches=settings.micro_batches,
            progress=heed,
        )
    optimizer = make_run_optimizer(settings)
    step = make_preference_step(
        given.model,
        optimizer,
        beta=settings.beta,
        micro_batches=settings.micro_batches,
    )
    start = functools.partial(init_state, optimizer=optimizer)
    return Training(lambda state, batch, key: step(state, batch), start, batches)


def harmful_of(given: Given) -> list[Prompt]:
    """The training prompts that ought to be refused."""
    harmful = [prompt for prompt in given.prompts if prompt.is_harmful]
    if not harmful:
        raise InputError("prompts: none of them is harmful, and the others are not learned from")
    return harmful


@contextlib.contextmanager
def heeded(given: Given, what: str, total: int) -> Iterator[Callable[[int, int], None]]:
    """A progress bar whose updates also stop the run after SIGTERM or Ctrl-C."""
    with progress_bar() as bar:
        line = bar.add_task(what, total=total)

        def heed(done: int, total: int) -> None:
            bar.update(line, completed=done, total=total)
            if given.interruption.noticed():
                raise Interrupted(f"after {done} of {total}, {what}")

        yield heed


def make_answers(given: Given, path: Path, template: Template) -> list[Generated]:
    """Samples answers to the harmful prompts into a file, or reads those that are there."""
    settings, prompts = given.settings, harmful_of(given)
    with heeded(given, f"generating {path.name}", len(prompts)) as heed:
        return self_generate(
            given.model,
            given.params,
            given.tokenizer,
            prompts,
            path,
            template=template,
            samples_per_prompt=settings.generated_samples,
            prompts_per_batch=16,
            max_prompt_tokens=settings.max_prompt_tokens,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            seed=settings.seed,
            facts={"model": settings.model},
            progress=heed,
        )


def kept_answers(given: Given) -> list[Generated]:
    """Answers with code or cases in context that pass the filters; writes yield.md."""
    settings = given.settings
    path = settings.generated or settings.run / GENERATED
    made = make_answers(given, path, coded_messages(given.context))
    kept, table = choose(made, cap=settings.cap)
    if is_first():
        (settings.run / "yield.md").write_text(yield_table(table))
    print(f"self-generation: {len(made)} answers, {len(kept)} kept; see {settings.run}/yield.md")
    for category, counts in table.items():
        if not counts["kept"]:
            print(f"self-generation: nothing is left of {category}")
    if not kept:
        raise InputError(
            f"no self-generated answer is well-formed and refuses ({settings.run}/yield.md): in "
            "another --run raise generated_samples or max_new_tokens, or take a larger model"
        )
    return kept


def reinforcement(given: Given) -> Training:
    """Refusal and format as rewards, a KL to the start model; code and cases are left out."""
    model = given.model  # and not `given`, whose parameters would stay in memory with the run
    work = prepare(given.settings, model, given.tokenizer, given.prompts)
    return Training(
        work.bind(given.params),
        work.start,
        work.batches,
        work.batches.transcripts,
        lambda params: work.speed(model, params),
    )


def prepare(
    settings: Cada, model: Transformer, tokenizer: Any, prompts: list[Prompt]
) -> Reinforcement:
    """The step, its reward and its batches of the arm rl; `jaxalign plan` compiles it too."""
    if settings.arm != "rl":
        raise InputError(f"arm={settings.arm} takes no RL steps: add --arm rl")
    try:
        verifiers = safety_verifiers(tokenizer)
    except ValueError as error:
        raise InputError(f"{settings.model}: {error}") from error
    reward = Safety(verifiers, settings.format_weight, settings.refusal_weight, settings.balance)
    return make_reinforcement(
        settings,
        model,
        tokenizer,
        prompts,
        verifiers=verifiers,
        template=template_of(settings),
        reward=lambda start: reward,
    )


GENERATED = "generated.jsonl"
"""What self-generation writes into the run folder."""


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # so that a redirected log can be watched
    raise SystemExit(main())
