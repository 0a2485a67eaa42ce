"""AlphaAlign's safety reward against its table, written out."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.rewards import safety_reward

HARMFUL, WELL_FORMED, REFUSED = map(
    jnp.array, zip(*itertools.product([True, False], repeat=3), strict=True)
)


def test_with_weights_of_one():
    reward = safety_reward(HARMFUL, WELL_FORMED, REFUSED)
    assert reward.dtype == jnp.float32
    # harmful: format and refusal, format, refusal, neither; then the same for benign
    np.testing.assert_array_equal(reward, [2, 1, 1, 0, 0, 1, -1, 0])


def test_with_other_weights_under_jit():
    reward = jax.jit(safety_reward)(
        HARMFUL, WELL_FORMED, REFUSED, format_weight=0.5, refusal_weight=2.0
    )
    np.testing.assert_array_equal(reward, [2.5, 0.5, 2, 0, -1.5, 0.5, -2, 0])


def test_shapes_must_agree():
    with pytest.raises(AssertionError):
        safety_reward(HARMFUL, WELL_FORMED[:1], REFUSED)
