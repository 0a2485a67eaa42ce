"""What every public function promises: jit, vmap, grad, low precision, all-masked rows, G = 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxalign.losses as losses

B, T, V = 6, 4, 5

# Name → (a call of one argument `a`, which has the arrays; the arrays that get a gradient).
CALLS = {
    "aggregate": (lambda a: losses.aggregate(a.logp, a.mask), ["logp"]),
    "batch_advantages": (lambda a: losses.batch_advantages(a.rewards), []),
    "clip_fraction": (
        lambda a: losses.clip_fraction(a.logp, a.old_logp, a.advantages, a.mask)["clip_high"],
        [],
    ),
    "clipped_importance_loss": (
        lambda a: losses.clipped_importance_loss(a.logp, a.old_logp, a.advantages, mask=a.mask),
        ["logp"],
    ),
    "clipped_surrogate": (
        lambda a: losses.clipped_surrogate(
            a.logp, a.old_logp, a.advantages, ratio="sequence", dual_clip=3.0, mask=a.mask
        ),
        ["logp"],
    ),
    "cross_entropy": (
        lambda a: losses.aggregate(losses.cross_entropy(a.logits, a.tokens), a.mask),
        ["logits"],
    ),
    "denominator": (lambda a: losses.denominator(a.mask), []),
    "explained_variance": (lambda a: losses.explained_variance(a.critic, a.logp, a.mask), []),
    "finished_mask": (lambda a: losses.finished_mask(a.mask, a.finished), []),
    "gae": (lambda a: losses.gae(a.logp, a.critic, a.mask)[0], []),
    "group_advantages": (lambda a: losses.group_advantages(a.rewards), []),
    "identity_preference_loss": (
        lambda a: losses.identity_preference_loss(a.chosen, a.rejected, a.chosen, a.advantages),
        ["chosen", "rejected"],
    ),
    "importance_weights": (lambda a: losses.importance_weights(a.logp, a.old_logp, a.mask), []),
    "informative_groups": (lambda a: losses.informative_groups(a.rewards), []),
    "inverse_frequency_advantages": (
        lambda a: losses.inverse_frequency_advantages(a.rewards, a.modes, num_modes=2),
        [],
    ),
    "kl_divergence": (
        lambda a: losses.aggregate(
            losses.kl_divergence(
                a.logp, a.critic, estimator="k3", old_logp=a.old_logp, mask=a.mask
            ),
            a.mask,
        ),
        ["logp"],
    ),
    "leave_one_out_advantages": (lambda a: losses.leave_one_out_advantages(a.rewards), []),
    "mode_weights": (lambda a: losses.mode_weights(a.modes, num_modes=2), []),
    "multi_reward_advantages": (
        lambda a: losses.multi_reward_advantages(a.parts, jnp.array([1.0, 0.5])),
        [],
    ),
    "odds_ratio_loss": (
        lambda a: losses.odds_ratio_loss(a.chosen, a.rejected),
        ["chosen", "rejected"],
    ),
    "overlong_penalty": (
        lambda a: losses.overlong_penalty(a.lengths, max_length=T, buffer=2),
        [],
    ),
    "preference_loss": (
        lambda a: losses.preference_loss(a.chosen, a.rejected, a.chosen, a.advantages),
        ["chosen", "rejected"],
    ),
    "shrinkage_advantages": (lambda a: losses.shrinkage_advantages(a.rewards), []),
    "simple_preference_loss": (
        lambda a: losses.simple_preference_loss(a.chosen, a.rejected),
        ["chosen", "rejected"],
    ),
    "soft_gated_surrogate": (
        lambda a: losses.soft_gated_surrogate(a.logp, a.old_logp, a.advantages, mask=a.mask),
        ["logp"],
    ),
    "token_entropies": (
        lambda a: losses.aggregate(losses.token_entropies(a.logits), a.mask),
        ["logits"],
    ),
    "token_logps": (
        lambda a: losses.aggregate(losses.token_logps(a.logits, a.tokens), a.mask),
        ["logits"],
    ),
    "token_rewards": (
        lambda a: losses.token_rewards(a.advantages, a.critic, a.mask, kl_coefficient=0.1),
        [],
    ),
    "value_clip_fraction": (
        lambda a: losses.value_clip_fraction(a.critic, a.old_logp, a.logp, a.mask, clip=0.5),
        [],
    ),
    "value_loss": (
        lambda a: losses.aggregate(
            losses.value_loss(a.critic, a.old_logp, a.logp, clip=0.5, mask=a.mask), a.mask
        ),
        ["critic"],
    ),
    "whiten": (lambda a: losses.whiten(a.critic, a.mask), []),
}
DIFFERENTIABLE = [name for name, (_, by) in CALLS.items() if by]
MASKED = [name for name in DIFFERENTIABLE if "preference" not in name and "odds" not in name]
# Those whose arrays hold one number a token, with a mask beside them.
PER_TOKEN = [
    "aggregate",
    "clip_fraction",
    "clipped_importance_loss",
    "clipped_surrogate",
    "explained_variance",
    "gae",
    "importance_weights",
    "kl_divergence",
    "soft_gated_surrogate",
    "token_rewards",
    "value_clip_fraction",
    "value_loss",
    "whiten",
]


class Arrays(dict):
    """A dictionary whose entries are attributes, and a tree to jax."""

    __getattr__ = dict.__getitem__


jax.tree_util.register_pytree_node(
    Arrays,
    lambda a: (list(a.values()), tuple(a)),
    lambda keys, leaves: Arrays(zip(keys, leaves, strict=True)),
)


def arrays(seed=0, group=3):
    random = np.random.default_rng(seed)
    normal = lambda *shape: jnp.asarray(random.standard_normal(shape), jnp.float32)  # noqa: E731
    integers = lambda high, *shape: jnp.asarray(random.integers(0, high, shape))  # noqa: E731
    lengths = integers(T + 1, B)
    return Arrays(
        logits=normal(B, T, V),
        tokens=integers(V, B, T),
        logp=-jnp.abs(normal(B, T)),
        old_logp=-jnp.abs(normal(B, T)),
        critic=normal(B, T),
        mask=jnp.arange(T) < lengths[:, None],
        lengths=lengths,
        finished=lengths < T,
        advantages=normal(B),
        rewards=normal(B // group, group),
        parts=normal(B // group, group, 2),
        modes=integers(2, B // group, group),
        chosen=-1 - jnp.abs(normal(B)),
        rejected=-1 - jnp.abs(normal(B)),
    )


def call(name, a):
    return CALLS[name][0](a)


def gradients(name, a):
    """The gradient of the sum, by each array that gets one."""
    by = CALLS[name][1]
    return jax.grad(lambda given: jnp.sum(call(name, Arrays({**a, **given}))))(
        {k: a[k] for k in by}
    )


def test_every_public_function_is_here():
    assert set(CALLS) == set(losses.__all__)


@pytest.mark.parametrize("name", CALLS)
def test_jit_and_vmap(name):
    cases = [arrays(seed) for seed in range(3)]
    one_by_one = jnp.stack([call(name, a) for a in cases])
    np.testing.assert_allclose(jax.jit(lambda a: call(name, a))(cases[0]), one_by_one[0], atol=1e-5)
    together = jax.vmap(lambda a: call(name, a))(jax.tree.map(lambda *x: jnp.stack(x), *cases))
    np.testing.assert_allclose(together, one_by_one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CALLS)
def test_bfloat16_is_computed_in_float32(name):
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, arrays())
    whole = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x, half)
    got = call(name, half)
    assert got.dtype in (jnp.float32, jnp.bool_)
    np.testing.assert_array_equal(got, call(name, whole))


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_there_is_a_finite_gradient(name):
    for gradient in gradients(name, arrays()).values():
        assert np.all(np.isfinite(gradient))
        assert np.any(gradient != 0)


@pytest.mark.parametrize("name", MASKED)
def test_without_a_trained_token_value_and_gradient_are_zero(name):
    a = arrays()
    nothing = Arrays({**a, "mask": jnp.zeros((B, T), bool)})
    np.testing.assert_array_equal(jnp.sum(call(name, nothing)), 0.0)
    for gradient in gradients(name, nothing).values():
        np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


@pytest.mark.parametrize("name", PER_TOKEN)
@pytest.mark.parametrize("rubbish", [np.nan, np.inf, -np.inf])
def test_what_stands_at_masked_positions_does_not_matter(name, rubbish):
    a = arrays()
    spoilt = {k: jnp.where(a.mask, a[k], rubbish) for k in ("logp", "old_logp", "critic")}
    spoilt = Arrays({**a, **spoilt})
    np.testing.assert_array_equal(call(name, spoilt), call(name, a))
    if name in DIFFERENTIABLE:
        for key, gradient in gradients(name, a).items():
            np.testing.assert_array_equal(gradients(name, spoilt)[key], gradient)


@pytest.mark.parametrize("name", CALLS)
def test_one_sample_per_prompt(name):
    """G = 1: nothing to compare with, so no advantage but against the batch; nothing breaks."""
    got = np.asarray(call(name, arrays(group=1)), np.float32)
    assert np.all(np.isfinite(got))
    if name in ("group_advantages", "leave_one_out_advantages", "inverse_frequency_advantages"):
        np.testing.assert_array_equal(got, np.zeros((B, 1)))
