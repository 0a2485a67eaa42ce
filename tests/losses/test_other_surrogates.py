"""CISPO and SAPO: numbers by hand, float64 oracles, and how their gradients differ from PPO's."""

import functools

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.losses import clipped_importance_loss, clipped_surrogate, soft_gated_surrogate

B, T = 3, 4
logps = hnp.arrays(np.float32, (B, T), elements=st.floats(-3, 0, width=32))
advantages_b = hnp.arrays(np.float32, (B,), elements=st.floats(-2, 2, width=32))
BOTH = [clipped_importance_loss, soft_gated_surrogate]


def test_cispo_by_hand():
    """Ratios 8 and 1/2 with the bound 5: weights 5 and ½, each with its full gradient."""
    old = jnp.full((1, 2), -4.0)
    logp = old + jnp.log(jnp.array([[8.0, 0.5]]))
    call = lambda x: clipped_importance_loss(x, old, jnp.array([2.0]))  # noqa: E731
    np.testing.assert_allclose(call(logp), -2 * np.array([[5.0, 0.5]]) * logp, rtol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(call(x)))(logp)
    np.testing.assert_allclose(gradient, [[-10.0, -1.0]], rtol=1e-6)
    bounded = clipped_importance_loss(logp, old, jnp.array([2.0]), min_ratio=0.8, max_ratio=1.2)
    np.testing.assert_allclose(bounded, -2 * np.array([[1.2, 0.8]]) * logp, rtol=1e-6)


def test_sapo_by_hand():
    """On policy σ(0) = ½: −2/τ·A, with PPO's gradient −A; far off it the gradient fades."""
    zero = jnp.zeros((1, 1))
    for advantage, tau in ((1.0, 1.0), (-1.0, 1.05)):
        call = lambda x, a=advantage: soft_gated_surrogate(x, zero, jnp.array([a]))[0, 0]  # noqa: E731
        np.testing.assert_allclose(call(zero), -2 * advantage / tau, rtol=1e-6)
        np.testing.assert_allclose(jax.grad(call)(zero), [[-advantage]], rtol=1e-6)
        assert abs(float(jax.grad(call)(zero + 3.0)[0, 0])) < 1e-5


@settings(deadline=None, max_examples=40)
@given(logps, logps, advantages_b)
def test_float64_oracles(logp, old, advantages):
    lp, rho = np.asarray(logp, np.float64), np.exp(np.asarray(logp, np.float64) - old)
    a = np.asarray(advantages, np.float64)[:, None]
    got = clipped_importance_loss(logp, old, advantages, min_ratio=0.8, max_ratio=3.0)
    np.testing.assert_allclose(got, -np.clip(rho, 0.8, 3.0) * a * lp, rtol=1e-5, atol=1e-5)
    tau = np.where(a > 0, 1.0, 1.05)
    want = -4 / tau / (1 + np.exp(-tau * (rho - 1))) * a
    got = soft_gated_surrogate(logp, old, advantages)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", BOTH)
def test_on_policy_the_gradient_is_that_of_reinforce(function):
    logp = -jax.random.uniform(jax.random.key(0), (B, T))
    advantages = jax.random.normal(jax.random.key(1), (B, T))
    got = jax.grad(lambda x: jnp.sum(function(x, logp, advantages)))(logp)
    want = jax.grad(lambda x: jnp.sum(clipped_surrogate(x, logp, advantages)))(logp)
    np.testing.assert_allclose(got, want, rtol=1e-5)
    np.testing.assert_allclose(got, -advantages, rtol=1e-5)


@pytest.mark.parametrize("function", BOTH)
def test_constants_masked_rubbish_and_extreme_ratios(function):
    logp = jnp.array([[-1.0, np.nan], [0.0, -500.0]])
    old = jnp.array([[-1.1, np.inf], [-500.0, 0.0]])
    mask = jnp.array([[1, 0], [1, 1]])
    advantages = jnp.array([1.0, -1.0])
    total = lambda *a: jnp.sum(function(*a, mask=mask))  # noqa: E731
    value, (to_logp, to_old, to_advantages) = jax.value_and_grad(total, (0, 1, 2))(
        logp, old, advantages
    )
    assert np.isfinite(value) and np.all(np.isfinite(to_logp)) and to_logp[0, 1] == 0
    assert not np.any(to_old) and not np.any(to_advantages)
    nothing = function(logp, old, advantages, mask=jnp.zeros((2, 2)))
    np.testing.assert_array_equal(nothing, np.zeros((2, 2)))


@pytest.mark.parametrize("function", BOTH)
def test_low_precision_jit_and_vmap(function):
    x = -jax.random.uniform(jax.random.key(2), (3, B, T)).astype(jnp.bfloat16)
    advantages = jnp.ones((3, B), jnp.bfloat16)
    got = jax.jit(jax.vmap(function))(x, x * 1.5, advantages)
    assert got.dtype == jnp.float32
    want = [function(a, a * 1.5, b) for a, b in zip(x, advantages, strict=True)]
    np.testing.assert_allclose(got, np.stack(want), rtol=1e-5)


def test_bad_arguments_are_named():
    call = functools.partial(clipped_importance_loss, *[jnp.zeros((1, 1))] * 3)
    with pytest.raises(ValueError, match="min_ratio must be below max_ratio=5.0"):
        call(min_ratio=5.0)
    call = functools.partial(soft_gated_surrogate, *[jnp.zeros((1, 1))] * 3)
    with pytest.raises(ValueError, match="must be above 0, got 0.0 and 1.05"):
        call(temperature_positive=0.0)
