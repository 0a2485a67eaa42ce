"""What a run trains with that learns from given answers, or from other batches than prompts."""

from collections.abc import Callable, Sequence
from typing import Any

import optax

from jaxalign.data.documents import answer_documents
from jaxalign.data.prompts import Asked
from jaxalign.engine.sft import PackedBatches, TuningStep, make_supervised_step
from jaxalign.engine.state import TrainState, init_state
from jaxalign.records import Params
from jaxalign.runs.experiment import Experiment
from jaxalign.runs.loop import Training
from jaxalign.runs.schedule import make_run_optimizer
from jaxalign.runs.settings import Packed
from jaxalign.runs.start_model import start_policy


def supervised(
    run: Experiment, answers: Sequence[tuple[Asked, Sequence[int]]], rows: Packed
) -> Training:
    """Cross-entropy of answers to the run's prompts, on packed rows.

    Args:
      run: whose model learns.
      answers: a request and its answer's token ids, each.
      rows: how they are packed.
    """
    settings, model = run.settings, run.model
    documents, prefix = answer_documents(run.tokenizer, run.recipe.template, answers)
    batches = PackedBatches(
        documents,
        batch_size=rows.examples_per_step,
        length=rows.row_length,
        steps=settings.loop.steps,
        seed=settings.seed,
        prefix=prefix,
        micro_batches=rows.micro_batches,
        mesh=model.mesh,
    )
    optimizer = make_run_optimizer(settings)
    step = make_supervised_step(model, optimizer, micro_batches=rows.micro_batches)
    return tuning(run, step, optimizer, batches)


def tuning(
    run: Experiment,
    step: TuningStep,
    optimizer: optax.GradientTransformation,
    batch_at: Callable[[int], Any],
) -> Training:
    """What a run trains with whose steps draw nothing and need no key."""
    base = run.base

    def start(params: Params) -> TrainState:
        return init_state(start_policy(run.settings, run.model, params), optimizer)

    return Training(lambda state, batch, key: step(state, batch, base), start, batch_at)
