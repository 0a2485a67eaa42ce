"""KL estimators: values, and above all what their gradients point at."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.losses import kl_divergence

ESTIMATORS = ["k1", "k2", "k3"]
logps = hnp.arrays(np.float32, (2, 3), elements=st.floats(-5, 0, width=32))

# Three distributions over four tokens, as logits: policy, reference and an older policy.
POLICY = jnp.array([0.3, -0.5, 1.2, 0.0])
REFERENCE = jnp.array([-0.4, 0.8, 0.1, 0.6])
OLD = jnp.array([0.5, 0.1, 0.7, -0.3])


def oracle(logp, ref, estimator):
    d = np.asarray(ref, np.float64) - np.asarray(logp, np.float64)
    return {"k1": -d, "k2": d**2 / 2, "k3": np.exp(d) - d - 1}[estimator]


def exact_kl(logits_p, logits_q):
    p, q = jax.nn.log_softmax(logits_p), jax.nn.log_softmax(logits_q)
    return jnp.sum(jnp.exp(p) * (p - q))


def expected_gradient(per_token, sampler):
    """Gradient of the policy's logits, averaged over every token the sampler can draw."""
    weights = jax.nn.softmax(sampler)
    return jax.grad(lambda z: jnp.sum(weights * per_token(jax.nn.log_softmax(z)[None])[0]))(POLICY)


def estimate(estimator):
    return lambda logp: kl_divergence(
        logp, jax.nn.log_softmax(REFERENCE)[None], estimator=estimator
    )


def test_values_by_hand():
    logp, ref = jnp.log(jnp.array([[0.5, 0.25]])), jnp.log(jnp.array([[0.25, 0.5]]))
    ln2 = np.log(2.0)
    for estimator, want in (
        ("k1", [ln2, -ln2]),
        ("k2", [ln2**2 / 2, ln2**2 / 2]),
        ("k3", [0.5 + ln2 - 1, 2 - ln2 - 1]),
    ):
        got = kl_divergence(logp, ref, estimator=estimator)
        np.testing.assert_allclose(got, [want], rtol=1e-6)


@settings(deadline=None)
@given(logps, logps, st.sampled_from(ESTIMATORS))
def test_float64_oracle(logp, ref, estimator):
    got = kl_divergence(logp, ref, estimator=estimator)
    np.testing.assert_allclose(got, oracle(logp, ref, estimator), rtol=1e-5, atol=1e-6)


@settings(deadline=None)
@given(logps, logps)
def test_k2_and_k3_are_never_negative(logp, ref):
    for estimator in ("k2", "k3"):
        assert np.all(kl_divergence(logp, ref, estimator=estimator) >= 0)


def test_k3_keeps_the_digits_of_a_small_difference():
    logp, ref = jnp.array([[-1e-4]]), jnp.array([[0.0]])
    got = kl_divergence(logp, ref, estimator="k3")
    np.testing.assert_allclose(got, oracle(logp, ref, "k3"), rtol=5e-3)  # exp(d) - d - 1 gives 0


def test_k1_and_k3_are_unbiased_values():
    weights, want = jax.nn.softmax(POLICY), exact_kl(POLICY, REFERENCE)
    for estimator in ("k1", "k3"):
        got = jnp.sum(weights * estimate(estimator)(jax.nn.log_softmax(POLICY)[None]))
        np.testing.assert_allclose(got, want, rtol=1e-5)


def test_k2_has_the_gradient_of_the_kl_and_is_the_default():
    want = jax.grad(exact_kl)(POLICY, REFERENCE)
    np.testing.assert_allclose(expected_gradient(estimate("k2"), POLICY), want, atol=1e-6)
    default = expected_gradient(
        lambda logp: kl_divergence(logp, jax.nn.log_softmax(REFERENCE)[None]), POLICY
    )
    np.testing.assert_allclose(default, want, atol=1e-6)


def test_k1_has_no_gradient_on_average():
    np.testing.assert_allclose(expected_gradient(estimate("k1"), POLICY), np.zeros(4), atol=1e-6)


def test_k3_has_the_gradient_of_the_other_kl():
    got = expected_gradient(estimate("k3"), POLICY)
    other = jax.grad(lambda z: exact_kl(REFERENCE, z))(POLICY)
    np.testing.assert_allclose(got, other, atol=1e-6)
    assert np.max(np.abs(got - jax.grad(exact_kl)(POLICY, REFERENCE))) > 0.05


def test_ratio_times_k3_has_the_gradient_of_the_kl_off_policy():
    old, reference = jax.nn.log_softmax(OLD)[None], jax.nn.log_softmax(REFERENCE)[None]

    def weighted(logp):
        return kl_divergence(logp, reference, estimator="k3", old_logp=old)

    want = jax.grad(exact_kl)(POLICY, REFERENCE)
    np.testing.assert_allclose(expected_gradient(weighted, OLD), want, atol=1e-6)
    assert np.max(np.abs(expected_gradient(estimate("k2"), OLD) - want)) > 0.01  # k2 is on-policy


@settings(deadline=None, max_examples=30)
@given(logps, logps)
def test_ratio_times_k3_has_the_gradient_of_k2_on_policy(logp, ref):
    def gradient(**how):
        return jax.grad(lambda x: jnp.sum(kl_divergence(x, ref, **how)))(jnp.asarray(logp))

    weighted = gradient(estimator="k3", old_logp=logp)
    np.testing.assert_allclose(weighted, gradient(estimator="k2"), rtol=1e-5, atol=2e-5)


@settings(deadline=None, max_examples=30)
@given(logps, logps, logps)
def test_ratio_times_k3_against_float64(logp, ref, old):
    got = kl_divergence(logp, ref, estimator="k3", old_logp=old)
    want = np.exp(np.asarray(logp, np.float64) - old) * oracle(logp, ref, "k3")
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    gradient = jax.grad(lambda o: jnp.sum(kl_divergence(logp, ref, estimator="k3", old_logp=o)))(
        jnp.asarray(old)
    )
    np.testing.assert_array_equal(gradient, np.zeros_like(old))  # the sampler's are constants


@settings(deadline=None, max_examples=30)
@given(logps, logps)
def test_the_reference_steers_the_gradient_of_k2_and_k3_but_not_of_k1(logp, ref):
    def gradient(ref, estimator):
        return jax.grad(lambda x: jnp.sum(kl_divergence(x, ref, estimator=estimator)))(logp)

    moved = ref - 1
    np.testing.assert_array_equal(gradient(ref, "k1"), np.ones((2, 3)))
    np.testing.assert_array_equal(gradient(moved, "k1"), np.ones((2, 3)))
    np.testing.assert_allclose(gradient(ref, "k2"), logp - ref, atol=1e-6)
    np.testing.assert_allclose(gradient(ref, "k3"), 1 - np.exp(ref - logp), rtol=1e-5, atol=1e-5)
    for estimator in ("k2", "k3"):
        assert np.all(gradient(moved, estimator) > gradient(ref, estimator))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_no_gradient_through_the_reference(estimator):
    logp, ref = jnp.array([[-1.0, -2.0]]), jnp.array([[-1.5, -0.5]])
    gradient = jax.grad(lambda r: jnp.sum(kl_divergence(logp, r, estimator=estimator)))(ref)
    np.testing.assert_array_equal(gradient, np.zeros((1, 2)))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_far_apart_policies_stay_finite(estimator):
    logp, ref = jnp.array([[-300.0, 0.0]]), jnp.array([[0.0, -300.0]])
    value, gradient = jax.value_and_grad(
        lambda x: jnp.sum(kl_divergence(x, ref, estimator=estimator))
    )(logp)
    assert np.isfinite(value)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_low_precision_is_computed_in_float32(estimator):
    keys = jax.random.split(jax.random.key(0))
    logp, ref = (jax.random.normal(k, (3, 5)).astype(jnp.bfloat16) for k in keys)
    got = kl_divergence(logp, ref, estimator=estimator)
    assert got.dtype == jnp.float32
    exact = kl_divergence(logp.astype(jnp.float32), ref.astype(jnp.float32), estimator=estimator)
    np.testing.assert_array_equal(got, exact)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_jit_and_vmap(estimator):
    keys = jax.random.split(jax.random.key(1))
    logp, ref = (jax.random.normal(k, (4, 2, 3)) for k in keys)
    got = jax.jit(jax.vmap(lambda a, b: kl_divergence(a, b, estimator=estimator)))(logp, ref)
    np.testing.assert_allclose(got, oracle(logp, ref, estimator), rtol=1e-4, atol=1e-5)


def test_ratio_times_k3_pulls_back_from_afar():
    """−ρ·d at any distance, though e^d, of which it is the small remainder, has no digits left."""
    distance = jnp.array([[1.0, 15.0, 19.9, 20.1, 30.0]])
    gradient = jax.grad(
        lambda x: jnp.sum(kl_divergence(x, distance * 0, estimator="k3", old_logp=-distance))
    )(-distance)
    np.testing.assert_allclose(gradient, -distance, rtol=1e-6)


def test_bad_arguments_are_named():
    x = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match="'k1', 'k2' or 'k3', got 'k4'"):
        kl_divergence(x, x, estimator="k4")
    with pytest.raises(ValueError, match="old_logp weighs estimator='k3' alone, got"):
        kl_divergence(x, x, old_logp=x)
    with pytest.raises(AssertionError):
        kl_divergence(x, x[:1])
    with pytest.raises(AssertionError):
        kl_divergence(x[0], x[0])
