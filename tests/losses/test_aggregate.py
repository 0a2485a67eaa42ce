"""Aggregation: the meaning of each mode, and that the micro-batch split does not matter."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.losses import aggregate, denominator

COUNTED = ["token_mean", "sequence_mean", "sequence_sum"]
MODES = [*COUNTED, "constant"]

VALUES = jnp.arange(1.0, 10.0).reshape(3, 3)
MASK = jnp.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]])  # the third completion has no trained token

grids = hnp.arrays(np.float32, (4, 3), elements=st.floats(-10, 10, width=32))
masks = hnp.arrays(np.bool_, (4, 3))


def oracle(values, mask, mode):
    """The formulas, row by row, in float64; rows without a token are left out."""
    rows = [np.float64(v)[m] for v, m in zip(values, mask, strict=True) if m.any()]
    if not rows:
        return 0.0
    return {
        "token_mean": np.concatenate(rows).mean(),
        "sequence_mean": np.mean([r.mean() for r in rows]),
        "sequence_sum": np.mean([r.sum() for r in rows]),
    }[mode]


@pytest.mark.parametrize(
    ("mode", "normalizer", "want"),
    [
        ("token_mean", None, (1 + 2 + 4) / 3),
        ("sequence_mean", None, (1.5 + 4) / 2),
        ("sequence_sum", None, (3 + 4) / 2),
        ("constant", 10.0, (1 + 2 + 4) / 10),
        ("sequence_mean", 3, (1.5 + 4) / 3),  # TRL "grpo", which counts the empty row
        ("sequence_sum", 3, (3 + 4) / 3),  # TRL "luspo"
        ("constant", 3 * 3, (1 + 2 + 4) / 9),  # TRL "dr_grpo": B · max_completion_length
        ("constant", 2 * 3, ((1 + 2) / 3 + 4 / 3) / 2),  # tunix "sequence-mean-token-scale"
    ],
)
def test_modes_by_hand(mode, normalizer, want):
    got = aggregate(VALUES, MASK, mode=mode, normalizer=normalizer)
    assert got.shape == ()
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_token_mean_is_the_default():
    np.testing.assert_array_equal(
        aggregate(VALUES, MASK), aggregate(VALUES, MASK, mode="token_mean")
    )


def test_denominators_by_hand():
    assert [float(denominator(MASK, mode=mode)) for mode in COUNTED] == [3.0, 2.0, 2.0]


@settings(deadline=None, max_examples=30)
@given(grids, masks)
def test_float64_oracle(values, mask):
    for mode in COUNTED:
        got = aggregate(values, mask, mode=mode)
        np.testing.assert_allclose(got, oracle(values, mask, mode), rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(grids, masks, st.integers(1, 3))
def test_micro_batches_with_the_global_denominator_add_up(values, mask, split):
    """Value and gradient, however unequal the parts and whether or not a part is empty."""
    for mode in MODES:
        whole = 7.0 if mode == "constant" else denominator(mask, mode=mode)
        parts = (slice(0, split), slice(split, 4))

        def added(v, mode=mode, whole=whole, parts=parts):
            return sum(aggregate(v[p], mask[p], mode=mode, normalizer=whole) for p in parts)

        def at_once(v, mode=mode):
            return aggregate(v, mask, mode=mode, normalizer=7.0 if mode == "constant" else None)

        got, want = jax.value_and_grad(added)(values), jax.value_and_grad(at_once)(values)
        np.testing.assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(got[1], want[1], rtol=1e-6)


@settings(deadline=None)
@given(masks, st.integers(1, 3))
def test_denominators_of_micro_batches_add_up(mask, split):
    for mode in COUNTED:
        parts = denominator(mask[:split], mode=mode) + denominator(mask[split:], mode=mode)
        np.testing.assert_array_equal(parts, denominator(mask, mode=mode))


@settings(deadline=None, max_examples=30)
@given(grids, masks, st.permutations(range(4)))
def test_the_order_of_rows_does_not_matter(values, mask, order):
    order = np.array(order)
    for mode in COUNTED:
        got = aggregate(values[order], mask[order], mode=mode)
        np.testing.assert_allclose(got, aggregate(values, mask, mode=mode), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", COUNTED)
def test_padding_rows_and_columns_change_nothing(mode):
    padded, mask = (jnp.pad(x, ((0, 2), (0, 4))) for x in (VALUES, MASK))
    np.testing.assert_allclose(
        aggregate(padded, mask, mode=mode), aggregate(VALUES, MASK, mode=mode), rtol=1e-6
    )


@pytest.mark.parametrize("mode", MODES)
def test_all_masked_is_zero_with_a_zero_gradient(mode):
    normalizer = 0.0 if mode == "constant" else None
    value, gradient = jax.value_and_grad(
        lambda v: aggregate(v, jnp.zeros((3, 3)), mode=mode, normalizer=normalizer)
    )(VALUES)
    assert value == 0.0
    np.testing.assert_array_equal(gradient, np.zeros((3, 3)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rubbish", [np.nan, np.inf])
def test_masked_values_may_be_anything(mode, rubbish):
    normalizer = 5.0 if mode == "constant" else None
    dirty = jnp.where(MASK == 1, VALUES, rubbish)

    def mean(values):
        return aggregate(values, MASK, mode=mode, normalizer=normalizer)

    np.testing.assert_array_equal(mean(dirty), mean(VALUES))
    gradient = jax.grad(mean)(dirty)
    np.testing.assert_array_equal(gradient, jax.grad(mean)(VALUES))
    np.testing.assert_array_equal(gradient == 0, MASK == 0)


def test_a_trained_nan_is_not_hidden():
    assert np.isnan(aggregate(VALUES.at[0, 0].set(jnp.nan), MASK))


def test_gradient_gives_each_token_its_share():
    gradients = [jax.grad(lambda v, m=m: aggregate(v, MASK, mode=m))(VALUES) for m in COUNTED]
    third, quarter, half = 1 / 3, 1 / 4, 1 / 2
    np.testing.assert_allclose(gradients[0][:2], [[third, third, 0], [third, 0, 0]], rtol=1e-6)
    np.testing.assert_allclose(gradients[1][:2], [[quarter, quarter, 0], [half, 0, 0]])
    np.testing.assert_allclose(gradients[2][:2], [[half, half, 0], [half, 0, 0]])


def test_low_precision_is_summed_in_float32():
    values = jnp.ones((8, 515), jnp.bfloat16)  # bfloat16 has no 515, only 512 and 516
    got = aggregate(values, jnp.ones((8, 515), jnp.bfloat16), mode="sequence_sum")
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, 515.0)


@pytest.mark.parametrize("mode", COUNTED)
def test_jit_and_vmap(mode):
    keys = jax.random.split(jax.random.key(0))
    values = jax.random.normal(keys[0], (5, 4, 3))
    mask = jax.random.bernoulli(keys[1], 0.6, (5, 4, 3))
    got = jax.jit(jax.vmap(lambda v, m: aggregate(v, m, mode=mode)))(values, mask)
    want = [oracle(v, m, mode) for v, m in zip(np.array(values), np.array(mask), strict=True)]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_a_traced_normalizer_works_under_jit():
    got = jax.jit(lambda n: aggregate(VALUES, MASK, mode="constant", normalizer=n))(14.0)
    np.testing.assert_allclose(got, 0.5, rtol=1e-6)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="mode must be one of .* got 'mean'"):
        aggregate(VALUES, MASK, mode="mean", normalizer=1.0)
    with pytest.raises(ValueError, match="pass normalizer"):
        aggregate(VALUES, MASK, mode="constant")
    with pytest.raises(AssertionError):
        aggregate(VALUES, MASK[:, :2])
    with pytest.raises(AssertionError):
        aggregate(VALUES, MASK, normalizer=jnp.ones(3))
