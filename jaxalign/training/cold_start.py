"""ASCL's cold start: fine-tuning on the model's own traces that turned out right, then RL.

The start model samples completions with the tool at hand. Those are kept that are well-formed, end
by themselves, refuse exactly when the request is harmful, ask for rules that exist, and whose
answers were not cut. Of each kind of request as many are kept that consulted as did not, at most
`cap`, so that the cold start teaches how to consult and not whether. The model is then fine-tuned
on them: cross-entropy of what was generated, the tool's answers left out.

The paper names a cold start and a zero-shot arm without it; the filter and the caps are ours.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign.data.prompts import KINDS, Prompt
from jaxalign.errors import InputError
from jaxalign.evaluation.suites import judge
from jaxalign.losses import aggregate
from jaxalign.models.completion import completion_logps
from jaxalign.models.transformer import Params, Transformer
from jaxalign.rewards import Verifiers
from jaxalign.sampling import Rollout
from jaxalign.training.batches import Batches, kind_indices
from jaxalign.training.loop import DivergedError
from jaxalign.training.state import TrainState, init_state
from jaxalign.training.step import Algorithm, Batch, rollout


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
      known: whether every rule that a generated text asks for exists.
      decode: ids to text.
      progress: called after each round with the number done.

    Returns:
      all traces that pass the filter, and all that were sampled.
    """
    prompts: list[Prompt] = []
    rows: list[Rollout] = []
    right: list[np.ndarray] = []
    for number in range(rounds):
        asked = [p for p in batches.prompts_at(number) for _ in range(algorithm.samples_per_prompt)]
        samples = rollout(
            model, algorithm, params, batches(number), jax.random.fold_in(key, number)
        )
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


class _Part(NamedTuple):
    batch: Batch
    tokens: jax.Array
    mask: jax.Array
    present: jax.Array


def fine_tune(
    model: Transformer,
    params: Params,
    traces: Traces,
    batches: Batches,
    optimizer: optax.GradientTransformation,
    *,
    epochs: int,
    batch_size: int,
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
      epochs: passes over the traces.
      batch_size: traces in an update; the last ones of a pass that do not fill a batch are left to
        the next pass's order.
      seed: of the order.
      progress: called after each update with how many are done, and the loss.

    Returns:
      the new parameters, float32.

    Raises:
      DivergedError: a loss or a gradient is not finite.
    """
    batch_size = min(batch_size, len(traces.prompts))

    def loss(params: Params, part: _Part) -> jax.Array:
        logps = completion_logps(
            model,
            params,
            part.batch.prompts,
            part.batch.prompt_mask,
            part.tokens,
            part.present,
            prefix=part.batch.prefix,
        )
        return aggregate(-logps, part.mask)

    @jax.jit
    def step(state: TrainState, part: _Part) -> tuple[TrainState, jax.Array, jax.Array]:
        value, gradients = jax.value_and_grad(loss)(state.params, part)
        finite = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(gradients))
        changes, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, changes)
        state = dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state)
        return state, value, finite

    state = init_state(params, optimizer)
    done = 0
    for epoch in range(epochs):
        order = np.random.default_rng((seed, epoch)).permutation(len(traces.prompts))
        for first in range(0, len(order) - batch_size + 1, batch_size):
            part = traces.take(order[first : first + batch_size])
            batch = dataclasses.replace(batches.encode(part.prompts), extras=None, tool=None)
            arrays = (jnp.asarray(x) for x in (part.tokens, part.mask, part.present))
            state, value, finite = step(state, _Part(batch, *arrays))
            if not finite:
                raise DivergedError("cold start: not finite: lower cold_start_learning_rate")
            done += 1
            progress(done, float(value))
    return state.params


def asks_known_rules(categories: Sequence[str], *, max_calls: int) -> Callable[[str], bool]:
    """Whether a text asks for these categories only, and no more often than is answered."""
    known = set(categories)

    def check(text: str) -> bool:
        asked = [part.partition("</consult>")[0] for part in text.split("<consult>")[1:]]
        return len(asked) <= max_calls and all(category.strip() in known for category in asked)

    return check
