"""ASCL's cold start as a stage of a run: traces, what is kept of them, the model in its folder."""

import dataclasses
import time
from collections.abc import Mapping

from jaxalign.host.fields import Checked, Count, Positive
from jaxalign.host.json_files import read_json, write_json
from jaxalign.host.processes import all_of, is_first
from jaxalign.methods.ascl.cold_start import balance_traces, collect_traces, count_traces, fine_tune
from jaxalign.methods.ascl.openings import encode_openings
from jaxalign.models import load_pretrained, save_pretrained
from jaxalign.records import Params
from jaxalign.rewards import Verifiers
from jaxalign.runs.experiment import Experiment
from jaxalign.sampling import Stage, stage_key

COLD_START_FOLDER = "cold_start"
"""Of the fine-tuned model, in the run folder; traces.json, which says what of, lies beside it."""


@dataclasses.dataclass(frozen=True)
class ColdStart(Checked):
    """Settings of the cold start."""

    rounds: Count = 16
    """Steps' worth of prompts that it samples, every other one behind a call."""
    cap: Count = 24
    """Most traces of each kind of request, consulted or not, that it learns from."""
    epochs: Count = 2
    """Passes over them."""
    batch: Count = 16
    """Traces in each update."""
    learning_rate: Positive = 2e-5
    """Of AdamW; constant."""


def cold_start(
    run: Experiment,
    params: Params,
    *,
    stage: ColdStart,
    verifiers: Verifiers,
    rules: Mapping[str, str],
) -> Params:
    """The fine-tuned start model of a run with a tool; after a resume the one that is kept.

    `verifiers` are of the consulting format and of refusals.
    """
    settings, model, begun = run.settings, run.model, time.perf_counter()
    work = run.work
    assert work is not None
    folder, told = settings.run / COLD_START_FOLDER, settings.run / "traces.json"
    if all_of(settings.resume and folder.exists()):
        run.add_seconds(read_json(told)["seconds"])
        return load_pretrained(folder, mesh=model.mesh)[1]
    again, rounds = "of the cold start, which starts again next time", stage.rounds
    with run.interruption.heeded("sampling traces", rounds, f"rounds {again}") as heed:
        right, every = collect_traces(
            model,
            params,
            work.sampling,
            work.batches,
            verifiers,
            rounds=rounds,
            key=stage_key(settings.seed, Stage.COLD_START),
            openings=encode_openings(rules, run.tokenizer),
            decode=run.tokenizer.decode,
            progress=lambda done: heed(done, rounds),
        )
    kept = balance_traces(right, cap=stage.cap)
    with run.interruption.heeded("cold start", None, f"updates {again}") as heed:
        tuned, losses = fine_tune(
            model,
            params,
            kept,
            work.batches,
            settings.learning.optimizer(
                stage.learning_rate, max_grad_norm=settings.learning.max_grad_norm
            ),
            epochs=stage.epochs,
            batch_size=stage.batch,
            row_length=2 * (settings.data.max_prompt_tokens + settings.completions.max_new_tokens),
            seed=settings.seed,
            progress=lambda done: heed(done, None),
        )
    stages = {"sampled": every, "right": right, "kept": kept}
    counts = {name: count_traces(traces) for name, traces in stages.items()}
    seconds = time.perf_counter() - begun
    if is_first():
        write_json(told, counts | {"losses": losses, "seconds": seconds})
    save_pretrained(folder, model, tuned, run.tokenizer, stop=work.sampling.stop)
    print(
        f"cold start: {len(every)} traces sampled, {len(right)} right, "
        f"{len(kept)} learned from; loss {losses[0]:.2f} to {losses[-1]:.2f}"
    )
    for group, number in counts["kept"].items():
        kind = group.partition(",")[0]
        asked = any(n for name, n in counts["sampled"].items() if name.startswith(f"{kind},"))
        if asked and not number:
            print(f"cold start: no trace of {group}: the model never did that right")
    return tuned
