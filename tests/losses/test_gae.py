"""GAE by hand, against a token-by-token oracle, and the laws at λ = 0 and λ = 1."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.losses import gae, token_rewards, whiten

B, T = 2, 5
numbers = hnp.arrays(np.float32, (B, T), elements=st.floats(-4, 4, width=32))
masks = hnp.arrays(np.bool_, (B, T))
shares = st.sampled_from([0.0, 0.5, 0.95, 1.0])


def oracle(rewards, values, mask, discount, lambda_):
    """The row without its masked positions, backwards, in float64."""
    advantages = np.zeros(rewards.shape)
    for i in range(len(rewards)):
        value, advantage = 0.0, 0.0
        for t in reversed(np.flatnonzero(mask[i])):
            delta = float(rewards[i, t]) + discount * value - float(values[i, t])
            value, advantage = float(values[i, t]), delta + discount * lambda_ * advantage
            advantages[i, t] = advantage
    return advantages


def test_by_hand_with_a_tools_answer_in_between():
    """γ = λ = ½: δ = (1 + ½·2 − 1, 4 − 2) = (1, 2), A = (1 + ¼·2, 2); the 9s are skipped."""
    rewards, values = jnp.array([[1.0, 9.0, 4.0]]), jnp.array([[1.0, 9.0, 2.0]])
    advantages, returns = gae(rewards, values, jnp.array([[1, 0, 1]]), discount=0.5, lambda_=0.5)
    np.testing.assert_allclose(advantages, [[1.5, 0.0, 2.0]])
    np.testing.assert_allclose(returns, [[2.5, 0.0, 4.0]])


@settings(deadline=None, max_examples=50)
@given(numbers, numbers, masks, shares, shares)
def test_float64_oracle(rewards, values, mask, discount, lambda_):
    advantages, returns = gae(rewards, values, mask, discount=discount, lambda_=lambda_)
    want = oracle(rewards, values, mask, discount, lambda_)
    np.testing.assert_allclose(advantages, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(returns, np.where(mask, want + values, 0), rtol=1e-5, atol=1e-5)


@settings(deadline=None, max_examples=30)
@given(numbers, numbers)
def test_the_two_ends_of_lambda(rewards, values):
    ones = np.ones((B, T))
    to_go = np.cumsum(rewards[:, ::-1], axis=1)[:, ::-1]
    _, returns = gae(rewards, values, ones, lambda_=1.0)  # Monte Carlo: values cancel
    np.testing.assert_allclose(returns, to_go, rtol=1e-4, atol=1e-4)
    errors, _ = gae(rewards, values, ones, lambda_=0.0)
    following = np.pad(values[:, 1:], ((0, 0), (0, 1)))
    np.testing.assert_allclose(errors, rewards + following - values, rtol=1e-5, atol=1e-5)


def test_masked_rubbish_constants_and_low_precision():
    rewards = jnp.array([[1.0, np.nan], [np.nan, np.inf]])
    mask = jnp.array([[1, 0], [0, 0]])
    advantages, returns = gae(rewards, rewards, mask)
    np.testing.assert_array_equal(advantages, np.zeros((2, 2)))
    np.testing.assert_array_equal(returns, [[1.0, 0.0], [0.0, 0.0]])
    low = jnp.ones((1, 3), jnp.bfloat16) / 3
    assert gae(low, low, low)[0].dtype == jnp.float32
    to_values = jax.grad(lambda v: jnp.sum(gae(jnp.ones((2, 2)), v, mask)[0] ** 2))(
        jnp.ones((2, 2))
    )
    np.testing.assert_array_equal(to_values, np.zeros((2, 2)))


def test_jit_and_vmap():
    rewards = jax.random.normal(jax.random.key(0), (3, B, T))
    mask = jax.random.bernoulli(jax.random.key(1), 0.7, (3, B, T))
    got, _ = jax.jit(jax.vmap(gae))(rewards, rewards / 2, mask)
    want = [gae(r, r / 2, m)[0] for r, m in zip(rewards, mask, strict=True)]
    np.testing.assert_allclose(got, np.stack(want), rtol=1e-6)


def test_whiten_by_hand():
    """1, 2, 3 have mean 2 and variance 1; the masked 50 has no say."""
    got = whiten(jnp.array([[1.0, 50.0], [2.0, 3.0]]), jnp.array([[1, 0], [1, 1]]), eps=0.0)
    np.testing.assert_allclose(got, [[-1.0, 0.0], [0.0, 1.0]], atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(numbers, masks)
def test_whitened_moments(advantages, mask):
    got = np.asarray(whiten(advantages, mask), np.float64)
    assert np.all(got[~mask] == 0) and np.all(np.isfinite(got))
    if mask.sum() > 1 and advantages[mask].std() > 0.1:
        np.testing.assert_allclose(got[mask].mean(), 0, atol=1e-5)
        np.testing.assert_allclose(got[mask].var(ddof=1), 1, rtol=1e-4)


def test_token_rewards_by_hand():
    """β = ½. The reward of a row stands at its last trained token, wherever padding is."""
    kl = jnp.array([[2.0, 4.0, np.nan], [2.0, 2.0, 2.0], [1.0, 1.0, 1.0]])
    mask = jnp.array([[1, 1, 0], [1, 0, 1], [0, 0, 0]])
    got = token_rewards(jnp.array([10.0, 20.0, 30.0]), kl, mask, kl_coefficient=0.5)
    np.testing.assert_allclose(got, [[-1.0, 8.0, 0.0], [-1.0, 0.0, 19.0], [0.0, 0.0, 0.0]])
