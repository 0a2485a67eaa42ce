"""How tokens are drawn: exact distributions, hand-computed truncation, clear errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.sampling.methods import Greedy, Temperature, TopK, TopP, _invert, categorical

DRAWS = 100_000


def draw(method, logits, seed=0):
    """`DRAWS` tokens of one row of logits, in two batches with keys of their own."""
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (DRAWS // 2, len(logits)))
    choose = jax.jit(method.choose)
    keys = jax.random.split(jax.random.key(seed), (2, DRAWS // 2))
    return np.concatenate([choose(each, rows) for each in keys])


def assert_distributed(tokens, probabilities):
    """Pearson's χ² over all tokens that can be drawn, at about one false alarm in 10⁶."""
    counts = np.bincount(tokens, minlength=len(probabilities))
    possible = probabilities > 0
    assert (counts[~possible] == 0).all()
    expected = probabilities[possible] * len(tokens)
    assert expected.min() > 5  # else χ² says nothing
    statistic = ((counts[possible] - expected) ** 2 / expected).sum()
    freedom = possible.sum() - 1
    assert statistic < freedom + 5 * np.sqrt(2 * freedom) + 25, (statistic, freedom)


def softmax(logits):
    weights = np.exp(np.asarray(logits, np.float64) - np.max(logits))
    return weights / weights.sum()


# V is a prime, one more than a square, a square, and one.
@pytest.mark.parametrize("vocab", [37, 50, 64, 1])
def test_categorical_draws_from_the_softmax(vocab):
    rng = np.random.default_rng(vocab)
    logits = rng.normal(size=vocab).astype(np.float32) * 1.5
    logits[1::3] = -np.inf
    logits[10:20] = -np.inf  # more than a whole block
    tokens = draw(Temperature(), logits)
    assert tokens.dtype == np.int32
    assert_distributed(tokens, softmax(logits))


def test_the_check_above_sees_a_small_bias():
    probabilities = np.array([0.5, 0.3, 0.2])
    biased = np.random.default_rng(0).choice(3, p=[0.51, 0.3, 0.19], size=DRAWS)
    with pytest.raises(AssertionError):
        assert_distributed(biased, probabilities)


def test_large_logits_neither_overflow_nor_vanish():
    shifted = np.array([0.0, 1.0, 0.5]) + 3e4  # exact in float32
    assert_distributed(draw(Temperature(), shifted), softmax(shifted))
    assert set(draw(Temperature(), [-1e30, 0.0, -1e30])) == {1}


def test_rows_of_a_batch_are_independent():
    logits = jnp.zeros((DRAWS, 2))
    tokens = np.asarray(categorical(jax.random.split(jax.random.key(0), DRAWS), logits))
    pairs = tokens[::2] * 2 + tokens[1::2]
    assert_distributed(pairs, np.full(4, 0.25))


def test_categorical_is_a_function_of_its_keys():
    logits = jax.random.normal(jax.random.key(9), (64, 101))
    keys = (jax.random.split(jax.random.key(seed), 64) for seed in (0, 0, 1))
    first, again, other = (categorical(each, logits) for each in keys)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_places_without_mass_are_never_chosen():
    """XLA's cumulative sum of 500 numbers wobbles by a rounding where nothing is added to it."""
    rng = np.random.default_rng(0)
    mass = (rng.exponential(size=(4000, 500)) * (rng.random((4000, 500)) < 0.5)).astype(np.float32)
    mass[:, -1] = 0.0
    total = np.asarray(jnp.cumsum(jnp.asarray(mass), axis=-1))
    # Targets at every place where the plain sum grew without mass: that place would be chosen.
    rows, places = np.nonzero((np.diff(total) > 0) & (mass[:, 1:] == 0))
    target = total[rows, places][:, None] if len(rows) else total[:, -1:]
    rows = rows if len(rows) else np.arange(len(mass))
    for aimed in (target, total[rows, -1:], 0.0 * target, 2.0 * target):
        index, rest = _invert(jnp.asarray(mass[rows]), jnp.asarray(aimed))
        chosen = np.take_along_axis(mass[rows], np.asarray(index), axis=1)
        assert (chosen > 0).all()
        assert (rest >= 0).all()


def test_greedy_takes_the_first_of_the_best():
    logits = jnp.array([[0.0, 3.0, 3.0], [5.0, -1.0, 4.0]])
    tokens = Greedy().choose(jax.random.split(jax.random.key(0)), logits)
    np.testing.assert_array_equal(tokens, [1, 0])
    assert tokens.dtype == jnp.int32


def test_top_k_renormalises_the_k_best():
    """Weights 4 2 1 3: the best two are 4 and 3, with probabilities 4/7 and 3/7."""
    logits = np.log([4.0, 2.0, 1.0, 3.0])
    tokens = draw(TopK(2), logits)
    assert tokens.dtype == np.int32
    assert_distributed(tokens, np.array([4, 0, 0, 3]) / 7)
    assert_distributed(draw(TopK(9), logits), np.array([4, 2, 1, 3]) / 10)  # k beyond V: all
    assert set(draw(TopK(1), logits)) == {0}


@pytest.mark.parametrize(
    ("p", "nucleus"),
    [
        (0.39, [4, 0, 0, 0]),  # weights 1 2 3 4 in tenths; the best alone holds 0.4
        (0.41, [4, 3, 0, 0]),  # one is not enough: the next joins
        (0.69, [4, 3, 0, 0]),
        (0.75, [4, 3, 2, 0]),
        (0.95, [4, 3, 2, 1]),
        (1.0, [4, 3, 2, 1]),
    ],
)
def test_top_p_draws_from_the_nucleus(p, nucleus):
    order = [2, 0, 3, 1]  # where the 4, 3, 2 and 1 tenths are
    logits, kept = np.zeros(4), np.zeros(4)
    logits[order], kept[order] = np.log([4, 3, 2, 1]), nucleus
    tokens = draw(TopP(p), logits)
    assert tokens.dtype == np.int32
    assert_distributed(tokens, kept / kept.sum())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Greedy(0.0), "temperature=0.0 must be positive"),
        (lambda: Temperature(0.0), "temperature=0.0 must be positive; see Greedy"),
        (lambda: Temperature(-1.0), "must be positive"),
        (lambda: TopK(0), "k >= 1"),
        (lambda: TopK(3, temperature=0.0), "positive temperature"),
        (lambda: TopP(0.0), "0 < p <= 1"),
        (lambda: TopP(1.1), "0 < p <= 1"),
        (lambda: TopP(0.9, temperature=-0.5), "positive temperature"),
    ],
)
def test_arguments_out_of_range_are_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_methods_are_values():
    """Equal arguments make equal, hashable methods: one compilation serves both."""
    assert hash(TopP(0.9)) == hash(TopP(0.9))
    assert TopP(0.9) == TopP(0.9) != TopP(0.8)
