"""Log-probs of tokens from full logits."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.losses import token_logps

logits_btv = hnp.arrays(np.float32, (2, 3, 5), elements=st.floats(-20, 20, width=32))
tokens_bt = hnp.arrays(np.int32, (2, 3), elements=st.integers(0, 4))


def oracle(logits, tokens, temperature):
    z = np.asarray(logits, np.float64) / temperature
    logps = z - np.log(np.exp(z).sum(-1, keepdims=True))
    return np.take_along_axis(logps, tokens[..., None], -1)[..., 0]


def test_by_hand():
    logits = jnp.log(jnp.array([[[1.0, 3.0], [1.0, 3.0]]]))  # probabilities 1/4 and 3/4
    got = token_logps(logits, jnp.array([[0, 1]]))
    np.testing.assert_allclose(got, np.log([[0.25, 0.75]]), rtol=1e-6)
    # At temperature 1/2 the odds are squared: 1/10 and 9/10.
    got = token_logps(logits, jnp.array([[0, 1]]), temperature=0.5)
    np.testing.assert_allclose(got, np.log([[0.1, 0.9]]), rtol=1e-5)


@settings(deadline=None)
@given(logits_btv, tokens_bt, st.sampled_from([0.5, 1.0, 1.7]))
def test_float64_oracle(logits, tokens, temperature):
    got = token_logps(logits, tokens, temperature=temperature)
    np.testing.assert_allclose(got, oracle(logits, tokens, temperature), rtol=1e-5, atol=1e-5)


def test_large_logits_and_barred_tokens():
    logits = jnp.array([[[1e4, 1e4, -jnp.inf]]])
    value, gradient = jax.value_and_grad(lambda z: token_logps(z, jnp.array([[1]]))[0, 0])(logits)
    np.testing.assert_allclose(value, -np.log(2), atol=1e-3)  # float32 near 1e4
    np.testing.assert_allclose(gradient, [[[-0.5, 0.5, 0.0]]])


def test_gradient_is_one_hot_minus_softmax():
    logits, tokens = (
        jax.random.normal(jax.random.key(0), (2, 3, 5)),
        jnp.array([[0, 1, 2], [3, 4, 0]]),
    )
    got = jax.grad(lambda z: jnp.sum(token_logps(z, tokens, temperature=2.0)))(logits)
    want = (jax.nn.one_hot(tokens, 5) - jax.nn.softmax(logits / 2.0)) / 2.0
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_low_precision_is_computed_in_float32():
    logits = jax.random.normal(jax.random.key(1), (2, 3, 5)).astype(jnp.bfloat16)
    tokens = jnp.zeros((2, 3), jnp.int32)
    got = token_logps(logits, tokens)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, token_logps(logits.astype(jnp.float32), tokens))


def test_jit_vmap_and_a_traced_temperature():
    logits = jax.random.normal(jax.random.key(2), (4, 2, 3, 5))
    tokens = jax.random.randint(jax.random.key(3), (4, 2, 3), 0, 5)
    got = jax.jit(jax.vmap(lambda z, y, t: token_logps(z, y, temperature=t), (0, 0, None)))(
        logits, tokens, 0.7
    )
    np.testing.assert_allclose(got, oracle(logits, np.array(tokens), 0.7), rtol=1e-5, atol=1e-6)


def test_bad_arguments_are_named():
    logits, tokens = jnp.zeros((2, 3, 5)), jnp.zeros((2, 3), jnp.int32)
    with pytest.raises(ValueError, match="temperature must be above 0, got 0"):
        token_logps(logits, tokens, temperature=0)
    with pytest.raises(AssertionError):
        token_logps(logits, tokens[:, :2])
    with pytest.raises(AssertionError):
        token_logps(logits[0], tokens[0])
