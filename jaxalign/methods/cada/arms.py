"""CADA's arms that tune: what is generated, what is kept of it, and what a run then trains.

Settings of the runs are those of experiments/cada.py.
"""

from pathlib import Path
from typing import Any

from jaxalign.data import Prompt
from jaxalign.data.order import first_of_each
from jaxalign.data.templates import Template, bare_messages, coded_messages
from jaxalign.engine.dpo import PairBatches, make_preference_step
from jaxalign.host.errors import InputError
from jaxalign.host.processes import is_first
from jaxalign.methods.cada.selection import choose, make_pairs, refusal_tokens, yield_table
from jaxalign.methods.cada.self_generation import Generated, self_generate
from jaxalign.records import Params
from jaxalign.runs.experiment import Experiment, make_run_optimizer, supervised, tuning
from jaxalign.runs.loop import Training
from jaxalign.sampling import Temperature

GENERATED = "generated.jsonl"
"""What self-generation writes into the run folder."""


def reasoning(run: Experiment, params: Params, context: str) -> Training:
    """Cross-entropy of the answers that were kept."""
    kept = kept_answers(run, params, context)
    return supervised(run, [(one.prompt, one.tokens) for one in kept])


def refusal(run: Experiment, params: Params, context: str) -> Training:
    """Cross-entropy of one refusal, of at most `cap` prompts of each hazard."""
    prompts = first_of_each(harmful_of(run), lambda prompt: prompt.category, run.settings.cap)
    ids = refusal_tokens(run.tokenizer)
    return supervised(run, [(prompt.text, ids) for prompt in prompts])


def preference(run: Experiment, params: Params, context: str) -> Training:
    """DPO: the answers that were kept rather than ones that comply, or than one refusal."""
    settings = run.settings
    kept, unsafe = kept_answers(run, params, context), []
    if settings.rejected == "unsafe":
        path = _file(run).with_name("unsafe.jsonl")
        unsafe = _of_harmful(run, params, path, bare_messages)
    pairs, prefix = make_pairs(run.tokenizer, run.recipe.template, kept, unsafe)
    with run.interruption.heeded("reading pairs", len(pairs), "pairs, reading them") as heed:
        batches = PairBatches(
            run.model,
            params,
            pairs,
            batch_size=settings.examples_per_step,
            seed=settings.seed,
            prefix=prefix,
            micro_batches=settings.micro_batches,
            progress=heed,
        )
    optimizer = make_run_optimizer(settings)
    step = make_preference_step(
        run.model, optimizer, beta=settings.beta, micro_batches=settings.micro_batches
    )
    return tuning(step, optimizer, batches)


def kept_answers(run: Experiment, params: Params, context: str) -> list[Generated]:
    """Answers with code or cases in context that pass the filters; writes yield.md."""
    made = _of_harmful(run, params, _file(run), coded_messages(context))
    kept, table = choose(made, cap=run.settings.cap)
    path = run.settings.run / "yield.md"
    if is_first():
        path.write_text(yield_table(table))
    print(f"self-generation: {len(made)} answers, {len(kept)} kept; see {path}")
    for category, counts in table.items():
        if not counts["kept"]:
            print(f"self-generation: nothing is left of {category}")
    if not kept:
        raise InputError(
            f"no self-generated answer is well-formed and refuses ({path}): in another --run raise "
            "generated_samples or max_new_tokens, or take a larger model"
        )
    return kept


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
    settings = run.settings
    method = Temperature(settings.temperature)
    with run.interruption.heeded(label, len(prompts), f"prompts, {label}") as heed:
        return self_generate(
            run.lm(params),
            prompts,
            path,
            run.asking(method=method, seed=settings.seed, **asking),
            progress=heed,
        )


def _file(run: Experiment) -> Path:
    return run.settings.generated or run.settings.run / GENERATED


def _of_harmful(run: Experiment, params: Params, path: Path, template: Template) -> list[Generated]:
    return sample_answers(
        run,
        params,
        harmful_of(run),
        path,
        f"generating {path.name}",
        template=template,
        samples=run.settings.generated_samples,
        batch_size=16,
    )
