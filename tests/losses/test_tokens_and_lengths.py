"""Entropy, cross-entropy and what is done about overlong completions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.losses import (
    aggregate,
    cross_entropy,
    finished_mask,
    overlong_penalty,
    token_entropies,
    token_logps,
)


def test_entropy_by_hand():
    """Uniform over 4: log 4. Over two of four: log 2. One token alone: 0."""
    barred = -jnp.inf
    logits = jnp.array(
        [[[5.0, 5.0, 5.0, 5.0], [1.0, 1.0, barred, barred], [0.0, barred, barred, barred]]]
    )
    np.testing.assert_allclose(token_entropies(logits), [[np.log(4), np.log(2), 0.0]], atol=1e-6)
    assert np.all(np.isfinite(jax.grad(lambda x: jnp.sum(token_entropies(x)))(logits)))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_entropy_is_the_expected_negative_log_probability(temperature):
    logits = 3 * jax.random.normal(jax.random.key(0), (2, 3, 5))
    every = jnp.broadcast_to(jnp.arange(5), (2, 3, 5))
    logps = np.stack(
        [token_logps(logits, every[..., v], temperature=temperature) for v in range(5)], -1
    ).astype(np.float64)
    want = -(np.exp(logps) * logps).sum(-1)
    np.testing.assert_allclose(
        token_entropies(logits, temperature=temperature), want, rtol=1e-5, atol=1e-5
    )
    with pytest.raises(ValueError, match="temperature must be above 0"):
        token_entropies(logits, temperature=0)


def test_an_entropy_bonus_flattens_the_distribution():
    logits = jnp.array([[[2.0, 0.0, 0.0]]])
    gradient = jax.grad(lambda x: -jnp.sum(token_entropies(x)))(logits)  # loss − 1·entropy
    assert gradient[0, 0, 0] > 0 > gradient[0, 0, 1]


def test_cross_entropy_by_hand_and_masked():
    """Probabilities ½ and ¼ at the trained tokens; the third position does not count."""
    logits = jnp.log(jnp.array([[[0.5, 0.5], [0.25, 0.75], [0.9, 0.1]]]))
    tokens, mask = jnp.zeros((1, 3), int), jnp.array([[1, 1, 0]])
    losses = cross_entropy(logits, tokens)
    np.testing.assert_allclose(losses[0, :2], [np.log(2), np.log(4)], rtol=1e-6)
    value, gradient = jax.value_and_grad(lambda x: aggregate(cross_entropy(x, tokens), mask))(
        logits
    )
    np.testing.assert_allclose(value, np.log(8) / 2, rtol=1e-6)
    np.testing.assert_allclose(gradient[0, 0], [-0.25, 0.25], rtol=1e-6)  # (p − 1)/2, p/2
    assert not np.any(gradient[0, 2])
    low = cross_entropy(logits.astype(jnp.bfloat16), tokens)
    assert low.dtype == jnp.float32


def test_finished_mask():
    mask = jnp.array([[1, 1, 0], [1, 1, 1]])
    got = finished_mask(mask, jnp.array([True, False]))
    np.testing.assert_array_equal(got, [[True, True, False], [False, False, False]])


def test_overlong_penalty_by_hand():
    """Limit 10, buffer 4: free to 6 tokens, half at 8, all from 10 on."""
    lengths = jnp.array([0, 6, 7, 8, 10, 12])
    got = overlong_penalty(lengths, max_length=10, buffer=4, factor=2.0)
    np.testing.assert_allclose(got, [0, 0, -0.5, -1, -2, -2], atol=1e-7)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 50),
    st.integers(0, 50),
    st.floats(0, 3, width=32, allow_subnormal=False),  # XLA takes subnormal numbers for 0
)
def test_overlong_penalty_never_rises_and_is_bounded(buffer, more, factor):
    lengths = jnp.arange(120)
    got = np.asarray(
        overlong_penalty(lengths, max_length=buffer + more, buffer=buffer, factor=factor)
    )
    assert np.all(np.diff(got) <= 0) and np.all((-factor <= got) & (got <= 0))
    assert got[more] == 0
    np.testing.assert_allclose(got[buffer + more], -factor, rtol=1e-6)


def test_bad_buffer_is_named():
    for buffer in (0, 11):
        with pytest.raises(ValueError, match=f"1 to max_length=10, got {buffer}"):
            overlong_penalty(jnp.zeros(1, int), max_length=10, buffer=buffer)
    with pytest.raises(ValueError, match="factor must not be below 0, got -1"):
        overlong_penalty(jnp.zeros(1, int), max_length=10, buffer=2, factor=-1.0)
