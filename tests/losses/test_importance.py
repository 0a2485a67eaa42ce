"""Weights against a sampler's mismatch: by hand, an oracle, and no gradient."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.losses import importance_weights

logps = hnp.arrays(np.float32, (2, 3), elements=st.floats(-2, 0, width=32))
masks = hnp.arrays(np.bool_, (2, 3))


def test_by_hand():
    """Ratios 4 and ½ at the tokens, 2 over the row; the third token is masked."""
    sampler = jnp.full((1, 3), -3.0)
    logp = sampler + jnp.log(jnp.array([[4.0, 0.5, 9.0]]))
    mask = jnp.array([[1, 1, 0]])
    call = lambda **options: importance_weights(logp, sampler, mask, **options)  # noqa: E731
    for options, want in (
        ({}, [2.0, 0.5, 1.0]),
        ({"max_weight": 3.0, "min_weight": 0.75}, [3.0, 0.75, 1.0]),
        ({"outside": "mask", "min_weight": 0.1}, [0.0, 0.5, 1.0]),
        ({"level": "sequence", "max_weight": 3.0}, [2.0, 2.0, 1.0]),
        ({"level": "sequence", "max_weight": 1.5, "outside": "mask"}, [0.0, 0.0, 1.0]),
    ):
        np.testing.assert_allclose(call(**options), [want], rtol=1e-6)


@settings(deadline=None, max_examples=50)
@given(
    logps,
    logps,
    masks,
    st.sampled_from(["token", "sequence"]),
    st.sampled_from(["truncate", "mask"]),
    st.sampled_from([None, 0.5]),
)
def test_float64_oracle(logp, sampler, mask, level, outside, low):
    delta = np.where(mask, np.asarray(logp, np.float64) - sampler, 0)
    if level == "sequence":
        delta = np.repeat(delta.sum(1, keepdims=True), 3, axis=1)
    want = np.exp(delta)
    if np.any(np.abs(want - 2) < 1e-5) or np.any(np.abs(want - 0.5) < 1e-5):
        return  # on the bound itself rounding decides
    if outside == "truncate":
        want = np.clip(want, low, 2.0)
    else:
        want = np.where((want > 2) | (want < (low or 0)), 0, want)
    got = importance_weights(logp, sampler, mask, level=level, outside=outside, min_weight=low)
    np.testing.assert_allclose(got, np.where(mask, want, 1), rtol=1e-5)


def test_equal_probabilities_constants_rubbish_and_low_precision():
    x = -jax.random.uniform(jax.random.key(0), (2, 3)).astype(jnp.bfloat16)
    got = jax.jit(importance_weights)(x, x, jnp.ones((2, 3)))
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, np.ones((2, 3)))
    rubbish, mask = jnp.array([[np.nan, 0.0, -1e9]]), jnp.array([[0, 1, 1]])
    for level in ("token", "sequence"):
        weights = importance_weights(rubbish, jnp.zeros((1, 3)), mask, level=level)
        assert np.all(np.isfinite(weights))
    total = lambda a, b: jnp.sum(importance_weights(a, b, jnp.ones((2, 3))))  # noqa: E731
    for gradient in jax.grad(total, (0, 1))(jnp.zeros((2, 3)), jnp.ones((2, 3))):
        np.testing.assert_array_equal(gradient, np.zeros((2, 3)))


def test_bad_arguments_are_named():
    x = jnp.zeros((1, 2))
    for options, message in (
        ({"level": "row"}, "'token' or 'sequence', got 'row'"),
        ({"outside": "drop"}, "'truncate' or 'mask', got 'drop'"),
        ({"max_weight": 0.5, "min_weight": 0.5}, "max_weight must be above 0.5"),
        ({"max_weight": 0.0}, "max_weight must be above 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            importance_weights(x, x, x, **options)
