"""ASCL with IFPO (arXiv 2602.13562): the model decides when to consult the safety rules.

    python experiments/ascl.py smollm2
    python experiments/ascl.py smollm2 --run runs/grpo --objective.adjust none
    python experiments/ascl.py smollm2 --run runs/zero --cold-start-rounds 0    # ASCL-ZS's start
    python experiments/ascl.py smollm2 --run runs/mine --rules mine.yaml

To consult, the model writes <consult>category</consult>; the rule's text follows as tokens that are
read and not trained on. A cold start fine-tunes on its own traces that turned out right, half of
which begin with a call that was given; then RL rewards outcome and format, and nothing for
consulting as such. IFPO rebalances the advantages of samples that consulted and of samples that did
not; `--objective.adjust none` is GRPO.

Presets (the first word) stand below with the hardware they are meant for. Every setting is a flag;
`--help` after the preset lists them.

The run folder gets config.json, traces.json and cold_start/ (the fine-tuned model), metrics.jsonl,
tensorboard/, samples.jsonl, checkpoints/, evaluation_before.json, evaluation_cold_start.json,
evaluation_after.json, summary.json, model/ (opens in transformers), PNG plots and report.html.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jaxalign.data import Prompt, RuleBook, builtin_rules, load_all, load_rules
from jaxalign.data.templates import consulting_messages
from jaxalign.engine.baselines import InverseFrequency, Shrinkage
from jaxalign.engine.objective import GRPO, Objective
from jaxalign.host.errors import InputError
from jaxalign.host.json_files import read_json, write_json
from jaxalign.host.processes import all_of, is_first
from jaxalign.host.progress import progress_bar
from jaxalign.methods.ascl.cold_start import (
    balance_traces,
    collect_traces,
    fine_tune,
)
from jaxalign.methods.ascl.consulting import Consulting
from jaxalign.methods.ascl.openings import encode_openings
from jaxalign.models import Transformer, load_pretrained, save_pretrained
from jaxalign.records import Params
from jaxalign.rewards import CONSULTING_FORMAT_PATTERN, Safety, safety_verifiers
from jaxalign.runs.experiment import (
    Experiment,
    Reinforcement,
    load_start,
    make_reinforcement,
)
from jaxalign.runs.loop import Interruption
from jaxalign.runs.presets import LARGE
from jaxalign.runs.script import Interrupted, run_script
from jaxalign.runs.settings import RLSettings, check, parse
from jaxalign.sampling import Stage, consultation, rule_answer, stage_key


@dataclasses.dataclass(frozen=True)
class Ascl(RLSettings):
    """Settings of a run."""

    run: Path = Path("runs/ascl")
    """Run folder to write."""
    rules: Path | None = None
    """Rule book to consult (YAML, see jaxalign.data.load_rules); by default our own."""
    template: Literal["examples", "bare"] = "examples"
    """examples: instruction and four worked examples, which small models need; bare: the
    instruction alone."""
    max_calls: int = 1
    """Consultations that are answered in one completion; further ones are plain text."""
    max_new_tokens: int = 160
    """T, longest completion, rules included."""
    objective: Objective = GRPO(advantages=Shrinkage(), adjust=InverseFrequency())
    """What is minimized; --objective.adjust none leaves IFPO out."""
    cold_start_rounds: int = 16
    """Steps' worth of prompts that the cold start samples, every other one behind a call; 0 leaves
    the cold start out."""
    cold_start_cap: int = 24
    """Most traces of each kind of request, consulted or not, that it learns from."""
    cold_start_epochs: int = 2
    """Passes over them."""
    cold_start_batch: int = 16
    """Traces in each update."""
    cold_start_learning_rate: float = 2e-5
    """Of the cold start."""


PRESETS: dict[str, Ascl] = {
    # SmolLM2-135M on two CPU cores.
    "smollm2": Ascl(run=Path("runs/ascl")),
}
# 3B- and 8B-class models, on v5e:4x4; ours, not run. `jaxalign plan` says what they take.
PRESETS |= {
    name: Ascl(
        run=Path(f"runs/ascl-{name}"),
        template="bare",
        max_calls=3,
        steps=200,
        decay_steps=150,
        learning_rate=1e-6,
        objective=GRPO(adjust=InverseFrequency()),
        balance=False,
        cold_start_rounds=64,
        cold_start_cap=200,
        cold_start_learning_rate=5e-6,
        **common,
    )
    for name, common in LARGE.items()
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one preset; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def work(interruption: Interruption) -> None:
        run(parse(arguments, PRESETS, script="ascl.py", doc=__doc__ or ""), interruption)

    return run_script("ascl", work)


def run(settings: Ascl, interruption: Interruption) -> None:
    """Evaluates, starts cold, trains, evaluates again and writes the run folder."""
    begun = time.perf_counter()
    check_settings(settings)
    prompts = load_all(settings.prompts, settings.text_field)
    heldout = load_all(settings.heldout, settings.text_field)
    book = rules_of(settings)
    model, params, tokenizer = load_start(settings)
    work = prepare(settings, model, tokenizer, prompts)
    batches = work.batches
    experiment = Experiment(
        settings,
        interruption,
        model,
        tokenizer,
        prompts=prompts,
        heldout=heldout,
        template=work.template,
        tool=batches.tool,
        begun=begun,
        facts={"rules_version": book.version, "rules": dict(book.rules)},
    )
    evaluations = {"before": experiment.assess("before", params)}
    if settings.cold_start_rounds:
        params = cold_start(
            settings,
            experiment,
            interruption,
            model=model,
            params=params,
            tokenizer=tokenizer,
            work=work,
            book=book,
        )
        evaluations["cold_start"] = experiment.assess("cold_start", params)
    step, state = work.bind(params), work.start(params)
    del params  # or the float32 start model would stay in memory
    state, interrupted = experiment.train(step, state, batches, describe=batches.transcripts)
    if not interrupted:
        evaluations["after"] = experiment.assess("after", state.policy)
        experiment.finish(state, evaluations, work.speed(model, state.policy))


def rules_of(settings: Ascl) -> RuleBook:
    """The rule book to consult."""
    return builtin_rules() if settings.rules is None else load_rules(settings.rules)


def prepare(
    settings: Ascl, model: Transformer, tokenizer: Any, prompts: list[Prompt]
) -> Reinforcement:
    """The step, its tool, its reward and its batches; `jaxalign plan` compiles it too."""
    book = rules_of(settings)
    try:
        verifiers = safety_verifiers(tokenizer, pattern=CONSULTING_FORMAT_PATTERN)
        tool = consultation(book.rules, tokenizer, max_calls=settings.max_calls)
    except ValueError as error:
        raise InputError(f"{settings.model}: {error}") from error
    template = consulting_messages(
        list(book.rules),
        functools.partial(rule_answer, book.rules),
        examples=settings.template == "examples",
    )
    reward = Consulting(
        Safety(verifiers, settings.format_weight, settings.refusal_weight, settings.balance)
    )
    return make_reinforcement(
        settings,
        model,
        tokenizer,
        prompts,
        verifiers=verifiers,
        template=template,
        reward=lambda start: reward,
        tool=tool,
    )


def check_settings(settings: Ascl) -> None:
    """Refuses settings that can't work."""
    check(
        settings,
        kept=COLD_START_FOLDER if settings.cold_start_rounds else None,
        least={
            "max_calls": 1,
            "cold_start_rounds": 0,
            "cold_start_cap": 1,
            "cold_start_epochs": 1,
            "cold_start_batch": 1,
        },
        above_zero=["cold_start_learning_rate"],
    )


def cold_start(
    settings: Ascl,
    experiment: Experiment,
    interruption: Interruption,
    *,
    model: Transformer,
    params: Params,
    tokenizer: Any,
    work: Reinforcement,
    book: RuleBook,
) -> Params:
    """The fine-tuned start model; after a resume the one that the run has kept."""
    folder, begun = settings.run / COLD_START_FOLDER, time.perf_counter()
    if all_of(settings.resume and folder.exists()):
        experiment.add_seconds(read_json(settings.run / "traces.json")["seconds"])
        return load_pretrained(folder, mesh=model.mesh)[1]

    def heed(when: str) -> None:
        if interruption.noticed():
            raise Interrupted(f"{when}, which starts again next time")

    with progress_bar() as bar:
        line = bar.add_task("sampling traces", total=settings.cold_start_rounds)

        def note_round(done: int) -> None:
            bar.update(line, completed=done)
            heed(f"after {done} of {settings.cold_start_rounds} rounds of the cold start")

        right, every = collect_traces(
            model,
            params,
            work.sampling,
            work.batches,
            work.verifiers,
            rounds=settings.cold_start_rounds,
            key=stage_key(settings.seed, Stage.COLD_START),
            openings=encode_openings(book.rules, tokenizer),
            decode=tokenizer.decode,
            progress=note_round,
        )
        kept = balance_traces(right, cap=settings.cold_start_cap)
        tuning = bar.add_task("cold start", total=None)
        losses: list[float] = []

        def note(done: int, loss: float) -> None:
            losses.append(loss)
            bar.update(tuning, completed=done)
            heed(f"after {done} updates of the cold start")

        tuned = fine_tune(
            model,
            params,
            kept,
            work.batches,
            settings.optimizer(
                settings.cold_start_learning_rate, max_grad_norm=settings.max_grad_norm
            ),
            epochs=settings.cold_start_epochs,
            batch_size=settings.cold_start_batch,
            row_length=2 * (settings.max_prompt_tokens + settings.max_new_tokens),
            seed=settings.seed,
            progress=note,
        )
    counts = {"sampled": every.counts(), "right": right.counts(), "kept": kept.counts()}
    seconds = time.perf_counter() - begun
    if is_first():
        write_json(settings.run / "traces.json", counts | {"losses": losses, "seconds": seconds})
    save_pretrained(folder, model, tuned, tokenizer)
    print(
        f"cold start: {len(every.prompts)} traces sampled, {len(right.prompts)} right, "
        f"{len(kept.prompts)} learned from; loss {losses[0]:.2f} to {losses[-1]:.2f}"
    )
    for group, number in counts["kept"].items():
        kind = group.partition(",")[0]
        asked = any(n for name, n in counts["sampled"].items() if name.startswith(f"{kind},"))
        if asked and not number:
            print(f"cold start: no trace of {group}: the model never did that right")
    return tuned


COLD_START_FOLDER = "cold_start"


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # so that a redirected log can be watched
    raise SystemExit(main())
