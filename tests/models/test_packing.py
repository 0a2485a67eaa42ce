"""Documents that share rows have the log-probabilities and gradients they have alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import SMALL, random_params

from jaxalign.host.errors import InputError
from jaxalign.models.packing import Document, pack, packed_logps, place
from jaxalign.models.transformer import Transformer

CONFIG = dataclasses.replace(SMALL, vocab_size=29, num_layers=3, rope_theta=100.0)
MODEL = Transformer(CONFIG, dtype=jnp.float32)
PREFIX = np.array([8, 8, 2, 0], np.int32)
PROMPT_LENGTHS = (3, 1, 5, 2)
LENGTHS = (9, 4, 6, 7)

_RNG = np.random.default_rng(0)
DOCUMENTS = [
    Document(
        _RNG.integers(CONFIG.vocab_size, size=length).astype(np.int32),
        np.arange(length) >= prompt,
    )
    for length, prompt in zip(LENGTHS, PROMPT_LENGTHS, strict=True)
]


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


@jax.jit
def mean_logp(params, batch):
    logps = packed_logps(MODEL, params, batch)
    return jnp.where(batch.learned, logps, 0.0).sum() / batch.learned.sum()


def test_rows_are_filled_with_the_longest_first():
    assert place([9, 4, 6, 7], length=13) == [[0, 1], [3, 2]]
    assert place([5, 5, 5], length=10) == [[0, 1], [2]]
    assert place([], length=4) == []


@given(st.lists(st.integers(1, 12), max_size=20))
def test_every_document_has_one_place_and_no_row_overflows(lengths):
    rows = place(lengths, length=12)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= 12 for row in rows)
    # First fit leaves no two rows that would both fit into one.
    assert sum(sum(lengths[i] for i in row) <= 6 for row in rows) <= 1


def test_a_packed_batch_by_hand():
    documents = [
        Document(np.array([5, 6, 7], np.int32), np.array([False, True, True])),
        Document(np.array([8, 9], np.int32), np.array([False, True])),
    ]
    batch = pack(documents, length=6, rows=2)
    assert batch.tokens.tolist() == [[5, 6, 7, 8, 9, 0], [0] * 6]
    assert batch.documents.tolist() == [[1, 1, 1, 2, 2, 0], [0] * 6]
    assert batch.positions.tolist() == [[0, 1, 2, 0, 1, 0], [0] * 6]
    assert batch.learned.tolist() == [[False, True, True, False, True, False], [False] * 6]


@pytest.mark.parametrize("prefix", [None, PREFIX], ids=["no prefix", "prefix"])
def test_loss_and_gradients_are_those_of_one_document_a_row(params, prefix):
    """The second form of each is `Transformer.logps`, which knows nothing of packing."""
    batch = pack(DOCUMENTS, length=16, prefix=prefix)
    assert batch.tokens.shape == (2, 16)
    loss, gradients = jax.value_and_grad(mean_logp)(params, batch)
    prompts, tokens = np.zeros((4, 5), np.int32), np.zeros((4, 6), np.int32)
    prompt_mask, mask = np.zeros((4, 5), bool), np.zeros((4, 6), bool)
    for row, document in enumerate(DOCUMENTS):
        asked, answer = document.tokens[~document.learned], document.tokens[document.learned]
        prompts[row, : len(asked)], prompt_mask[row, : len(asked)] = asked, True
        tokens[row, : len(answer)], mask[row, : len(answer)] = answer, True

    @jax.jit
    @jax.value_and_grad
    def alone(params):
        shared = None if prefix is None else jnp.asarray(prefix)
        logps = MODEL.logps(params, prompts, prompt_mask, tokens, mask, prefix=shared)
        return jnp.where(mask, logps, 0.0).sum() / mask.sum()

    wanted, wanted_gradients = alone(params)
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)
    for got, want in zip(
        jax.tree.leaves(gradients), jax.tree.leaves(wanted_gradients), strict=True
    ):
        assert np.abs(want).max() > 1e-4
        np.testing.assert_allclose(got, want, atol=5e-6 * max(np.abs(want).max(), 1.0))


def test_no_document_sees_another(params):
    """Other tokens in one document change its own log-probabilities and no bit of the others'."""
    read = jax.jit(lambda batch: packed_logps(MODEL, params, batch))
    batch = pack(DOCUMENTS, length=26)
    first = np.asarray(read(batch))
    for number in range(1, len(DOCUMENTS) + 1):
        here = np.asarray(batch.documents) == number
        changed = jnp.where(here, (batch.tokens + 1) % CONFIG.vocab_size, batch.tokens)
        second = np.asarray(read(batch.replace(tokens=changed)))
        others = ~here & (np.asarray(batch.positions) > 0)
        np.testing.assert_array_equal(first[others], second[others])
        inside = here & (np.asarray(batch.positions) > 0)
        assert (first[inside] != second[inside]).all()


def test_what_cannot_be_packed():
    with pytest.raises(InputError, match="document of 9 tokens does not fit a row of 8"):
        pack(DOCUMENTS, length=8)
    with pytest.raises(ValueError, match="4 documents take 2 rows, not 1"):
        pack(DOCUMENTS, length=16, rows=1)
    whole = Document(np.array([1, 2], np.int32), np.array([True, True]))
    with pytest.raises(ValueError, match="document 0: its first token cannot be learned"):
        pack([whole], length=4)
