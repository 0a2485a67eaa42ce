"""Documents that share rows: supervised training without padding, no document sees another.

    row:        [ prompt a | answer a | prompt b | answer b | padding ]
    documents:  [ 1 1 1 1   1 1 1 1     2 2 2      2 2 2      0 0 0   ]
    positions:  [ 0 1 2 3   4 5 6 7     0 1 2      3 4 5      0 0 0   ]

Attention stays within a document, and positions count from its start, so each token's
log-probability is the one it has in a row of its own.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxalign.host.errors import InputError
from jaxalign.models.completion import compute_params, encode_prefix, run_block
from jaxalign.models.heads import hidden_token_logps, output_weight
from jaxalign.models.transformer import Transformer
from jaxalign.records import Params


@dataclasses.dataclass(frozen=True)
class Document:
    """A text to learn from.

    Attributes:
      tokens: `[S]` int32, a prompt and its completion.
      learned: `[S]` bool, which tokens the loss counts; never the first, which nothing predicts.
    """

    tokens: np.ndarray
    learned: np.ndarray


@struct.dataclass
class PackedBatch:
    """R rows of L positions.

    Attributes:
      tokens: `[R, L]` int32.
      documents: `[R, L]` int32, each token's document within its row, from 1; 0 is padding.
      positions: `[R, L]` int32, each token's place within its document, from 0.
      learned: `[R, L]` bool.
      prefix: `[P0]` int32, tokens that open every document and stand here once; None for none.
    """

    tokens: jax.Array
    documents: jax.Array
    positions: jax.Array
    learned: jax.Array
    prefix: jax.Array | None = None


def place(lengths: Sequence[int], *, length: int) -> list[list[int]]:
    """Which documents, as indices into `lengths`, go into which row of `length` tokens.

    First-fit decreasing: each goes into the first row with room.

    Raises:
      InputError: a document is longer than a row.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if lengths[index] > length:
            raise InputError(
                f"a document of {lengths[index]} tokens does not fit a row of {length}: raise "
                "row_length, or shorten the document"
            )
        row = next((i for i, left in enumerate(room) if left >= lengths[index]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(length)
        rows[row].append(index)
        room[row] -= lengths[index]
    return rows


def pack(
    documents: Sequence[Document],
    *,
    length: int,
    rows: int | None = None,
    prefix: np.ndarray | None = None,
) -> PackedBatch:
    """Lays documents out in R rows of L tokens as `place` says, as NumPy arrays.

    R is by default as many as are needed; given, batches share a compilation. `prefix` `[P0]` opens
    every document and is left out of each.

    Raises:
      InputError: a document is longer than a row.
      ValueError: more rows are needed, or a document's first token is to be learned.
    """
    placed = place([len(document.tokens) for document in documents], length=length)
    rows = len(placed) if rows is None else rows
    if len(placed) > rows:
        raise ValueError(f"{len(documents)} documents take {len(placed)} rows, not {rows}")
    tokens, numbers, positions = (np.zeros((rows, length), np.int32) for _ in range(3))
    learned = np.zeros((rows, length), bool)
    for row, indices in enumerate(placed):
        start = 0
        for number, index in enumerate(indices, start=1):
            document = documents[index]
            if document.learned[0]:
                raise ValueError(f"document {index}: its first token cannot be learned")
            span = slice(start, start + len(document.tokens))
            tokens[row, span] = document.tokens
            numbers[row, span] = number
            positions[row, span] = np.arange(len(document.tokens))
            learned[row, span] = document.learned
            start = span.stop
    shared = None if prefix is None else np.asarray(prefix, np.int32)
    arrays: Any = (tokens, numbers, positions, learned, shared)
    return PackedBatch(*arrays)


def packed_logps(
    model: Transformer, params: Params, batch: PackedBatch, *, tile: int | None = None
) -> jax.Array:
    """Log-probability of each token given its document before it, differentiable in `params`.

    `tile` is as in `hidden_token_logps`.

    Returns:
      `[R, L]` float32; values of a document's first token and of padding mean nothing.
    """
    params = compute_params(params, model.dtype, learned=True)
    blocks = encode_prefix(model, params, batch.prefix)
    offset = blocks[0].mask.shape[1] if blocks else 0
    hidden, _ = run_block(
        model, params, batch.tokens, offset + batch.positions, batch.documents, blocks
    )
    logps = hidden_token_logps(
        hidden[:, :-1], output_weight(params), batch.tokens[:, 1:], tile=tile, mesh=model.mesh
    )
    return jnp.pad(logps, ((0, 0), (1, 0)))
