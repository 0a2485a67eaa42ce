"""The step: fused equals split, micro-batches change nothing, one compilation, a guarded update."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_model import random_params

from jaxalign.engine.state import init_state
from jaxalign.engine.step import (
    Algorithm,
    InverseFrequency,
    advantages,
    make_step,
    rollout,
    score,
    update,
)
from jaxalign.models import ModelConfig, Transformer
from jaxalign.records import Batch, Score
from jaxalign.sampling import Temperature

CONFIG = ModelConfig(
    vocab_size=61, num_layers=2, model_dim=16, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=32
)
MODEL = Transformer(CONFIG, dtype=jnp.float32)
ALGORITHM = Algorithm(
    samples_per_prompt=4, max_new_tokens=6, stop=(2,), method=Temperature(0.9), baseline="batch"
)
KEY = jax.random.key(7)


def params():
    return random_params(CONFIG)


def batch(seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    lengths = np.array([3, 5, 1, 4])
    return Batch(
        prompts=jnp.asarray(rng.integers(3, 61, (4, 5)), jnp.int32),
        prompt_mask=jnp.asarray(np.arange(5) < lengths[:, None]),
        prefix=jnp.asarray([5, 6, 7], jnp.int32),
    )


def even_tokens(reward_params, batch, samples) -> Score:
    """A reward to learn: the share of even tokens among those generated."""
    even = (samples.tokens % 2 == 0) & samples.mask
    rewards = even.sum(axis=1) / jnp.maximum(samples.mask.sum(axis=1), 1)
    return Score(rewards.reshape(batch.prompts.shape[0], -1), {}, {})


def largest_difference(left, right) -> float:
    return max(
        float(jnp.max(jnp.abs(a - b)))
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    )


def test_fused_and_split_paths_give_the_same_parameters_after_three_steps():
    optimizer = optax.adam(1e-3)
    fused = make_step(MODEL, optimizer, ALGORITHM, even_tokens)
    state = init_state(params(), optimizer)
    split_state = init_state(params(), optimizer)
    split_update = jax.jit(functools.partial(update, MODEL, optimizer, ALGORITHM))
    for step in range(3):
        state, result = fused(state, batch(step), KEY, None)

        key = jax.random.fold_in(KEY, split_state.step)
        samples = rollout(MODEL, ALGORITHM, split_state.params, batch(step), key)
        on_host = jax.device_get(samples)
        _, advantage = score(even_tokens, ALGORITHM, None, batch(step), on_host)
        split_state, _ = split_update(split_state, batch(step), samples, advantage)
        np.testing.assert_array_equal(result.samples.tokens, samples.tokens)
    assert largest_difference(state.params, split_state.params) < 1e-6
    assert largest_difference(state.params, params()) > 1e-3


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_micro_batches_change_nothing(aggregation):
    optimizer = optax.sgd(0.1)
    algorithm = dataclasses.replace(ALGORITHM, aggregation=aggregation, kl_coefficient=0.1)
    reference = jax.tree.map(lambda x: 1.1 * x, params())
    samples = rollout(MODEL, algorithm, params(), batch(), KEY)
    _, advantage = score(even_tokens, algorithm, None, batch(), samples)
    results = []
    for parts in (1, 4):
        split = dataclasses.replace(algorithm, micro_batches=parts)
        step = jax.jit(functools.partial(update, MODEL, optimizer, split))
        state = init_state(params(), optimizer)
        results.append(step(state, batch(), samples, advantage, reference))
    (whole, first), (state, metrics) = results
    assert largest_difference(whole.params, params()) > 1e-4
    assert largest_difference(whole.params, state.params) < 1e-6
    for name in ("loss", "kl", "logp_gap", "clip_low", "clip_high"):
        np.testing.assert_allclose(metrics[name], first[name], atol=1e-6)


def test_a_second_batch_of_the_same_bucket_compiles_nothing():
    optimizer = optax.adam(1e-3)
    step = make_step(MODEL, optimizer, ALGORITHM, even_tokens)
    state = init_state(params(), optimizer)
    for seed in range(3):
        state, _ = step(state, batch(seed), KEY, None)
    assert step._cache_size() == 1


def test_the_policy_learns_what_is_rewarded():
    optimizer = optax.adam(1e-2)
    step = make_step(MODEL, optimizer, ALGORITHM, even_tokens)
    state = init_state(params(), optimizer)
    rewards = []
    for seed in range(40):
        state, result = step(state, batch(seed), KEY, None)
        rewards.append(float(result.metrics["reward"]))
    assert np.mean(rewards[:3]) < 0.65
    assert np.mean(rewards[-3:]) > 0.9


def test_training_logps_are_the_samplers():
    step = make_step(MODEL, optax.sgd(0.0), ALGORITHM, even_tokens)
    _, result = step(init_state(params(), optax.sgd(0.0)), batch(), KEY, None)
    assert float(result.metrics["logp_gap"]) < 1e-4


def test_a_gradient_that_is_not_finite_changes_nothing_but_the_counters():
    def broken(reward_params, batch, samples):
        return Score(jnp.full((4, 4), jnp.nan), {}, {})

    optimizer = optax.adam(1e-3)
    state = init_state(params(), optimizer)
    after, result = make_step(MODEL, optimizer, ALGORITHM, broken)(state, batch(), KEY, None)
    assert int(after.step) == 1 and int(after.skipped) == 1
    assert float(result.metrics["skipped_updates"]) == 1
    assert largest_difference(after.params, params()) == 0
    assert int(after.opt_state[0].count) == 0


def test_a_change_that_is_not_finite_is_not_made():
    """A finite gradient times a learning rate that is not a number."""
    optimizer = optax.sgd(float("nan"))
    state = init_state(params(), optimizer)
    after, _ = make_step(MODEL, optimizer, ALGORITHM, even_tokens)(state, batch(), KEY, None)
    assert int(after.skipped) == 1
    assert largest_difference(after.params, params()) == 0


def test_the_kl_pulls_towards_the_reference_and_needs_one():
    optimizer = optax.sgd(1.0)
    pulled = dataclasses.replace(ALGORITHM, kl_coefficient=0.1)

    def step(algorithm, reference):
        state = init_state(params(), optimizer)
        return make_step(MODEL, optimizer, algorithm, even_tokens)(
            state, batch(), KEY, None, reference
        )

    free, _ = step(ALGORITHM, None)
    same, same_result = step(pulled, params())
    other, other_result = step(pulled, jax.tree.map(lambda x: 1.2 * x, params()))
    assert float(same_result.metrics["kl"]) < 1e-8 < float(other_result.metrics["kl"])
    assert largest_difference(free.params, same.params) < 1e-5
    assert largest_difference(free.params, other.params) > 1e-4
    with pytest.raises(ValueError, match="exactly when kl_coefficient"):
        step(pulled, None)
    with pytest.raises(ValueError, match="exactly when kl_coefficient"):
        step(ALGORITHM, params())


def test_prompts_that_micro_batches_do_not_divide_are_refused():
    algorithm = dataclasses.replace(ALGORITHM, micro_batches=3)
    step = make_step(MODEL, optax.sgd(0.1), algorithm, even_tokens)
    with pytest.raises(ValueError, match="4 prompts can't be split into 3"):
        step(init_state(params(), optax.sgd(0.1)), batch(), KEY, None)


def test_the_group_baseline_leaves_a_prompt_without_spread_alone():
    rewards = jnp.array([[1.0, 1.0], [0.0, 1.0]])
    modes = jnp.zeros((2, 2), jnp.int32)
    group = advantages(dataclasses.replace(ALGORITHM, baseline="group"), rewards, modes)
    whole = advantages(ALGORITHM, rewards, modes)
    np.testing.assert_allclose(group[:2], 0.0)
    assert (np.asarray(whole[:2]) > 0).all()


BASELINES = ("group", "batch", "shrinkage")
REWARDS = jnp.array([[1, 0, 0.5, 2, 1, 0, 0, 1], [0, 1, 0, 0, 1, 1, 1, 2]], jnp.float32)
SEVEN_TO_ONE = jnp.array([[1, 1, 1, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 1]], jnp.int32)


def with_ifpo(baseline="group", **constants):
    ifpo = InverseFrequency(**constants)
    return dataclasses.replace(ALGORITHM, baseline=baseline, inverse_frequency=ifpo)


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("scope", ["group", "batch"])
@pytest.mark.parametrize("mode", [0, 1])
def test_with_one_mode_ifpo_is_the_plain_baseline_to_the_bit(baseline, scope, mode):
    modes = jnp.full((2, 8), mode, jnp.int32)
    plain = advantages(dataclasses.replace(ALGORITHM, baseline=baseline), REWARDS, modes)
    ifpo = advantages(with_ifpo(baseline, scope=scope), REWARDS, modes)
    np.testing.assert_array_equal(ifpo, plain)


@pytest.mark.parametrize("baseline", BASELINES)
def test_modes_seven_to_one_weigh_the_same_before_the_cap(baseline):
    """Eight samples, two modes: each mode's weights add up to 4, the rare one's alone."""
    plain = advantages(dataclasses.replace(ALGORITHM, baseline=baseline), REWARDS, SEVEN_TO_ONE)
    weighed = advantages(with_ifpo(baseline), REWARDS, SEVEN_TO_ONE)
    rare = np.array([[0, 0, 0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1]], bool).reshape(-1)
    shared = np.repeat(np.asarray(plain).reshape(2, 8).mean(axis=1), 8)  # 0 for "group"
    expected = shared + (plain - shared) * np.where(rare, 4.0, 4 / 7)
    np.testing.assert_allclose(weighed, expected, atol=1e-5)
    capped = advantages(with_ifpo(baseline, max_weight=2.0), REWARDS, SEVEN_TO_ONE)
    expected = shared + (plain - shared) * np.where(rare, 2.0, 4 / 7)
    np.testing.assert_allclose(capped, expected, atol=1e-5)


@pytest.mark.parametrize("baseline", BASELINES)
def test_ifpo_does_not_move_modes_that_are_equally_good(baseline):
    """A hard and an easy prompt, rewards that do not depend on the mode: no pull on its logit."""
    keys = jax.random.split(jax.random.key(0), 4)
    shape, p = (2, 4000, 4), 0.8
    success = jnp.array([0.3, 0.9])[:, None, None]
    rewards = (jax.random.uniform(keys[0], shape) < success).astype(jnp.float32)
    modes = (jax.random.uniform(keys[1], shape) < p).astype(jnp.int32)
    pairs = jax.vmap(functools.partial(advantages, with_ifpo(baseline)), in_axes=1)
    advantage = pairs(rewards, modes).reshape(4000, 2, 4)
    pull = (advantage * (modes.swapaxes(0, 1) - p)).mean(axis=2)
    error = np.asarray(pull.std(axis=0)) / np.sqrt(4000)
    assert (np.abs(pull.mean(axis=0)) < 4 * error).all()


def test_the_baseline_form_weighs_the_modes_means_alike():
    """Of the first prompt: the seven's mean is 1/2, the one's 2, so the baseline is 5/4."""
    algorithm = dataclasses.replace(with_ifpo(form="baseline"), scale_advantages=False)
    advantage = advantages(algorithm, REWARDS, SEVEN_TO_ONE)
    np.testing.assert_allclose(advantage[:8], np.asarray(REWARDS[0]) - 1.25, atol=1e-6)
    with pytest.raises(ValueError, match="excludes the baseline 'batch'"):
        advantages(with_ifpo("batch", form="baseline"), REWARDS, SEVEN_TO_ONE)
