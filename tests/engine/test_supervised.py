"""Fine-tuning on documents and on pairs: the compiled steps, their batches, their guards."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_model import SMALL, random_params

from jaxalign.engine.dpo import (
    Pair,
    PairBatches,
    make_preference_step,
    pair_logps,
)
from jaxalign.engine.optimizer import skip_nonfinite
from jaxalign.engine.sft import PackedBatches, make_supervised_step
from jaxalign.engine.state import init_state
from jaxalign.host.errors import InputError
from jaxalign.losses import preference_loss
from jaxalign.models.lora import Lora, init_adapter
from jaxalign.models.packing import Document, packed_logps
from jaxalign.models.transformer import Transformer

MODEL = Transformer(dataclasses.replace(SMALL, num_layers=1), dtype=jnp.float32)
PREFIX = np.array([3, 1], np.int32)
_RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def params():
    return random_params(MODEL.config)


def draw(length):
    return _RNG.integers(SMALL.vocab_size, size=length).astype(np.int32)


DOCUMENTS = [Document(draw(n), np.arange(n) >= 2) for n in (6, 9, 4, 7, 5)]
PAIRS = [Pair(draw(p), draw(c), draw(r)) for p, c, r in ((2, 5, 3), (4, 2, 6), (1, 4, 4))]


# --- documents -----------------------------------------------------------------------------------


def packed_batches(**changes):
    arguments = {"batch_size": 3, "length": 10, "steps": 5, "seed": 1, "prefix": PREFIX} | changes
    return PackedBatches(DOCUMENTS, **arguments)


def test_each_step_learns_from_as_many_documents_and_each_pass_from_all():
    batches = packed_batches()
    shapes = {batches(step).tokens.shape for step in range(5)}
    assert len(shapes) == 1
    seen = [id(document) for step in range(5) for document in batches.documents_at(step)]
    assert all(seen.count(id(document)) == 3 for document in DOCUMENTS)
    first_pass = seen[: len(DOCUMENTS)]
    assert len(set(first_pass)) == len(DOCUMENTS) and first_pass != seen[5:10]
    other = packed_batches(seed=2)
    assert [id(document) for s in range(5) for document in other.documents_at(s)] != seen
    with pytest.raises(InputError, match="document of 9 tokens does not fit a row of 8"):
        packed_batches(length=8)


def test_documents_become_likelier_with_one_compilation(params):
    batches = packed_batches(batch_size=5, steps=30)
    step = make_supervised_step(MODEL, optax.adam(3e-3))
    state = init_state(params, optax.adam(3e-3))
    losses = []
    for number in range(30):
        state, result = step(state, batches(number))
        losses.append(float(result.metrics["loss"]))
    batch = batches(0)
    logps = np.asarray(packed_logps(MODEL, params, batch))
    np.testing.assert_allclose(losses[0], -logps[np.asarray(batch.learned)].mean(), rtol=1e-5)
    assert losses[-1] < 0.5 * losses[0]
    assert step._cache_size() == 1
    assert result.metrics["tokens"] == sum(document.learned.sum() for document in DOCUMENTS)


def test_micro_batches_give_the_gradient_of_the_whole(params):
    def after(micro_batches):
        batches = packed_batches(batch_size=5, micro_batches=2)
        step = make_supervised_step(MODEL, optax.sgd(0.1), micro_batches=micro_batches)
        return step(init_state(params, optax.sgd(0.1)), batches(0))

    (one, first), (two, second) = after(1), after(2)
    assert packed_batches(batch_size=5).rows == 4 and packed_batches(batch_size=2).rows == 2
    np.testing.assert_allclose(first.metrics["loss"], second.metrics["loss"], rtol=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), one.params, two.params)


def test_an_update_that_is_not_finite_is_skipped_and_counted(params):
    broken = jax.tree.map(jnp.copy, params)
    broken["final_norm"]["scale"] = broken["final_norm"]["scale"].at[0].set(jnp.nan)
    optimizer = skip_nonfinite(optax.sgd(0.1))
    step = make_supervised_step(MODEL, optimizer)
    state, result = step(init_state(broken, optimizer), packed_batches()(0))
    assert result.metrics["skipped_updates"] == 1 and int(state.step) == 1
    jax.tree.map(np.testing.assert_array_equal, state.params, broken)


# --- pairs ---------------------------------------------------------------------------------------


def pair_batches(params, **changes):
    return PairBatches(MODEL, params, PAIRS, **({"batch_size": 2, "seed": 0} | changes))


@pytest.mark.parametrize("prefix", [None, PREFIX], ids=["no prefix", "prefix"])
def test_a_pairs_log_probabilities_are_those_of_its_answers_alone(params, prefix):
    batch = pair_batches(params, batch_size=3, prefix=prefix)(0)
    opening = [] if prefix is None else list(prefix)
    rows = {tuple(pair.prompt): pair for pair in PAIRS}
    got = np.asarray(pair_logps(MODEL, params, batch))
    np.testing.assert_allclose(got, batch.reference, rtol=1e-6)
    for row in range(3):
        pair = rows[tuple(np.asarray(batch.prompts[row])[np.asarray(batch.prompt_mask[row])])]
        for column, answer in enumerate((pair.chosen, pair.rejected)):
            prompt = np.array([[*opening, *pair.prompt]], np.int32)
            everything = np.ones((1, len(answer)), bool)
            alone = MODEL.logps(
                params, prompt, np.ones(prompt.shape, bool), answer[None], everything
            )
            np.testing.assert_allclose(got[row, column], np.sum(alone), rtol=1e-5)


def test_the_policy_comes_to_prefer_the_chosen_answers(params):
    batches = pair_batches(params, batch_size=3)
    optimizer = optax.adam(1e-3)
    step = make_preference_step(MODEL, optimizer, beta=0.5)
    state = init_state(params, optimizer)
    metrics = []
    for number in range(12):
        state, result = step(state, batches(number))
        metrics.append(jax.device_get(result.metrics))
    # At the start the policy is the reference: no margin, and the loss is log 2.
    np.testing.assert_allclose(metrics[0]["loss"], np.log(2), rtol=1e-5)
    np.testing.assert_allclose(metrics[0]["margin"], 0, atol=1e-5)
    assert metrics[-1]["margin"] > 1 and metrics[-1]["preferred"] == 1
    # Three pairs of margins that differ: the loss is their mean, not the loss of their mean.
    batch = batches(12)
    gain = np.asarray(pair_logps(MODEL, state.params, batch) - batch.reference)
    wanted = preference_loss(gain[:, 0], gain[:, 1], np.zeros(3), np.zeros(3), beta=0.5).mean()
    _, result = step(state, batch)
    np.testing.assert_allclose(result.metrics["loss"], wanted, rtol=1e-5)
    assert step._cache_size() == 1


def test_pairs_in_parts_give_the_gradient_of_the_whole(params):
    batch = pair_batches(params, batch_size=3, micro_batches=2)(0)
    assert batch.prompts.shape[0] == 2

    def after(micro_batches):
        step = make_preference_step(MODEL, optax.sgd(0.1), micro_batches=micro_batches)
        return step(init_state(params, optax.sgd(0.1)), batch)

    (one, first), (two, second) = after(1), after(2)
    np.testing.assert_allclose(first.metrics["loss"], second.metrics["loss"], rtol=1e-6)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), one.params, two.params)


def test_pairs_that_cannot_be_learned_from(params):
    with pytest.raises(InputError, match="0 pairs, at most 2 an update, for micro_batches=1"):
        PairBatches(MODEL, params, [], batch_size=2, seed=0)
    with pytest.raises(InputError, match="for micro_batches=4: there must be as many"):
        pair_batches(params, batch_size=8, micro_batches=4)
    with pytest.raises(InputError, match="no documents to learn from"):
        PackedBatches([], batch_size=2, length=8, steps=1, seed=0)
    empty = dataclasses.replace(PAIRS[0], rejected=np.array([], np.int32))
    with pytest.raises(InputError, match="pair 1: prompt, chosen and rejected must not be empty"):
        PairBatches(MODEL, params, [PAIRS[0], empty], batch_size=2, seed=0)


# --- adapters ------------------------------------------------------------------------------------


def test_adapters_learn_answers_and_preferences(params):
    """On the base that is passed beside them, which stays."""
    lora = Lora(rank=4)
    model = MODEL.clone(lora=lora)
    optimizer = optax.adam(3e-2)
    for make, batches in (
        (make_supervised_step, packed_batches(batch_size=5, steps=20)),
        (make_preference_step, pair_batches(params, batch_size=3)),
    ):
        step = make(model, optimizer)
        state = init_state(init_adapter(MODEL.config, lora, jax.random.key(0)), optimizer)
        losses = []
        for number in range(20):
            state, result = step(state, batches(number), params)
            losses.append(float(result.metrics["loss"]))
        assert losses[-1] < 0.8 * losses[0], make
        assert state.params.keys() == {"adapter"} and step._cache_size() == 1
