"""ASCL's cold start: fine-tuning on the model's own traces that turned out right, then RL.

The start model goes on from both ways to begin, by turns: a call with its answer, and the tag of
the reasoning (`jaxalign.methods.ascl.openings`), since a small model can make neither. Those traces
are kept that are well-formed, end by themselves, refuse exactly when the request is harmful, and
make no further call: of each kind of request as many that consulted as did not, so that the cold
start teaches how to consult and not whether, and as many refusals as answers. The model is then
fine-tuned on them: cross-entropy of what was generated, the tool's answers left out.

The paper names a cold start and a zero-shot arm without it; openings, filter and caps are ours.
"""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from jaxalign.data.order import first_of_each
from jaxalign.data.prompts import KINDS, Prompt
from jaxalign.data.templates import pad
from jaxalign.engine.optimizer import skip_nonfinite
from jaxalign.engine.sft import PackedBatches, make_supervised_step
from jaxalign.engine.state import init_state
from jaxalign.engine.step import Sampling
from jaxalign.host.errors import InputError
from jaxalign.host.processes import fetch
from jaxalign.methods.ascl.openings import Opening, Openings, guided_rollout
from jaxalign.models.packing import Document
from jaxalign.models.transformer import Transformer
from jaxalign.records import Params
from jaxalign.rewards import Verifiers
from jaxalign.rewards.parts import CALL_TAGS
from jaxalign.runs.batches import Batches
from jaxalign.runs.loop import DivergedError

GROUPS = {kind: (f"{kind}, consulted", f"{kind}, alone") for kind in KINDS}
"""The groups of traces of each kind of request."""

_judge = jax.jit(Verifiers.__call__)


@dataclasses.dataclass(frozen=True)
class Trace:
    """A completion to learn from.

    Attributes:
      prompt: what it answers.
      opening: what it was made to begin with.
      own: the ids that the model went on with, which are learned.
    """

    prompt: Prompt
    opening: Opening
    own: list[int]

    @property
    def spoken(self) -> list[int]:
        """The ids that count as the model's: without the tool's answer."""
        return [*self.opening.asked, *self.own]

    @property
    def group(self) -> str:
        """Its kind and choice, such as "harmful, consulted"."""
        return f"{self.prompt.kind}, {'consulted' if self.opening.answered else 'alone'}"


def count_traces(traces: Iterable[Trace]) -> dict[str, int]:
    """How many there are of each group."""
    found = collections.Counter(trace.group for trace in traces)
    return {name: found[name] for names in GROUPS.values() for name in names}


def collect_traces(
    model: Transformer,
    params: Params,
    sampling: Sampling,
    batches: Batches,
    verifiers: Verifiers,
    *,
    rounds: int,
    key: jax.Array,
    openings: Openings,
    decode: Callable[[list[int]], str],
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[list[Trace], list[Trace]]:
    """Samples and filters: round r asks the prompts of step r, with `fold_in(key, r)`.

    Odd rounds consult. `verifiers` are of the consulting format and of refusals; `decode` turns ids
    into text; `progress` is called after each round with the number done.

    Returns:
      all traces that pass the filter, and all that were sampled.
    """
    right: list[Trace] = []
    every: list[Trace] = []
    for number in range(rounds):
        prompts = batches.prompts_at(number)
        given = [openings.of(prompt, consults=number % 2 == 1) for prompt in prompts]
        samples: Any = guided_rollout(
            model,
            sampling,
            params,
            batches.encode(prompts),
            given,
            key=jax.random.fold_in(key, number),
            width=openings.size,
        )
        group = range(sampling.samples_per_prompt)
        begun = [pair for pair in zip(prompts, given, strict=True) for _ in group]
        rows = zip(begun, samples.tokens, samples.mask, strict=True)
        traces = [Trace(*pair, tokens[mask].tolist()) for pair, tokens, mask in rows]
        read = zip(begun, samples.tokens, samples.readable(samples.mask), strict=True)
        texts = [[*opening.asked, *tokens[there]] for (_, opening), tokens, there in read]
        verdict = fetch(_judge(verifiers, *pad(texts, sampling.max_new_tokens)))
        passes = verdict.well_formed & samples.finished
        for trace, passed, refused in zip(traces, passes, verdict.refused, strict=True):
            once = decode(trace.spoken).count(CALL_TAGS[0]) <= 1
            if passed and refused == trace.prompt.is_harmful and once:
                right.append(trace)
        every += traces
        progress(number + 1)
    return right, every


def balance_traces(traces: Sequence[Trace], *, cap: int) -> list[Trace]:
    """As many of each choice, consulted or not, for each kind, and as many refusals as answers.

    Of a kind that is the smaller number of its choices and at most `cap`; where one choice never
    turned out right, the other is kept all the same. Then the side, harmful or harmless, that has
    more is cut to the other's number, unless that is 0. The first ones are kept, no text twice.

    Raises:
      InputError: there is none.
    """
    new = first_of_each(traces, lambda trace: (trace.prompt.asked, *trace.spoken), 1)
    counts = count_traces(new)
    found = {kind: [counts[name] for name in GROUPS[kind] if counts[name]] for kind in KINDS}
    most = {kind: min(cap, *sizes) if sizes else 0 for kind, sizes in found.items()}
    harmless = [kind for kind in KINDS if kind != "harmful"]
    if side := min(most["harmful"], sum(most[kind] for kind in harmless)):
        most["harmful"] = side
        # The kind that has least first, so that the other fills up what it leaves.
        for left, kind in zip((2, 1), sorted(harmless, key=most.__getitem__), strict=True):
            most[kind] = min(most[kind], side // left)
            side -= most[kind]
    kept, taken = [], dict.fromkeys(counts, 0)
    for trace in new:
        taken[trace.group] += 1
        if taken[trace.group] <= most[trace.prompt.kind]:
            kept.append(trace)
    if not kept:
        raise InputError(
            "cold start: no sampled trace was well-formed and right; sample more rounds, or leave "
            "the cold start out with --cold-start none"
        )
    return kept


def fine_tune(
    model: Transformer,
    params: Params,
    traces: Sequence[Trace],
    batches: Batches,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int,
    batch_size: int,
    row_length: int,
    seed: int,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Params, list[float]]:
    """Minimises the mean of −log π(token) over the generated tokens of a batch of traces.

    `batches` encodes their prompts as in RL, so with the same instruction in front. A row takes at
    least the longest prompt with its completion. The last update is filled up from one pass more;
    `progress` is called after each with how many are done.

    Returns:
      the new parameters, float32, and the loss of each update; `params` are not changed.

    Raises:
      DivergedError: a loss or a gradient is not finite.
    """
    batch_size = min(batch_size, len(traces))
    steps = -(-epochs * len(traces) // batch_size)
    documents, prefix = make_documents(traces, batches)
    packed = PackedBatches(
        documents,
        batch_size=batch_size,
        length=row_length,
        steps=steps,
        seed=seed,
        prefix=prefix,
        mesh=model.mesh,
    )
    optimizer = skip_nonfinite(optimizer)  # which counts them
    step = make_supervised_step(model, optimizer)
    state, losses = init_state(params, optimizer), []
    for number in range(steps):
        state, result = step(state, packed(number))
        if result.metrics["skipped_updates"]:
            raise DivergedError("cold start: not finite: lower cold_start.learning_rate")
        losses.append(float(result.metrics["loss"]))
        progress(number + 1)
    return state.params, losses


def make_documents(
    traces: Sequence[Trace], batches: Batches
) -> tuple[list[Document], np.ndarray | None]:
    """Each trace behind its prompt, and the tokens that open all of them."""
    asked: Any = batches.encode([trace.prompt for trace in traces])
    documents = []
    for trace, tokens, mask in zip(traces, asked.prompts.tokens, asked.prompts.mask, strict=True):
        opening = trace.opening
        parts = (tokens[mask], opening.asked, opening.answered, trace.own)
        learned = np.repeat([False, True, False, True], [len(part) for part in parts])
        documents.append(Document(np.concatenate(parts).astype(np.int32), learned))
    return documents, asked.prefix
