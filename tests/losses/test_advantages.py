"""Advantages against numbers by hand, a float64 oracle and the laws they obey."""

import functools

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.losses import (
    batch_advantages,
    group_advantages,
    informative_groups,
    leave_one_out_advantages,
    multi_reward_advantages,
    shrinkage_advantages,
)

SCALED = [group_advantages, batch_advantages, shrinkage_advantages]
UNSCALED = [
    functools.partial(group_advantages, scale=False),
    functools.partial(batch_advantages, scale=False),
    functools.partial(shrinkage_advantages, scale=False),
    leave_one_out_advantages,
]

# Eighths between -8 and 8: sums and differences of these are exact in float32.
eighths = hnp.arrays(np.float32, (3, 4), elements=st.integers(-64, 64).map(lambda i: i / 8))


def oracle(rewards, axis, ddof, eps):
    rewards = np.asarray(rewards, np.float64)
    centred = rewards - rewards.mean(axis, keepdims=True)
    return centred / (rewards.std(axis, ddof=ddof, keepdims=True) + eps)


def test_group_advantages_by_hand():
    rewards = jnp.array([[1.0, 2.0, 3.0], [0.0, 0.0, 6.0]])
    got = group_advantages(rewards, eps=0.0)
    root3 = 3**0.5  # second row: mean 2, sum of squares 24, std = sqrt(24 / 2) = 2·sqrt(3)
    want = [[-1.0, 0.0, 1.0], [-1 / root3, -1 / root3, 2 / root3]]
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-7)


def test_ddof_and_eps_by_hand():
    rewards = jnp.array([[0.0, 2.0]])  # mean 1; std 1 with ddof=0, sqrt(2) with ddof=1
    np.testing.assert_allclose(group_advantages(rewards, ddof=0, eps=1.0), [[-0.5, 0.5]])
    want = 1 / (2**0.5 + 1e-4)
    np.testing.assert_allclose(group_advantages(rewards), [[-want, want]], rtol=1e-6)


def test_leave_one_out_by_hand():
    got = leave_one_out_advantages(jnp.array([[1.0, 2.0, 6.0]]))
    np.testing.assert_allclose(got, [[1 - 4.0, 2 - 3.5, 6 - 1.5]], rtol=1e-6)


def test_unscaled_group_advantages_are_dr_grpo():
    """The example that tunix publishes for its Dr.GRPO advantages, in groups of three."""
    rewards = [[0.57450044, 0.09968603, 0.7419659], [0.8941783, 0.59656656, 0.45325184]]
    want = [[0.10245, -0.372365, 0.269915], [0.246179, -0.051432, -0.194747]]
    got = group_advantages(jnp.array(rewards), scale=False)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_only_the_batch_baseline_sees_groups_that_agree():
    """All samples of a benign prompt refuse (0), all of a harmful one too (1)."""
    rewards = jnp.array([[0.0, 0.0], [1.0, 1.0]])
    assert not np.any(group_advantages(rewards))
    assert not np.any(leave_one_out_advantages(rewards))
    # mean 1/2, std = sqrt(4 · 1/4 / 3) = 1/sqrt(3)
    want = np.array([[-1.0, -1.0], [1.0, 1.0]]) * 3**0.5 / 2
    np.testing.assert_allclose(batch_advantages(rewards, eps=0.0), want, rtol=1e-6)


def test_shrinkage_advantages_by_hand():
    rewards = jnp.array([[0.0, 2.0], [4.0, 4.0]])
    # Means 1, 4 and 2.5; baselines 0.75·1 + 0.25·2.5 = 1.375 and 0.75·4 + 0.25·2.5 = 3.625.
    got = shrinkage_advantages(rewards, weight=0.25, scale=False)
    np.testing.assert_allclose(got, [[-1.375, 0.625], [0.375, 0.375]], rtol=1e-6)
    # The batch's deviation: sqrt((2.5² + 0.5² + 1.5² + 1.5²) / 3) = sqrt(11 / 3).
    scaled = shrinkage_advantages(rewards, weight=0.25, eps=0.0)
    np.testing.assert_allclose(scaled, got / np.sqrt(11 / 3), rtol=1e-6)


@settings(deadline=None)
@given(eighths, st.sampled_from([0, 1]), st.sampled_from([1e-4, 1e-6]))
def test_shrinkage_goes_from_the_groups_mean_to_the_batchs(rewards, ddof, eps):
    arguments = {"ddof": ddof, "eps": eps}
    whole = shrinkage_advantages(rewards, weight=1.0, **arguments)
    np.testing.assert_array_equal(whole, batch_advantages(rewards, **arguments))
    own = shrinkage_advantages(rewards, weight=0.0, **arguments)
    wide = np.asarray(rewards, np.float64)
    want = (wide - wide.mean(1, keepdims=True)) / (wide.std(ddof=ddof) + eps)
    np.testing.assert_allclose(own, want, rtol=1e-5, atol=1e-6)
    half = shrinkage_advantages(rewards, **arguments)
    np.testing.assert_allclose(half, (whole + own) / 2, rtol=1e-5, atol=1e-6)


@settings(deadline=None)
@given(eighths, st.sampled_from([0, 1]), st.sampled_from([1e-4, 1e-6, 1e-2]))
def test_float64_oracle(rewards, ddof, eps):
    for function, axis in ((group_advantages, 1), (batch_advantages, None)):
        got = function(jnp.array(rewards), ddof=ddof, eps=eps)
        np.testing.assert_allclose(got, oracle(rewards, axis, ddof, eps), rtol=1e-5, atol=1e-6)


@settings(deadline=None)
@given(eighths, st.permutations(range(4)))
def test_permuting_samples_permutes_advantages(rewards, order):
    order = np.array(order)
    for function in SCALED + UNSCALED:
        got, want = function(rewards[:, order]), np.asarray(function(rewards))[:, order]
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


@settings(deadline=None)
@given(eighths, hnp.arrays(np.float32, (3, 1), elements=st.integers(-1000, 1000)))
def test_a_constant_added_to_a_group_changes_nothing(rewards, constants):
    for function in (group_advantages, UNSCALED[0], leave_one_out_advantages):
        np.testing.assert_array_equal(function(rewards + constants), function(rewards))


@settings(deadline=None)
@given(eighths, st.integers(-1000, 1000))
def test_a_constant_added_to_the_batch_changes_nothing(rewards, constant):
    np.testing.assert_array_equal(batch_advantages(rewards + constant), batch_advantages(rewards))


@settings(deadline=None)
@given(eighths)
def test_leave_one_out_is_the_stretched_group_advantage(rewards):
    want = np.asarray(group_advantages(rewards, scale=False)) * 4 / 3
    np.testing.assert_allclose(leave_one_out_advantages(rewards), want, rtol=1e-6)


@settings(deadline=None)
@given(
    st.floats(-1e3, 1e3, width=32),
    st.sampled_from([(1, 1), (2, 3), (3, 7), (1, 10)]),
    st.sampled_from([1e-4, 1e-6, 0.0]),
)
def test_equal_rewards_give_exact_zeros(reward, shape, eps):
    """Also where the float32 mean of equal numbers is not that number (0.1, seven times)."""
    rewards = jnp.full(shape, reward, jnp.float32)
    for function in SCALED:
        np.testing.assert_array_equal(function(rewards, eps=eps), np.zeros(shape))
    for function in UNSCALED:
        np.testing.assert_array_equal(function(rewards), np.zeros(shape))


def test_a_lone_sample_per_prompt():
    rewards = jnp.array([[1.0], [-2.0], [7.0]])
    with jax.debug_nans(True):  # no 0/0 on the way either
        np.testing.assert_array_equal(group_advantages(rewards), np.zeros((3, 1)))
        np.testing.assert_array_equal(leave_one_out_advantages(rewards), np.zeros((3, 1)))
    want = oracle(rewards, None, 1, 1e-4)
    np.testing.assert_allclose(batch_advantages(rewards), want, rtol=1e-5)


@pytest.mark.parametrize("function", SCALED + UNSCALED)
def test_low_precision_rewards_are_computed_in_float32(function):
    rewards = jax.random.normal(jax.random.key(0), (4, 8)).astype(jnp.bfloat16)
    got = function(rewards)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, function(rewards.astype(jnp.float32)))
    assert function(jnp.array([[0, 1, 1]])).dtype == jnp.float32  # integers too


@pytest.mark.parametrize("function", SCALED + UNSCALED)
def test_no_gradient_through_rewards(function):
    for rewards in (jnp.array([[1.0, 2.0, 4.0]]), jnp.ones((1, 3))):  # a deviation of 0 as well
        gradient = jax.grad(lambda r: jnp.sum(function(r) ** 3))(rewards)
        np.testing.assert_array_equal(gradient, np.zeros((1, 3)))


@pytest.mark.parametrize("function", SCALED + UNSCALED)
def test_jit_and_vmap(function):
    rewards = jax.random.normal(jax.random.key(1), (5, 3, 4))
    want = np.stack([function(r) for r in rewards])
    np.testing.assert_allclose(jax.jit(jax.vmap(function))(rewards), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", SCALED + UNSCALED)
def test_wrong_rank_is_refused(function):
    with pytest.raises(AssertionError, match="rank"):
        function(jnp.ones(4))


def test_a_shrinkage_outside_of_0_to_1_is_refused():
    with pytest.raises(ValueError, match="weight must be from 0 to 1, got 3"):
        shrinkage_advantages(jnp.ones((2, 2)), weight=3.0)


# Several rewards, and groups with nothing to say.


def test_multi_reward_advantages_tell_apart_what_sums_confuse():
    """Format and refusal: (1, 0) and (0, 1) have one sum, yet the rarer merit counts more."""
    rewards = jnp.array([[[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    assert not np.any(group_advantages(rewards.sum(-1)))
    got = np.asarray(multi_reward_advantages(rewards, jnp.array([1.0, 2.0])))
    assert got[0, 3] > 0 > got[0, 0] == got[0, 1]


@settings(deadline=None, max_examples=40)
@given(
    hnp.arrays(np.float32, (3, 4, 2), elements=st.integers(-64, 64).map(lambda i: i / 8)),
    hnp.arrays(np.float32, (2,), elements=st.sampled_from([0.5, 1.0, 2.0])),
)
def test_multi_reward_float64_oracle(rewards, weights):
    apart = np.stack([oracle(rewards[..., k], 1, 1, 1e-4) for k in range(2)], axis=-1)
    want = oracle(apart @ weights.astype(np.float64), None, 1, 1e-4)
    got = multi_reward_advantages(rewards, weights)
    np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-3)


def test_multi_reward_shapes_are_checked():
    with pytest.raises(AssertionError):
        multi_reward_advantages(jnp.ones((2, 3, 2)), jnp.ones(3))


@settings(deadline=None, max_examples=40)
@given(eighths)
def test_informative_groups_are_those_with_an_advantage(rewards):
    rewards[0] = rewards[0, 0]
    got = np.asarray(informative_groups(rewards))
    np.testing.assert_array_equal(got, np.any(np.asarray(group_advantages(rewards)) != 0, axis=1))
    assert not got[0] and not np.any(informative_groups(rewards[:, :1]))
