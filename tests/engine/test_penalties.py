"""The KL of the loss against the exact gradient, where tokens were drawn by an older policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.engine import K2, K3, KL

V = 7
RNG = np.random.default_rng(0)
REFERENCE, OLD = (jnp.asarray(RNG.normal(size=V), jnp.float32) for _ in range(2))
MOVED = OLD + 0.4 * jnp.asarray(RNG.normal(size=V), jnp.float32)


def exact(z):
    """KL(π‖reference) of one token with logits z."""
    return jnp.sum(jax.nn.softmax(z) * (jax.nn.log_softmax(z) - jax.nn.log_softmax(REFERENCE)))


def expected(penalty, z):
    """The penalty's mean over tokens that the old policy draws, all V of them weighed."""
    rows = lambda logits: jax.nn.log_softmax(logits)[None]  # noqa: E731
    values = penalty(rows(z), rows(REFERENCE), rows(OLD))
    return jnp.sum(jax.nn.softmax(OLD) * values[0])


def relative_error(penalty, z):
    wanted = jax.grad(exact)(z)
    found = jax.grad(lambda z: expected(penalty, z))(z)
    return float(jnp.linalg.norm(found - wanted) / jnp.linalg.norm(wanted))


def test_the_default_is_unbiased_once_the_policy_has_moved():
    assert relative_error(KL(), MOVED) < 1e-5
    assert relative_error(K2(), MOVED) > 0.09
    assert relative_error(K3(), MOVED) > 0.09


@pytest.mark.parametrize("penalty", [KL(), K2()])
def test_on_policy_both_have_the_exact_gradient(penalty):
    assert relative_error(penalty, OLD) < 1e-5


def test_what_the_scripts_take_by_default():
    from jaxalign.methods.cada.arms import RL

    assert isinstance(RL().objective.kl, KL)
