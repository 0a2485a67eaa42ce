"""ASCL's cold start: fine-tuning on the model's own traces that turned out right, then RL.

The start model goes on from both ways to begin, by turns: a call with its answer, and the tag of
the reasoning (`jaxalign.methods.ascl.openings`), since a small model can make neither. Those traces
are kept that are well-formed, end by themselves, refuse exactly when the request is harmful, and
make no further call: of each kind of request as many that consulted as did not, so that the cold
start teaches how to consult and not whether, and as many refusals as answers. The model is then
fine-tuned on them: cross-entropy of what was generated, the tool's answers left out.

The paper names a cold start and a zero-shot arm without it; openings, filter and caps are ours.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from jaxalign.answers.asking import judge
from jaxalign.data.prompts import KINDS, Prompt
from jaxalign.engine.optimizer import skip_nonfinite
from jaxalign.engine.sft import PackedBatches, make_supervised_step
from jaxalign.engine.state import init_state
from jaxalign.engine.step import Sampling
from jaxalign.host.errors import InputError
from jaxalign.host.processes import fetch
from jaxalign.methods.ascl.openings import Openings, guided_rollout
from jaxalign.models.packing import Document
from jaxalign.models.transformer import Transformer
from jaxalign.records import Params, Rollout
from jaxalign.rewards import Verifiers
from jaxalign.runs.batches import Batches, kind_indices
from jaxalign.runs.loop import DivergedError


@dataclasses.dataclass(frozen=True)
class Traces:
    """K completions to learn from.

    Attributes:
      prompts: what each answers.
      tokens: `[K, T]` int32.
      mask: `[K, T]` bool, the generated tokens, which are learned.
      present: `[K, T]` bool, these and the tool's.
      consulted: `[K]` bool.
    """

    prompts: Sequence[Prompt]
    tokens: np.ndarray
    mask: np.ndarray
    present: np.ndarray
    consulted: np.ndarray

    def take(self, rows: np.ndarray) -> "Traces":
        """The traces with these numbers."""
        return Traces(
            [self.prompts[row] for row in rows],
            self.tokens[rows],
            self.mask[rows],
            self.present[rows],
            self.consulted[rows],
        )

    def counts(self) -> dict[str, int]:
        """How many there are of each kind and choice, such as "harmful, consulted"."""
        kinds = kind_indices(self.prompts)
        return {
            f"{kind}, {'consulted' if choice else 'alone'}": int(
                ((kinds == index) & (self.consulted == choice)).sum()
            )
            for index, kind in enumerate(KINDS)
            for choice in (True, False)
        }


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
    decode: Callable[[np.ndarray], str],
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Traces, Traces]:
    """Samples and filters.

    Args:
      model: the decoder.
      params: the start model.
      sampling: how many samples, how long, how drawn.
      batches: round r asks the prompts of step r.
      verifiers: of the consulting format and of refusals.
      rounds: how many batches.
      key: round r uses `fold_in(key, r)`.
      openings: what completions begin with; odd rounds consult.
      decode: ids to text.
      progress: called after each round with the number done.

    Returns:
      all traces that pass the filter, and all that were sampled.
    """
    prompts: list[Prompt] = []
    rows: list[Rollout] = []
    right: list[np.ndarray] = []
    for number in range(rounds):
        round_prompts = batches.prompts_at(number)
        asked = [p for p in round_prompts for _ in range(sampling.samples_per_prompt)]
        samples: Any = guided_rollout(
            model,
            sampling,
            params,
            batches.encode(round_prompts),
            [openings.of(prompt, consults=number % 2 == 1) for prompt in round_prompts],
            key=jax.random.fold_in(key, number),
            width=openings.size,
        )
        verdict = fetch(judge(verifiers, samples.tokens, samples.mask))
        harmful = np.array([prompt.is_harmful for prompt in asked])
        spoken = [decode(t[m]) for t, m in zip(samples.tokens, samples.mask, strict=True)]
        right.append(
            verdict.well_formed
            & samples.finished
            & (verdict.refused == harmful)
            & np.array([text.count("<consult>") <= 1 for text in spoken])
        )
        prompts += asked
        rows.append(samples)
        progress(number + 1)
    drawn = jax.tree.map(lambda *parts: np.concatenate(parts), *rows)
    every = Traces(prompts, drawn.tokens, drawn.mask, drawn.present, drawn.mode > 0)
    return every.take(np.flatnonzero(np.concatenate(right))), every


def balance_traces(traces: Traces, *, cap: int) -> Traces:
    """As many of each choice, consulted or not, for each kind, and as many refusals as answers.

    Of a kind that is the smaller number of its choices and at most `cap`; where one choice never
    turned out right, the other is kept all the same. Then the side, harmful or harmless, that has
    more is cut to the other's number, unless that is 0. The first ones are kept, no text twice.

    Raises:
      InputError: there is none.
    """
    groups: dict[str, dict[bool, list[int]]] = {kind: {} for kind in KINDS}
    seen: set[tuple[str, bytes]] = set()
    for row, prompt in enumerate(traces.prompts):
        text = (prompt.text, traces.tokens[row][traces.mask[row]].tobytes())
        if text not in seen:
            seen.add(text)
            groups[prompt.kind].setdefault(bool(traces.consulted[row]), []).append(row)
    most = {kind: min(cap, *map(len, x.values())) if x else 0 for kind, x in groups.items()}
    harmless = [kind for kind in KINDS if kind != "harmful"]
    if side := min(most["harmful"], sum(most[kind] for kind in harmless)):
        most["harmful"] = side
        # The kind that has least first, so that the other fills up what it leaves.
        for left, kind in zip((2, 1), sorted(harmless, key=most.__getitem__), strict=True):
            most[kind] = min(most[kind], side // left)
            side -= most[kind]
    kept = [row for kind, x in groups.items() for rows in x.values() for row in rows[: most[kind]]]
    if not kept:
        raise InputError(
            "cold start: no sampled trace was well-formed and right; sample more rounds, or leave "
            "the cold start out with cold_start_rounds=0"
        )
    return traces.take(np.array(sorted(kept)))


def fine_tune(
    model: Transformer,
    params: Params,
    traces: Traces,
    batches: Batches,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int,
    batch_size: int,
    row_length: int,
    seed: int,
    progress: Callable[[int, float], None] = lambda done, loss: None,
) -> Params:
    """Minimises the mean of −log π(token) over the generated tokens of a batch of traces.

    Args:
      model: the decoder.
      params: where to start; not changed.
      traces: K of them.
      batches: encodes their prompts, as in RL, so with the same instruction in front.
      optimizer: of the updates.
      epochs: passes over the traces; the last update is filled up from one more.
      batch_size: traces in an update; they share rows.
      row_length: of a row, in tokens; at least that of the longest prompt with its completion.
      seed: of the order.
      progress: called after each update with how many are done, and the loss.

    Returns:
      the new parameters, float32.

    Raises:
      DivergedError: a loss or a gradient is not finite.
    """
    batch_size = min(batch_size, len(traces.prompts))
    steps = -(-epochs * len(traces.prompts) // batch_size)
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
    state = init_state(params, optimizer)
    for number in range(steps):
        state, result = step(state, packed(number))
        if result.metrics["skipped_updates"]:
            raise DivergedError("cold start: not finite: lower cold_start_learning_rate")
        progress(number + 1, float(result.metrics["loss"]))
    return state.params


def make_documents(traces: Traces, batches: Batches) -> tuple[list[Document], np.ndarray | None]:
    """Each trace behind its prompt, and the tokens that open all of them."""
    asked: Any = batches.encode(traces.prompts)
    documents = []
    for row, mask in enumerate(asked.prompts.mask):
        prompt, present = asked.prompts.tokens[row][mask], traces.present[row]
        tokens = np.concatenate([prompt, traces.tokens[row][present]])
        unlearned = np.zeros(len(prompt), bool)
        learned = np.concatenate([unlearned, traces.mask[row][present]])
        documents.append(Document(tokens.astype(np.int32), learned))
    return documents, asked.prefix
