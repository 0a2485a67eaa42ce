"""IFPO: weights by hand, its two promises (equal say, GRPO where one mode occurs), an oracle."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.losses import group_advantages, inverse_frequency_advantages, mode_weights

N, G, M = 3, 4, 3
eighths = hnp.arrays(np.float32, (N, G), elements=st.integers(-64, 64).map(lambda i: i / 8))
any_modes = hnp.arrays(np.int32, (N, G), elements=st.integers(0, M - 1))
FORMS, SCOPES = ("weight", "baseline"), ("group", "batch")


def oracle(rewards, modes, form, scope, max_weight, ddof, eps):
    """Sample by sample in float64."""
    rewards = np.asarray(rewards, np.float64)
    weights, advantages = np.zeros(modes.shape), np.zeros(modes.shape)
    for i, j in np.ndindex(*modes.shape):
        pool = list(modes[i] if scope == "group" else modes.ravel())
        weights[i, j] = len(pool) / (len(set(pool)) * pool.count(modes[i, j]))
    weights = np.minimum(weights, np.inf if max_weight is None else max_weight)
    samples = modes.shape[1]
    for i in range(len(rewards)):
        p = weights[i] / weights[i].sum() if form == "baseline" else np.full(samples, 1 / samples)
        centred = rewards[i] - p @ rewards[i]
        deviation = np.sqrt(p @ centred**2 * samples / (samples - ddof))
        advantages[i] = centred / (deviation + eps)
    return advantages if form == "baseline" else weights * advantages


def test_weights_by_hand():
    modes = jnp.array([[0, 0, 0, 1], [0, 0, 1, 1], [1, 1, 1, 1]])
    # Per prompt of 4: one of mode 1 against three of mode 0 is 4/(2·1) against 4/(2·3).
    want = [[2 / 3, 2 / 3, 2 / 3, 2.0], [1, 1, 1, 1], [1, 1, 1, 1]]
    np.testing.assert_allclose(mode_weights(modes, num_modes=2), want, rtol=1e-6)
    # Over the batch 5 and 7 of 12: 12/(2·5) and 12/(2·7).
    want = np.where(np.asarray(modes) == 0, 12 / 10, 12 / 14)
    np.testing.assert_allclose(mode_weights(modes, num_modes=2, scope="batch"), want, rtol=1e-6)
    capped = mode_weights(modes, num_modes=2, max_weight=1.5)
    np.testing.assert_allclose(capped[0], [2 / 3, 2 / 3, 2 / 3, 1.5], rtol=1e-6)


def test_both_forms_by_hand():
    """Three that consult get 1, 1, 0; the one that does not gets 0."""
    rewards, modes = jnp.array([[1.0, 1.0, 0.0, 0.0]]), jnp.array([[1, 1, 1, 0]])
    std = np.sqrt(4 * 0.25 / 3)
    want = np.array([[0.5 * 2 / 3, 0.5 * 2 / 3, -0.5 * 2 / 3, -0.5 * 2]]) / std
    got = inverse_frequency_advantages(rewards, modes, num_modes=2, eps=0.0)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    # Baseline: the modes' means 2/3 and 0 average to 1/3.
    got = inverse_frequency_advantages(rewards, modes, num_modes=2, form="baseline", scale=False)
    np.testing.assert_allclose(got, [[2 / 3, 2 / 3, -1 / 3, -1 / 3]], rtol=1e-6)


@settings(deadline=None, max_examples=60)
@given(
    eighths,
    any_modes,
    st.sampled_from(FORMS),
    st.sampled_from(SCOPES),
    st.sampled_from([None, 1.0, 1.25]),
    st.sampled_from([0, 1]),
)
def test_float64_oracle(rewards, modes, form, scope, max_weight, ddof):
    got = inverse_frequency_advantages(
        rewards, modes, num_modes=M, form=form, scope=scope, max_weight=max_weight, ddof=ddof
    )
    want = oracle(rewards, modes, form, scope, max_weight, ddof, 1e-4)
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=1e-4)


@settings(deadline=None, max_examples=60)
@given(eighths, st.integers(0, M - 1), st.sampled_from(FORMS), st.sampled_from(SCOPES))
def test_one_mode_is_grpo_to_the_bit(rewards, mode, form, scope):
    modes = np.full((N, G), mode)
    for scale in (True, False):
        got = inverse_frequency_advantages(
            rewards, modes, num_modes=M, form=form, scope=scope, scale=scale
        )
        np.testing.assert_array_equal(got, group_advantages(rewards, scale=scale))


@settings(deadline=None, max_examples=60)
@given(any_modes, st.sampled_from(SCOPES))
def test_modes_share_the_weight_of_their_scope_equally(modes, scope):
    weights = np.asarray(mode_weights(modes, num_modes=M, scope=scope))
    rows = (
        [(modes.ravel(), weights.ravel())]
        if scope == "batch"
        else list(zip(modes, weights, strict=True))
    )
    for row, weight in rows:
        present = set(row.tolist())
        np.testing.assert_allclose(weight.sum(), len(row), rtol=1e-6)
        for mode in present:
            np.testing.assert_allclose(
                weight[row == mode].sum(), len(row) / len(present), rtol=1e-6
            )


@settings(deadline=None, max_examples=40)
@given(eighths, any_modes, st.permutations(range(G)), st.sampled_from(FORMS))
def test_permuting_samples_permutes_advantages(rewards, modes, order, form):
    order = np.array(order)
    got = inverse_frequency_advantages(rewards[:, order], modes[:, order], num_modes=M, form=form)
    want = inverse_frequency_advantages(rewards, modes, num_modes=M, form=form)
    np.testing.assert_allclose(got, np.asarray(want)[:, order], rtol=1e-4, atol=1e-5)


@settings(deadline=None, max_examples=40)
@given(eighths, any_modes, st.integers(-1000, 1000), st.sampled_from(FORMS))
def test_a_constant_added_to_a_group_changes_nothing(rewards, modes, constant, form):
    got = inverse_frequency_advantages(rewards + constant, modes, num_modes=M, form=form)
    want = inverse_frequency_advantages(rewards, modes, num_modes=M, form=form)
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scope", SCOPES)
def test_a_sample_without_a_mode_has_no_weight(form, scope):
    rewards, modes = jnp.array([[1.0, 2.0, 9.0]]), jnp.array([[0, 1, -1]])
    got = inverse_frequency_advantages(rewards, modes, num_modes=2, form=form, scope=scope)
    assert got[0, 2] == 0 and np.all(np.isfinite(got))
    weights = mode_weights(modes, num_modes=2, scope=scope)
    np.testing.assert_array_equal(weights, [[1.0, 1.0, 0.0]])


@pytest.mark.parametrize("form", FORMS)
def test_lone_samples_low_precision_jit_vmap_and_no_gradient(form):
    call = lambda r, m: inverse_frequency_advantages(r, m, num_modes=2, form=form)  # noqa: E731
    with jax.debug_nans(True):
        np.testing.assert_array_equal(
            call(jnp.ones((2, 1)), jnp.array([[0], [1]])), np.zeros((2, 1))
        )
    rewards = jax.random.normal(jax.random.key(0), (5, 2, 4)).astype(jnp.bfloat16)
    modes = jax.random.bernoulli(jax.random.key(1), 0.5, (5, 2, 4)).astype(jnp.int32)
    got = jax.jit(jax.vmap(call))(rewards, modes)
    assert got.dtype == jnp.float32
    want = [call(r.astype(jnp.float32), m) for r, m in zip(rewards, modes, strict=True)]
    np.testing.assert_allclose(got, np.stack(want), rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda r: jnp.sum(call(r, modes[0]) ** 2))(jnp.ones((2, 4)))
    np.testing.assert_array_equal(gradient, np.zeros((2, 4)))


def test_bad_arguments_are_named():
    rewards, modes = jnp.zeros((1, 2)), jnp.zeros((1, 2), int)
    for changes, message in (
        ({"form": "weights"}, "'weight' or 'baseline', got 'weights'"),
        ({"scope": "prompt"}, "'group' or 'batch', got 'prompt'"),
        ({"max_weight": 0.5}, "max_weight must be at least 1"),
        ({"num_modes": 0}, "num_modes must be at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            inverse_frequency_advantages(rewards, modes, **({"num_modes": 2} | changes))
    with pytest.raises(AssertionError):
        inverse_frequency_advantages(rewards, modes[:, :1], num_modes=2)
    with pytest.raises(AssertionError, match="int"):
        inverse_frequency_advantages(rewards, modes.astype(jnp.float32), num_modes=2)


def test_modes_may_be_booleans():
    """Whether the rules were consulted, say."""
    rewards, modes = jnp.array([[1.0, 0.0, 0.0, 1.0]]), jnp.array([[True, False, False, False]])
    got = inverse_frequency_advantages(rewards, modes, num_modes=2)
    want = inverse_frequency_advantages(rewards, modes.astype(int), num_modes=2)
    np.testing.assert_array_equal(got, want)
