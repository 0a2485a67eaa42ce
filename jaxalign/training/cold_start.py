"""ASCL's cold start: fine-tuning on the model's own traces that turned out right, then RL.

The start model samples completions with the tool at hand; in every other round the call is made for
it (`jaxalign.training.guided_call`), since a small model cannot make one. Those are kept that are
well-formed, end by themselves, refuse exactly when the request is harmful, ask for rules that
exist, and whose answers were not cut. Of each kind of request as many are kept that consulted as
did not, at most `cap`, so that the cold start teaches how to consult and not whether. The model is
then fine-tuned on them: cross-entropy of what was generated, the tool's answers left out.

The paper names a cold start and a zero-shot arm without it; guidance, filter and caps are ours.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
import optax

from jaxalign.data.documents import Document
from jaxalign.data.prompts import KINDS, Prompt
from jaxalign.errors import InputError
from jaxalign.evaluation.suites import judge
from jaxalign.models.transformer import Params, Transformer
from jaxalign.rewards import Verifiers
from jaxalign.sampling import Rollout
from jaxalign.training.batches import Batches, kind_indices
from jaxalign.training.guided_call import Call, call_of, guided_rollout
from jaxalign.training.loop import DivergedError
from jaxalign.training.state import init_state
from jaxalign.training.step import Algorithm, rollout
from jaxalign.training.supervised import PackedBatches, make_supervised_step


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
    algorithm: Algorithm,
    batches: Batches,
    verifiers: Verifiers,
    *,
    rounds: int,
    key: jax.Array,
    calls: Mapping[str, Call],
    known: Callable[[str], bool],
    decode: Callable[[np.ndarray], str],
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[Traces, Traces]:
    """Samples and filters.

    Args:
      model: the decoder.
      params: the start model.
      algorithm: how many samples, how long, how drawn.
      batches: round r asks the prompts of step r.
      verifiers: of the consulting format and of refusals.
      rounds: how many batches.
      key: round r uses `fold_in(key, r)`.
      calls: category to the call that odd rounds begin with, see `encode_calls`.
      known: whether every rule that a generated text asks for exists.
      decode: ids to text.
      progress: called after each round with the number done.

    Returns:
      all traces that pass the filter, and all that were sampled.
    """
    prompts: list[Prompt] = []
    rows: list[Rollout] = []
    right: list[np.ndarray] = []
    width = max(len(call.asked) + len(call.answered) for call in calls.values())
    for number in range(rounds):
        round_prompts = batches.prompts_at(number)
        asked = [p for p in round_prompts for _ in range(algorithm.samples_per_prompt)]
        draw = functools.partial(rollout, model, algorithm, params, batches(number))
        if number % 2:
            opening = [call_of(calls, prompt) for prompt in round_prompts]
            draw = functools.partial(
                guided_rollout, model, algorithm, params, batches(number), opening, width=width
            )
        samples = draw(jax.random.fold_in(key, number))
        verdict = jax.device_get(judge(verifiers, samples.tokens, samples.mask))
        samples = jax.device_get(samples)
        harmful = np.array([prompt.is_harmful for prompt in asked])
        spoken = [known(decode(t[m])) for t, m in zip(samples.tokens, samples.mask, strict=True)]
        right.append(
            verdict.well_formed
            & samples.finished
            & ~samples.cut
            & (verdict.refused == harmful)
            & np.array(spoken)
        )
        prompts += asked
        rows.append(samples)
        progress(number + 1)
    every = Traces(
        prompts,
        tokens=np.concatenate([samples.tokens for samples in rows]),
        mask=np.concatenate([samples.mask for samples in rows]),
        present=np.concatenate([samples.present for samples in rows]),
        consulted=np.concatenate([samples.mode for samples in rows]) > 0,
    )
    return every.take(np.flatnonzero(np.concatenate(right))), every


def balance_traces(traces: Traces, *, cap: int) -> Traces:
    """As many of each choice, consulted or not, for each kind: the first ones, no text twice.

    That is the smaller number of the two and at most `cap`. Where one choice never turned out
    right, the other is kept all the same.

    Raises:
      InputError: there is none.
    """
    groups: dict[str, dict[bool, list[int]]] = {}
    seen: set[tuple[str, bytes]] = set()
    for row, prompt in enumerate(traces.prompts):
        text = (prompt.text, traces.tokens[row][traces.mask[row]].tobytes())
        if text not in seen:
            seen.add(text)
            choices = groups.setdefault(prompt.kind, {})
            choices.setdefault(bool(traces.consulted[row]), []).append(row)
    kept: list[int] = []
    for choices in groups.values():
        most = min(cap, *map(len, choices.values()))
        kept += [row for rows in choices.values() for row in rows[:most]]
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
    )
    step = make_supervised_step(model, optimizer)
    state = init_state(params, optimizer)
    for number in range(steps):
        state, result = step(state, packed(number))
        if state.skipped:
            raise DivergedError("cold start: not finite: lower cold_start_learning_rate")
        progress(number + 1, float(result.metrics["loss"]))
    return state.params


def make_documents(traces: Traces, batches: Batches) -> tuple[list[Document], np.ndarray | None]:
    """Each trace behind its prompt, and the tokens that open all of them."""
    asked = jax.device_get(batches.encode(traces.prompts))
    documents = []
    for row, mask in enumerate(asked.prompt_mask):
        prompt, present = asked.prompts[row][mask], traces.present[row]
        tokens = np.concatenate([prompt, traces.tokens[row][present]])
        unlearned = np.zeros(len(prompt), bool)
        learned = np.concatenate([unlearned, traces.mask[row][present]])
        documents.append(Document(tokens.astype(np.int32), learned))
    return documents, asked.prefix


def asks_known_rules(categories: Sequence[str], *, max_calls: int) -> Callable[[str], bool]:
    """Whether a text asks for these categories only, and no more often than is answered."""
    known = set(categories)

    def check(text: str) -> bool:
        asked = [part.partition("</consult>")[0] for part in text.split("<consult>")[1:]]
        return len(asked) <= max_calls and all(category.strip() in known for category in asked)

    return check
