"""Preference losses by hand, against float64 oracles, and where their gradients go."""

import functools

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.losses import (
    identity_preference_loss,
    odds_ratio_loss,
    preference_loss,
    simple_preference_loss,
)

sums = hnp.arrays(np.float32, (4,), elements=st.floats(-80, -1, width=32))
means = hnp.arrays(np.float32, (4,), elements=st.floats(-5, -0.125, width=32))


def log_sigmoid(x):
    return -np.logaddexp(0.0, -np.asarray(x, np.float64))


def test_dpo_by_hand():
    """No preference yet: log 2. A margin of 10 at β = 0.1: −log σ(1)."""
    zero = jnp.zeros(1)
    np.testing.assert_allclose(preference_loss(zero, zero, zero, zero), [np.log(2)], rtol=1e-6)
    got = preference_loss(jnp.array([-20.0]), jnp.array([-40.0]), zero - 25.0, zero - 35.0)
    np.testing.assert_allclose(got, [np.log1p(np.exp(-1))], rtol=1e-6)


def test_ipo_simpo_and_orpo_by_hand():
    zero = jnp.zeros(1)
    got = identity_preference_loss(zero + 3.0, zero, zero, zero, beta=0.25)
    np.testing.assert_allclose(got, [1.0])  # target 1/(2·¼) = 2
    got = simple_preference_loss(zero - 0.5, zero - 1.0, beta=2.0, target_margin=1.0)
    np.testing.assert_allclose(got, [np.log(2)], rtol=1e-6)  # z = 2·½ − 1 = 0
    half, quarter = jnp.log(jnp.array([0.5])), jnp.log(jnp.array([0.25]))  # odds 1 and 1/3
    np.testing.assert_allclose(odds_ratio_loss(half, quarter), [np.log(4 / 3)], rtol=1e-5)


@settings(deadline=None, max_examples=50)
@given(sums, sums, sums, sums, st.sampled_from([0.1, 0.5]), st.sampled_from([0.0, 0.1]))
def test_float64_oracles_with_a_reference(chosen, rejected, ref_c, ref_r, beta, smoothing):
    c, r, rc, rr = (np.asarray(x, np.float64) for x in (chosen, rejected, ref_c, ref_r))
    margin = (c - rc) - (r - rr)
    want = -(1 - smoothing) * log_sigmoid(beta * margin) - smoothing * log_sigmoid(-beta * margin)
    got = preference_loss(chosen, rejected, ref_c, ref_r, beta=beta, label_smoothing=smoothing)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    got = identity_preference_loss(chosen, rejected, ref_c, ref_r, beta=beta)
    np.testing.assert_allclose(got, (margin - 1 / (2 * beta)) ** 2, rtol=1e-4, atol=1e-3)


@settings(deadline=None, max_examples=50)
@given(means, means, st.sampled_from([0.0, 0.1]))
def test_float64_oracles_without_a_reference(chosen, rejected, smoothing):
    c, r = np.asarray(chosen, np.float64), np.asarray(rejected, np.float64)
    z = 2.0 * (c - r) - 1.0
    want = -(1 - smoothing) * log_sigmoid(z) - smoothing * log_sigmoid(-z)
    got = simple_preference_loss(chosen, rejected, label_smoothing=smoothing)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
    odds = (c - np.log(-np.expm1(c))) - (r - np.log(-np.expm1(r)))
    np.testing.assert_allclose(
        odds_ratio_loss(chosen, rejected), -log_sigmoid(odds), rtol=1e-5, atol=1e-6
    )


WITH_REFERENCE = [
    preference_loss,
    functools.partial(preference_loss, label_smoothing=0.2),
    identity_preference_loss,
]
WITHOUT = [simple_preference_loss, odds_ratio_loss]


@pytest.mark.parametrize("function", WITH_REFERENCE)
def test_the_reference_receives_no_gradient(function):
    x = jnp.array([-3.0, -7.0])
    gradients = jax.grad(lambda *a: jnp.sum(function(*a)), (0, 1, 2, 3))(x, x - 1, x + 1, x)
    assert np.all(gradients[0] < 0) and np.all(gradients[1] > 0)
    assert not np.any(gradients[2]) and not np.any(gradients[3])


@pytest.mark.parametrize("function", WITH_REFERENCE + WITHOUT)
def test_finite_at_the_ends_jit_vmap_and_low_precision(function):
    count = 4 if function in WITH_REFERENCE else 2
    for chosen, rejected in ((0.0, -1e4), (-1e4, 0.0), (0.0, 0.0)):
        x = [jnp.full(2, v) for v in (chosen, rejected, rejected, chosen)[:count]]
        value, gradients = jax.value_and_grad(lambda *a: jnp.sum(function(*a)), (0, 1))(*x)
        assert np.isfinite(value) and np.all(np.isfinite(gradients))
    x = [-jax.random.uniform(jax.random.key(i), (3, 2)).astype(jnp.bfloat16) for i in range(count)]
    got = jax.jit(jax.vmap(function))(*x)
    assert got.dtype == jnp.float32
    want = [function(*(a[i].astype(jnp.float32) for a in x)) for i in range(3)]
    np.testing.assert_allclose(got, np.stack(want), rtol=1e-5)


def test_bad_arguments_are_named():
    x = jnp.zeros(2)
    with pytest.raises(ValueError, match="label_smoothing must be from 0"):
        preference_loss(x, x, x, x, label_smoothing=0.5)
    with pytest.raises(ValueError, match="label_smoothing must be from 0"):
        simple_preference_loss(x, x, label_smoothing=-0.1)
    with pytest.raises(ValueError, match="beta must be above 0"):
        identity_preference_loss(x, x, x, x, beta=0.0)
    with pytest.raises(AssertionError):
        preference_loss(x, x, x, x[:1])
