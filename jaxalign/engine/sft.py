"""Supervised fine-tuning: packed batches, and the compiled step that learns from one."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxalign.data.order import walk
from jaxalign.engine.gradients import descend
from jaxalign.engine.state import TrainState, complete
from jaxalign.host.errors import InputError
from jaxalign.losses import aggregate, denominator
from jaxalign.models.packing import Document, PackedBatch, pack, packed_logps, place
from jaxalign.models.sharding import to_devices
from jaxalign.models.transformer import Transformer
from jaxalign.records import Metrics, Params


class TuningResult(NamedTuple):
    """What a step of tuning shows besides the next state: scalars."""

    metrics: Metrics


class TuningStep(Protocol):
    """`(state, batch, base) -> (state, TuningResult)`; `base` is what an adapter is trained on."""

    def __call__(  # noqa: D102
        self, state: TrainState, batch: Any, base: Params | None = None
    ) -> tuple[TrainState, TuningResult]: ...


class PackedBatches:
    """The packed batch of each step: a pure function of the step number.

    Every step learns from `batch_size` documents, however long they are, or from all; each batch
    has as many rows of `length` tokens as the one that needs most, so there is one compilation.
    Rows too many are padding: `micro_batches`, and the devices that share a micro-batch's rows,
    divide their number; without a mesh the first device has all. `prefix` `[P0]` opens every
    document and is left out of each. There are `steps` batches, in an order fixed by the seed.

    Raises:
      InputError: no documents, or one that is longer than a row.
    """

    def __init__(
        self,
        documents: Sequence[Document],
        *,
        batch_size: int,
        length: int,
        steps: int,
        seed: int,
        prefix: np.ndarray | None = None,
        micro_batches: int = 1,
        mesh: jax.sharding.Mesh | None = None,
    ) -> None:
        if not documents:
            raise InputError("no documents to learn from")
        self._documents = documents
        self._count = min(batch_size, len(documents))
        self._length = length
        self._seed = seed
        self._prefix = prefix
        lengths = [[len(d.tokens) for d in self.documents_at(step)] for step in range(steps)]
        needed = max(len(place(each, length=length)) for each in lengths)
        parts = micro_batches * (1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"])
        self.rows = -(-needed // parts) * parts
        self._mesh = mesh

    def documents_at(self, step: int) -> list[Document]:
        """The documents of a step."""
        size, seed = len(self._documents), (self._seed,)
        return [self._documents[i] for i in walk(size, step, count=self._count, seed=seed)]

    def __call__(self, step: int) -> PackedBatch:
        """The batch of a step, on the devices."""
        batch = pack(self.documents_at(step), length=self._length, rows=self.rows)
        batch = to_devices(batch, self._mesh, rows=True)
        return dataclasses.replace(batch, prefix=to_devices(self._prefix, self._mesh))


def make_supervised_step(
    model: Transformer, optimizer: optax.GradientTransformation, *, micro_batches: int = 1
) -> TuningStep:
    """Composes one update into a compiled program.

        L = − Σ_t m_t log π(token_t) / Σ_t m_t      over the tokens to be learned of all documents

    With `skip_nonfinite` an update that is not finite is skipped and counted. The gradient is
    accumulated over `micro_batches`, which divides R.

    Returns:
      `step(state, batch, base) -> (state, TuningResult)`, jitted, the state donated; `base` is what
      an adapter is trained on, by default None.
    """

    def step(
        state: TrainState, batch: PackedBatch, base: Params | None = None
    ) -> tuple[TrainState, TuningResult]:
        normalizer = denominator(batch.learned)

        def loss(params: Params, part: PackedBatch) -> tuple[jax.Array, Metrics]:
            part = dataclasses.replace(part, prefix=batch.prefix)
            logps = packed_logps(model, complete(params, base), part)
            value = aggregate(-logps, part.learned, normalizer=normalizer)
            return value, {"loss": value}

        rows = dataclasses.replace(batch, prefix=None)  # which no part has a share of
        state, metrics = descend(model, optimizer, state, loss, rows, micro_batches=micro_batches)
        return state, TuningResult(metrics | {"tokens": jnp.asarray(normalizer, jnp.float32)})

    return jax.jit(step, donate_argnums=0)
