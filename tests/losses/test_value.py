"""The critic's loss and what is logged of it, by hand and against a float64 oracle."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.losses import explained_variance, value_clip_fraction, value_loss

numbers = hnp.arrays(np.float32, (2, 3), elements=st.floats(-4, 4, width=32))


def test_by_hand():
    """Return 1, old value 0, clip 0.2: the value 0.5 counts as 0.2 and has no gradient."""
    values, old, returns = jnp.array([[0.5, -0.5]]), jnp.zeros((1, 2)), jnp.ones((1, 2))
    np.testing.assert_allclose(value_loss(values, old, returns), [[0.125, 1.125]])
    clipped = lambda v: value_loss(v, old, returns, clip=0.2)  # noqa: E731
    np.testing.assert_allclose(clipped(values), [[0.32, 1.125]], rtol=1e-6)
    gradient = jax.grad(lambda v: jnp.sum(clipped(v)))(values)
    np.testing.assert_allclose(gradient, [[0.0, -1.5]])


@settings(deadline=None, max_examples=50)
@given(numbers, numbers, numbers, st.sampled_from([None, 0.1, 1.0]))
def test_float64_oracle(values, old, returns, clip):
    v, o, r = (np.asarray(x, np.float64) for x in (values, old, returns))
    want = (v - r) ** 2
    if clip is not None:
        want = np.maximum(want, (o + np.clip(v - o, -clip, clip) - r) ** 2)
    got = value_loss(values, old, returns, clip=clip)
    np.testing.assert_allclose(got, want / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("clip", [None, 0.2])
def test_only_the_values_receive_a_gradient(clip):
    def loss(*x):
        return jnp.sum(value_loss(*x, clip=clip))

    x = jnp.array([[0.1, 2.0]], jnp.bfloat16)
    to_values, to_old, to_returns = jax.grad(loss, (0, 1, 2))(x, x * 2, x * 3)
    assert np.any(to_values) and not np.any(to_old) and not np.any(to_returns)
    assert value_loss(x, x, x).dtype == jnp.float32


def test_the_clipped_share_by_hand():
    """As in `test_by_hand`: the first value is clipped, the second not, the third masked."""
    values, old = jnp.array([[0.5, -0.5, jnp.nan]]), jnp.zeros((1, 3))
    clipped = value_clip_fraction(values, old, jnp.ones((1, 3)), jnp.array([[1, 1, 0]]), clip=0.2)
    assert float(clipped) == 0.5
    of_batch = value_clip_fraction(
        values, old, jnp.ones((1, 3)), jnp.array([[1, 1, 0]]), clip=0.2, normalizer=4.0
    )
    assert float(of_batch) == 0.25


def test_explained_variance_by_hand():
    """Returns 0 and 4: variance 4. Values 1 and 3 leave −1 and 1: variance 1, so ¾ is explained."""
    returns, mask = jnp.array([[0.0, 4.0, jnp.inf]]), jnp.array([[1, 1, 0]])
    of = lambda *values: float(explained_variance(jnp.array([values]), returns, mask))  # noqa: E731
    assert of(1.0, 3.0, jnp.nan) == 0.75
    assert of(10.0, 14.0, 0.0) == 1.0, "a constant error is not variance"
    assert of(7.0, 7.0, 0.0) == 0.0
    assert of(4.0, 0.0, 0.0) == -3.0
    assert np.isnan(float(explained_variance(returns, jnp.ones((1, 3)), mask)))


def test_bad_arguments_are_named():
    x = jnp.zeros((1, 2))
    with pytest.raises(ValueError, match="clip must be above 0"):
        value_loss(x, x, x, clip=0.0)
    with pytest.raises(AssertionError):
        value_loss(x, x, x[0])
