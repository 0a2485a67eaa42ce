"""The clipped surrogate against numbers by hand, a float64 oracle and its gradient."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.losses import aggregate, clip_fraction, clipped_surrogate

B, T = 3, 4
logps = hnp.arrays(np.float32, (B, T), elements=st.floats(-3, 0, width=32))
advantages_b = hnp.arrays(np.float32, (B,), elements=st.floats(-2, 2, width=32))
masks = hnp.arrays(np.bool_, (B, T))


def oracle(logp, old, advantages, low, high, dual=None, sequence=False, mask=None):
    """The formula, token by token, in float64."""
    logp, old = np.asarray(logp, np.float64), np.asarray(old, np.float64)
    out = np.zeros(logp.shape)
    for i, t in np.ndindex(*logp.shape):
        if mask is not None and not mask[i, t]:
            continue
        log_ratio = (logp[i] - old[i])[mask[i]].mean() if sequence else logp[i, t] - old[i, t]
        rho, a = (
            np.exp(log_ratio),
            float(advantages[i] if advantages.ndim == 1 else advantages[i, t]),
        )
        out[i, t] = -min(rho * a, min(max(rho, 1 - low), 1 + high) * a)
        if dual is not None and a < 0:
            out[i, t] = min(out[i, t], -dual * a)
    return out


@pytest.mark.parametrize(
    ("rho", "advantage", "loss", "gradient"),
    [
        (1.0, 2.0, -2.0, -2.0),  # on-policy: REINFORCE
        (1.5, 1.0, -1.2, 0.0),  # a good token already 50 % likelier: no more of it
        (0.5, 1.0, -0.5, -0.5),  # a good token that lost ground: the full pull back
        (0.5, -1.0, 0.8, 0.0),  # a bad token already halved: enough
        (1.5, -1.0, 1.5, 1.5),  # a bad token that gained: the full push, never clipped
        (1.1, -1.0, 1.1, 1.1),
    ],
)
def test_one_token_by_hand(rho, advantage, loss, gradient):
    logp = jnp.log(jnp.array([[rho]]))
    one = lambda x: clipped_surrogate(x, jnp.zeros((1, 1)), jnp.array([advantage]))[0, 0]  # noqa: E731
    np.testing.assert_allclose(one(logp), loss, rtol=1e-6)
    np.testing.assert_allclose(jax.grad(one)(logp), [[gradient]], rtol=1e-6)


def test_unequal_bounds_by_hand():
    logp = jnp.log(jnp.array([[1.5, 0.5]]))
    for advantage, want in ((1.0, [-1.28, -0.5]), (-1.0, [1.5, 0.9])):
        got = clipped_surrogate(
            logp, jnp.zeros((1, 2)), jnp.array([advantage]), clip_low=0.1, clip_high=0.28
        )
        np.testing.assert_allclose(got, [want], rtol=1e-6)


def test_dual_clip_bounds_the_loss_of_bad_tokens_only():
    logp = jnp.log(jnp.array([[10.0, 2.0], [10.0, 2.0]]))
    got = clipped_surrogate(logp, jnp.zeros((2, 2)), jnp.array([-1.0, 1.0]), dual_clip=3.0)
    np.testing.assert_allclose(got, [[3.0, 2.0], [-1.2, -1.2]], rtol=1e-6)


def test_sequence_ratio_by_hand():
    """The masked third token does not enter the mean: ρ = exp((0.1 + 0.2) / 2)."""
    logp, mask = jnp.array([[0.1, 0.2, 9.0]]), jnp.array([[1, 1, 0]])
    got = clipped_surrogate(logp, jnp.zeros((1, 3)), jnp.array([2.0]), ratio="sequence", mask=mask)
    rho = np.exp(0.15)
    np.testing.assert_allclose(got, [[-2 * rho, -2 * rho, 0.0]], rtol=1e-6)


@settings(deadline=None, max_examples=30)
@given(
    logps,
    logps,
    advantages_b,
    masks,
    st.sampled_from([None, 1.5, 3.0]),
    st.sampled_from([0.2, 0.28]),
)
def test_float64_oracle(logp, old, advantages, mask, dual, high):
    for ratio in ("token", "sequence"):
        got = clipped_surrogate(
            logp, old, advantages, clip_high=high, dual_clip=dual, ratio=ratio, mask=mask
        )
        want = oracle(logp, old, advantages, 0.2, high, dual, ratio == "sequence", mask)
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@settings(deadline=None)
@given(logps, logps, logps)
def test_advantages_per_token(logp, old, advantages):
    advantages = advantages + 1.5  # either sign
    got = clipped_surrogate(logp, old, advantages)
    np.testing.assert_allclose(got, oracle(logp, old, advantages, 0.2, 0.2), rtol=1e-4, atol=1e-5)


@settings(deadline=None)
@given(logps, logps, advantages_b)
def test_one_advantage_per_row_is_that_advantage_at_every_token(logp, old, advantages):
    spread = np.repeat(advantages[:, None], T, axis=1)
    np.testing.assert_array_equal(
        clipped_surrogate(logp, old, advantages), clipped_surrogate(logp, old, spread)
    )


@settings(deadline=None, max_examples=30)
@given(logps, logps, advantages_b, masks, st.permutations(range(B)))
def test_permuting_rows_permutes_losses(logp, old, advantages, mask, order):
    order = np.array(order)
    for ratio in ("token", "sequence"):
        got = clipped_surrogate(
            logp[order], old[order], advantages[order], ratio=ratio, mask=mask[order]
        )
        want = clipped_surrogate(logp, old, advantages, ratio=ratio, mask=mask)
        np.testing.assert_allclose(got, np.asarray(want)[order], rtol=1e-6)


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_only_logp_receives_a_gradient(ratio):
    keys = jax.random.split(jax.random.key(0), 3)
    logp, old = (-jax.random.uniform(k, (B, T)) for k in keys[:2])
    advantages, mask = jax.random.normal(keys[2], (B,)), jnp.ones((B, T))

    def loss(logp, old, advantages):
        return jnp.sum(clipped_surrogate(logp, old, advantages, ratio=ratio, mask=mask))

    to_logp, to_old, to_advantages = jax.grad(loss, argnums=(0, 1, 2))(logp, old, advantages)
    assert np.any(to_logp)
    np.testing.assert_array_equal(to_old, np.zeros((B, T)))
    np.testing.assert_array_equal(to_advantages, np.zeros(B))


def test_sequence_gradient_is_that_of_gspo():
    """The paper's ratio, differentiated through the mean, weighs every token of a row alike."""
    keys = jax.random.split(jax.random.key(3), 3)
    logp = -jax.random.uniform(keys[0], (B, T))
    old = logp + 0.1 * jax.random.normal(keys[1], (B, T))
    advantages = jax.random.normal(keys[2], (B,))
    mask = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 1, 1]])

    def ours(logp):
        loss = clipped_surrogate(logp, old, advantages, ratio="sequence", mask=mask)
        return aggregate(loss, mask, mode="sequence_mean")

    def paper(logp):
        rho = jnp.exp(((logp - old) * mask).sum(1) / mask.sum(1))
        return -jnp.minimum(rho * advantages, rho.clip(0.8, 1.2) * advantages).mean()

    np.testing.assert_allclose(ours(logp), paper(logp), rtol=1e-6)
    got, want = jax.grad(ours)(logp), jax.grad(paper)(logp)
    assert np.any(want)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


def test_sequence_gradient_of_a_token_follows_its_own_advantage():
    logp, mask = jnp.zeros((1, 3)), jnp.ones((1, 3))
    advantages = jnp.array([[1.0, 0.0, -2.0]])

    def loss(logp):
        return jnp.sum(clipped_surrogate(logp, 0 * logp, advantages, ratio="sequence", mask=mask))

    np.testing.assert_allclose(jax.grad(loss)(logp), -advantages)


@pytest.mark.parametrize("ratio", ["token", "sequence"])
@pytest.mark.parametrize("rubbish", [np.nan, np.inf, -np.inf])
def test_masked_positions_may_hold_anything(ratio, rubbish):
    logp, old = jnp.array([[-1.0, rubbish]]), jnp.array([[-1.1, rubbish]])
    mask = jnp.array([[1, 0]])

    def loss(logp):
        losses = clipped_surrogate(logp, old, jnp.array([1.0]), ratio=ratio, mask=mask)
        return aggregate(losses, mask)

    value, gradient = jax.value_and_grad(loss)(logp)
    np.testing.assert_allclose(value, -np.exp(0.1), rtol=1e-6)
    np.testing.assert_allclose(gradient, [[-np.exp(0.1), 0.0]], rtol=1e-6)


def test_extreme_ratios_stay_finite():
    logp, old = jnp.array([[0.0, -500.0]]), jnp.array([[-500.0, 0.0]])
    for advantage in (-1.0, 0.0, 1.0):
        value, gradient = jax.value_and_grad(
            lambda x, a=advantage: jnp.sum(clipped_surrogate(x, old, jnp.array([a])))
        )(logp)
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("ratio", ["token", "sequence"])
def test_low_precision_is_computed_in_float32(ratio):
    keys = jax.random.split(jax.random.key(4), 3)
    args = [
        jax.random.normal(k, s).astype(jnp.bfloat16)
        for k, s in zip(keys, [(B, T), (B, T), (B,)], strict=True)
    ]
    mask = jnp.ones((B, T), jnp.bfloat16)
    got = clipped_surrogate(*args, ratio=ratio, mask=mask)
    assert got.dtype == jnp.float32
    exact = [a.astype(jnp.float32) for a in args]
    np.testing.assert_array_equal(got, clipped_surrogate(*exact, ratio=ratio, mask=mask))


def test_jit_vmap_and_grad_compose():
    keys = jax.random.split(jax.random.key(5), 4)
    logp, old = (-jax.random.uniform(k, (2, B, T)) for k in keys[:2])
    advantages, mask = (
        jax.random.normal(keys[2], (2, B)),
        jax.random.bernoulli(keys[3], 0.7, (2, B, T)),
    )

    def loss(logp, old, advantages, mask):
        return jnp.sum(clipped_surrogate(logp, old, advantages, ratio="sequence", mask=mask))

    got = jax.jit(jax.vmap(jax.grad(loss)))(logp, old, advantages, mask)
    want = np.stack([jax.grad(loss)(*row) for row in zip(logp, old, advantages, mask, strict=True)])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_bad_arguments_are_named():
    x, a = jnp.zeros((2, 3)), jnp.zeros(2)
    with pytest.raises(ValueError, match="'token' or 'sequence', got 'tokens'"):
        clipped_surrogate(x, x, a, ratio="tokens")
    with pytest.raises(ValueError, match="needs mask"):
        clipped_surrogate(x, x, a, ratio="sequence")
    with pytest.raises(ValueError, match="dual_clip must be above 1"):
        clipped_surrogate(x, x, a, dual_clip=1.0)
    for logp, old, advantages, mask in (
        (x, x[:, :2], a, None),
        (x, x, jnp.zeros(3), None),  # T advantages rather than B
        (x, x, jnp.zeros((2, 1)), None),
        (x, x, a, jnp.ones((2, 2))),
        (x[0], x[0], a, None),
    ):
        with pytest.raises(AssertionError):
            clipped_surrogate(logp, old, advantages, mask=mask)


def test_clip_fraction_by_hand():
    logp = jnp.log(jnp.array([[1.5, 0.5, 1.0, 9.0], [1.5, 0.5, 1.0, 1.0]]))
    mask = jnp.array([[1, 1, 1, 0], [1, 1, 0, 0]])
    # Row 0 is good: 1.5 is clipped, 0.5 is not, 9.0 is masked. Row 1 is bad: 0.5 is clipped.
    got = clip_fraction(logp, jnp.zeros((2, 4)), jnp.array([1.0, -1.0]), mask)
    np.testing.assert_allclose([got["clip_low"], got["clip_high"]], [1 / 5, 1 / 5], rtol=1e-6)
    by_row = clip_fraction(
        logp, jnp.zeros((2, 4)), jnp.array([1.0, -1.0]), mask, clip_low=0.1, ratio="sequence"
    )  # geometric means 0.75^(1/3) = 0.91 and 0.75^(1/2) = 0.87: the bad row's two tokens
    np.testing.assert_allclose([by_row["clip_low"], by_row["clip_high"]], [2 / 5, 0.0], rtol=1e-6)


@settings(deadline=None, max_examples=30)
@given(logps, logps, advantages_b)
def test_clip_fraction_counts_the_tokens_without_a_gradient(logp, old, advantages):
    advantages = np.where(np.abs(advantages) < 0.1, np.float32(1), advantages)
    gradient = jax.grad(lambda x: jnp.sum(clipped_surrogate(x, old, advantages)))(logp)
    got = clip_fraction(logp, old, advantages, np.ones((B, T)))
    np.testing.assert_allclose(
        got["clip_low"] + got["clip_high"], np.mean(gradient == 0), rtol=1e-6
    )


def test_clip_fractions_of_micro_batches_add_up():
    keys = jax.random.split(jax.random.key(6), 3)
    logp, old = (-jax.random.uniform(k, (4, T)) for k in keys[:2])
    advantages = jax.random.normal(keys[2], (4,))
    mask = jnp.array([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    whole = clip_fraction(logp, old, advantages, mask)
    halves = [
        clip_fraction(logp[s], old[s], advantages[s], mask[s], normalizer=mask.sum())
        for s in (slice(0, 2), slice(2, 4))
    ]
    for name in ("clip_low", "clip_high"):
        np.testing.assert_allclose(sum(h[name] for h in halves), whole[name], rtol=1e-6)
