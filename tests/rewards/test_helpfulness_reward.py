"""AlphaAlign's helpfulness reward against hand-computed numbers and NumPy in float64."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from jaxalign.rewards import helpfulness_reward


def test_hand_computed():
    # mean 2, deviations -1 0 1, variance (1 + 0 + 1) / 2
    reward = helpfulness_reward(jnp.array([[1.0, 2.0, 3.0]]), jnp.zeros((1, 3), bool))
    np.testing.assert_allclose(reward, [[0, 0, 1]], atol=1e-5)
    assert reward.dtype == jnp.float32


def test_a_refusal_earns_nothing_but_counts_in_the_mean():
    scores = jnp.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]])
    refused = jnp.array([[False, False, True], [True, False, False]])
    np.testing.assert_allclose(
        helpfulness_reward(scores, refused), [[0, 0, 0], [0, 0, 1]], atol=1e-5
    )


def test_at_most_2_47_for_eight_rollouts():
    reward = helpfulness_reward(jnp.array([[0.0] * 7 + [1e3]]), jnp.zeros((1, 8), bool))
    assert reward.max() == pytest.approx(7 / 8**0.5, abs=1e-4)  # (G − 1)/√G
    assert f"{reward.max():.2f}" == "2.47"


@pytest.mark.parametrize("score", [0.0, 0.1, -1000.1, 3e7])
def test_equal_scores_earn_exactly_nothing(score):
    reward = helpfulness_reward(jnp.full((1, 7), score), jnp.zeros((1, 7), bool))
    np.testing.assert_array_equal(reward, np.zeros((1, 7)))


@settings(deadline=None)
@given(
    npst.arrays(np.float32, (2, 5), elements=st.floats(-100, 100, width=32)),
    npst.arrays(bool, (2, 5)),
)
def test_equals_numpy_in_float64(scores, refused):
    wide = scores.astype(np.float64)
    z = (wide - wide.mean(1, keepdims=True)) / (wide.std(1, keepdims=True, ddof=1) + 1e-2)
    expected = np.where(refused, 0, np.maximum(z, 0))
    reward = helpfulness_reward(jnp.array(scores), jnp.array(refused), eps=1e-2)
    np.testing.assert_allclose(reward, expected, atol=2e-3)


def test_a_single_rollout_has_no_standard_deviation():
    with pytest.raises(ValueError, match="at least two"):
        helpfulness_reward(jnp.ones((3, 1)), jnp.zeros((3, 1), bool))


def test_without_normalisation_it_is_the_score_of_what_does_not_refuse():
    scores, refused = jnp.array([[-2.0, 3.0, 0.5]]), jnp.array([[False, False, True]])
    np.testing.assert_array_equal(
        helpfulness_reward(scores, refused, normalise=False), [[-2.0, 3.0, 0.0]]
    )
