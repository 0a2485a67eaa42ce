"""Direct-refusal tuning, the baseline that AlphaAlign is held to: one sentence for what is harmful.

    python experiments/direct_refusal.py smollm2
    python experiments/direct_refusal.py smollm2 --run runs/harmful-only --harmless none

The model learns, by cross-entropy on packed rows, one short refusal for every harmful training
prompt. With `--harmless own` (the default) it also learns what the start model itself answers to
the harmless ones, refusals left out: without them tuning has no reason not to refuse everything.
Which of the two the paper's own baseline is, it does not say; the answers of one's own are ours.

Prompts are asked bare, without instruction or examples. The run folder gets config.json,
own_answers.jsonl, metrics.jsonl, tensorboard/, checkpoints/, evaluation_before.json,
evaluation_after.json, summary.json, model/ (opens in transformers), PNG plots and report.html.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jaxalign.data import Prompt, load_all
from jaxalign.data.documents import answer_documents
from jaxalign.data.templates import bare_messages
from jaxalign.engine.sft import PackedBatches, make_supervised_step
from jaxalign.engine.state import init_state
from jaxalign.host.errors import InputError
from jaxalign.host.progress import progress_bar
from jaxalign.methods.cada.selection import refusal_tokens
from jaxalign.methods.cada.self_generation import self_generate
from jaxalign.models.transformer import Transformer
from jaxalign.records import Params
from jaxalign.runs.experiment import Experiment, load_start, make_run_optimizer
from jaxalign.runs.loop import Interruption
from jaxalign.runs.script import Interrupted, run_script
from jaxalign.runs.settings import Settings, check, parse

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
    examples_per_step: int = 16
    """Answers in each update."""
    row_length: int = 256
    """Tokens of a row that answers share, with their requests."""
    learning_rate: float = 2e-5
    """Peak learning rate (AdamW)."""


PRESETS = {
    # SmolLM2-135M on two CPU cores.
    "smollm2": DirectRefusal(),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one preset; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)

    def work(interruption: Interruption) -> None:
        settings = parse(arguments, PRESETS, script="direct_refusal.py", doc=__doc__ or "")
        run(settings, interruption)

    return run_script("direct_refusal", work)


def run(settings: DirectRefusal, interruption: Interruption) -> None:
    """Evaluates, answers what is harmless, trains, evaluates again and writes the run folder."""
    begun = time.perf_counter()
    check_settings(settings)
    prompts = load_all(settings.prompts, settings.text_field)
    heldout = load_all(settings.heldout, settings.text_field)
    model, params, tokenizer = load_start(settings)
    experiment = Experiment(
        settings,
        interruption,
        model,
        tokenizer,
        prompts=prompts,
        heldout=heldout,
        template=bare_messages,
        begun=begun,
    )
    before = experiment.assess("before", params)
    refusal = refusal_tokens(tokenizer)
    answers = [(prompt.text, refusal) for prompt in prompts if prompt.is_harmful]
    if not answers:
        raise InputError("prompts: none of them is harmful: there is nothing to refuse")
    if settings.harmless == "own":
        answers += own_answers(
            settings, interruption, prompts, model=model, params=params, tokenizer=tokenizer
        )
    documents, prefix = answer_documents(tokenizer, bare_messages, answers)
    batches = PackedBatches(
        documents,
        batch_size=settings.examples_per_step,
        length=settings.row_length,
        steps=settings.steps,
        seed=settings.seed,
        prefix=prefix,
        micro_batches=settings.micro_batches,
        mesh=model.mesh,
    )
    optimizer = make_run_optimizer(settings)
    step = make_supervised_step(model, optimizer, micro_batches=settings.micro_batches)
    state = init_state(params, optimizer)
    del params  # or the float32 start model would stay in memory
    state, interrupted = experiment.train(
        lambda state, batch, key: step(state, batch), state, batches
    )
    if not interrupted:
        after = experiment.assess("after", state.policy)
        experiment.finish(state, {"before": before, "after": after})


def check_settings(settings: DirectRefusal) -> None:
    """Refuses settings that can't work."""
    check(settings, kept=OWN_ANSWERS, least={"examples_per_step": 1})
    longest = settings.max_prompt_tokens + settings.max_new_tokens
    if settings.row_length < longest:
        raise InputError(
            f"row_length={settings.row_length} is too small for max_prompt_tokens + max_new_tokens "
            f"= {longest}: raise it"
        )


def own_answers(
    settings: DirectRefusal,
    interruption: Interruption,
    prompts: Sequence[Prompt],
    *,
    model: Transformer,
    params: Params,
    tokenizer: Any,
) -> list[tuple[str, list[int]]]:
    """One answer of the start model to each harmless prompt; those that refuse are left out.

    An answer that was cut off is learned as far as it goes.
    """
    harmless = [prompt for prompt in prompts if not prompt.is_harmful]
    if not harmless:
        raise InputError("prompts: all of them are harmful: give harmless ones, or --harmless none")
    with progress_bar() as bar:
        line = bar.add_task("answering harmless prompts", total=len(harmless))

        def heed(done: int, total: int) -> None:
            bar.update(line, completed=done)
            if interruption.noticed():
                raise Interrupted(f"after {done} of {total} answers to harmless prompts")

        made = self_generate(
            model,
            params,
            tokenizer,
            harmless,
            settings.own_answers or settings.run / OWN_ANSWERS,
            template=bare_messages,
            samples_per_prompt=1,
            prompts_per_batch=64,
            max_prompt_tokens=settings.max_prompt_tokens,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            seed=settings.seed,
            facts={"model": settings.model},
            progress=heed,
        )
    kept = [(one.prompt, one.tokens) for one in made if not one.refused]
    print(f"own answers: {len(made)}, {len(made) - len(kept)} refuse and are left out")
    if not kept:
        raise InputError("the start model refuses every harmless prompt: use --harmless none")
    return kept


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # so that a redirected log can be watched
    raise SystemExit(main())
