"""DPO on the engine: two answers to each prompt, which is computed once for both.

The reference's log-probabilities are constants of the data, so they are computed once, before
training, and no second model is held while it trains.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct

from jaxalign.data.order import walk
from jaxalign.data.templates import pad
from jaxalign.engine.gradients import descend
from jaxalign.engine.sft import TuningResult, TuningStep
from jaxalign.engine.state import TrainState, complete
from jaxalign.host.errors import InputError
from jaxalign.host.processes import fetch
from jaxalign.losses import preference_loss
from jaxalign.models.sharding import to_devices
from jaxalign.models.transformer import Transformer
from jaxalign.records import Metrics, Params


@dataclasses.dataclass(frozen=True)
class Pair:
    """A prompt and two answers to it, as token ids without padding.

    Attributes:
      prompt: `[P]` int32, at least one.
      chosen: `[T]` int32, the better answer.
      rejected: `[T']` int32.
    """

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray


@struct.dataclass
class PairBatch:
    """N pairs as arrays.

    Attributes:
      prompts: `[N, P]` int32.
      prompt_mask: `[N, P]` bool.
      tokens: `[2N, T]` int32, chosen and rejected answer of each prompt next to each other.
      mask: `[2N, T]` bool.
      reference: `[N, 2]` float32, log-probabilities of both answers under the start model.
      prefix: `[P0]` int32, tokens that open every prompt; None for none.
    """

    prompts: jax.Array
    prompt_mask: jax.Array
    tokens: jax.Array
    mask: jax.Array
    reference: jax.Array
    prefix: jax.Array | None = None


def pair_logps(model: Transformer, params: Params, batch: PairBatch) -> jax.Array:
    """Both answers' log π(answer | prompt), `[N, 2]` float32, sums over their tokens."""
    logps = model.logps(
        params,
        batch.prompts,
        batch.prompt_mask,
        batch.tokens,
        batch.mask,
        prefix=batch.prefix,
    )
    return jnp.where(batch.mask, logps, 0.0).sum(axis=1).reshape(-1, 2)


class PairBatches:
    """The pairs of each step: a pure function of the step number.

    The start model `params` is the reference, and reads every pair when this is made: `progress` is
    called with how many it has read, and of how many. An update has `batch_size` pairs, or all,
    lowered to what `micro_batches` divides; `prefix` `[P0]` opens every prompt and is left out of
    each.

    Raises:
      InputError: fewer pairs than `micro_batches`, or one without a prompt or an answer.
    """

    def __init__(
        self,
        model: Transformer,
        params: Params,
        pairs: Sequence[Pair],
        *,
        batch_size: int,
        seed: int,
        prefix: np.ndarray | None = None,
        micro_batches: int = 1,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._count = min(batch_size, len(pairs)) // micro_batches * micro_batches
        if not self._count:
            raise InputError(
                f"{len(pairs)} pairs, at most {batch_size} an update, for "
                f"micro_batches={micro_batches}: there must be as many at least"
            )
        for index, pair in enumerate(pairs):
            if not (len(pair.prompt) and len(pair.chosen) and len(pair.rejected)):
                raise InputError(f"pair {index}: prompt, chosen and rejected must not be empty")
        self._pairs = pairs
        self._seed = seed
        self._prefix = None if prefix is None else to_devices(np.int32(prefix), model.mesh)
        self._mesh = model.mesh
        self._reference = np.zeros((len(pairs), 2), np.float32)
        read = jax.jit(lambda params, batch: pair_logps(model, params, batch))
        for first in range(0, len(pairs), self._count):
            # The last batch reaches back, so that all have one shape.
            rows = [min(first, len(pairs) - self._count) + i for i in range(self._count)]
            self._reference[rows] = fetch(read(params, self._batch(rows)))
            progress(rows[-1] + 1, len(pairs))

    def __call__(self, step: int) -> PairBatch:
        """The batch of a step, on the devices."""
        return self._batch(walk(len(self._pairs), step, count=self._count, seed=(self._seed,)))

    def _batch(self, rows: Sequence[int]) -> PairBatch:
        pairs = [self._pairs[row] for row in rows]
        prompts = pad([p.prompt.tolist() for p in pairs], max(len(p.prompt) for p in self._pairs))
        answers = [x.tolist() for p in pairs for x in (p.chosen, p.rejected)]
        longest = max(len(x) for p in self._pairs for x in (p.chosen, p.rejected))
        arrays: Any = (*prompts, *pad(answers, longest), self._reference[list(rows)])
        on_devices: PairBatch = to_devices(PairBatch(*arrays), self._mesh, rows=True)
        return dataclasses.replace(on_devices, prefix=self._prefix)


def make_preference_step(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    *,
    beta: float = 0.1,
    micro_batches: int = 1,
) -> TuningStep:
    """Composes one update into a compiled program: the mean of `preference_loss` (DPO).

    Beta is β of `preference_loss`: how far the policy may leave the reference; small is far. The
    gradient is accumulated over `micro_batches`, which divides N.

    Returns:
      `step(state, batch, base) -> (state, TuningResult)`, jitted, the state donated; `base` is what
      an adapter is trained on, by default None. Its metrics are the loss, `margin`, the mean of how
      much more than the reference the policy prefers the chosen answer, in nats, and `preferred`,
      the share of pairs in which that is above zero.
    """

    def step(
        state: TrainState, batch: PairBatch, base: Params | None = None
    ) -> tuple[TrainState, TuningResult]:
        count = batch.prompts.shape[0]

        def loss(params: Params, part: PairBatch) -> tuple[jax.Array, Metrics]:
            whole = dataclasses.replace(part, prefix=batch.prefix)
            logps = pair_logps(model, complete(params, base), whole)
            (chosen, rejected), reference = logps.T, part.reference.T
            value = preference_loss(chosen, rejected, *reference, beta=beta).sum() / count
            margin = chosen - rejected - (reference[0] - reference[1])
            preferred = (margin > 0).sum() / count
            return value, {"loss": value, "margin": margin.sum() / count, "preferred": preferred}

        rows = dataclasses.replace(batch, prefix=None)  # which no part has a share of
        state, metrics = descend(model, optimizer, state, loss, rows, micro_batches=micro_batches)
        return state, TuningResult(metrics | {"tokens": batch.mask.sum().astype(jnp.float32)})

    return jax.jit(step, donate_argnums=0)
