"""PPO in the step: a critic's advantages by hand, its gradients by hand, and a task it learns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_model import random_params

from jaxalign.engine.critic import Estimate, critic_loss, estimate_advantages
from jaxalign.engine.epochs import minibatch_prompts, take_prompts
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
from jaxalign.losses import (
    aggregate,
    clipped_surrogate,
    gae,
    leave_one_out_advantages,
    value_loss,
    whiten,
)
from jaxalign.models import ModelConfig, Transformer, completion_logps
from jaxalign.models.values import completion_values, critic_of
from jaxalign.records import Batch, Rollout, Score
from jaxalign.runs.checkpoint import Checkpoints
from jaxalign.sampling import Temperature

CONFIG = ModelConfig(
    vocab_size=16, num_layers=2, model_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32
)
MODEL = Transformer(CONFIG, dtype=jnp.float32)
CRITIC = critic_of(MODEL)
N, G, T = 8, 8, 3
PPO = Algorithm(G, T, (2,), Temperature(1.0), baseline="critic", epochs=2, minibatches=2)
KEY = jax.random.key(7)
OPTIMIZER, FASTER = optax.adam(5e-3), optax.adam(1e-2)

# The bandit: the prompt's token tells which first token is right. Half of the prompts cost 1,
# whatever is answered: no policy can help it, and a critic can learn it.
PROMPTS = jnp.asarray([[3], [4], [5], [6], [3], [4], [5], [6]], jnp.int32)
RIGHT = jnp.asarray([7, 8, 9, 10, 7, 8, 9, 10], jnp.int32)
COST = jnp.asarray([0, 1, 0, 1, 0, 1, 0, 1], jnp.float32)
BATCH = Batch(PROMPTS, jnp.ones((N, 1), bool), extras=(RIGHT, COST))


def params():
    return random_params(CONFIG)


def bandit(reward_params, batch, samples) -> Score:
    right, cost = (jnp.repeat(x, G) for x in batch.extras)
    rewards = (samples.tokens[:, 0] == right) - cost
    return Score(rewards.reshape(-1, G), {}, {})


@pytest.fixture(scope="module")
def fused():
    """The whole step, compiled once for this module."""
    return make_step(MODEL, OPTIMIZER, PPO, bandit, FASTER)


def start():
    """Where a restored state will be too, so that both take one compilation."""
    return jax.device_put(init_state(params(), OPTIMIZER, FASTER), jax.devices()[0])


def largest_difference(left, right) -> float:
    return max(
        float(jnp.max(jnp.abs(a - b)))
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    )


def random_samples(groups: int = N, seed: int = 0) -> Rollout:
    """Completions with tools' answers: tokens that exist and were not generated."""
    rng = np.random.default_rng(seed)
    rows = groups * G
    mask = rng.random((rows, T)) < 0.8
    no = jnp.zeros(rows, bool)
    return Rollout(
        tokens=jnp.asarray(rng.integers(3, 16, (rows, T)), jnp.int32),
        mask=jnp.asarray(mask),
        present=jnp.ones((rows, T), bool),
        logps=jnp.asarray(np.where(mask, rng.normal(-2.5, 0.3, (rows, T)), 0.0), jnp.float32),
        mode=no.astype(jnp.int32),
        finished=no,
        cut=no,
    )


def test_a_reward_on_the_last_token_by_hand():
    """γ = λ = ½, reward 3, a tool's answer in the middle, whose 9 is skipped.

    δ = (0 + ½·2 − 1, 3 − 2) = (0, 1);  A = (0 + ¼·1, 1);  returns A + V = (1.25, 3)
    """
    values, mask = jnp.array([[1.0, 9.0, 2.0]]), jnp.array([[True, False, True]])
    by_hand = functools.partial(estimate_advantages, jnp.array([3.0]), values, mask)
    estimate, metrics = by_hand(discount=0.5, lambda_=0.5, scale=False)
    np.testing.assert_allclose(estimate.advantages, [[0.25, 0.0, 1.0]])
    np.testing.assert_allclose(estimate.returns, [[1.25, 0.0, 3.0]])
    # Returns vary by ±0.875, what the values leave of them, (0.25, 1), by ±0.375.
    np.testing.assert_allclose(metrics["explained_variance"], 1 - (0.375 / 0.875) ** 2, rtol=1e-6)
    whitened, _ = by_hand(discount=0.5, lambda_=0.5, scale=True)
    np.testing.assert_allclose(whitened.advantages, [[-(0.5**0.5), 0.0, 0.5**0.5]], rtol=1e-6)
    np.testing.assert_allclose(whitened.returns, estimate.returns)


def test_the_critics_loss_by_hand():
    """Clip 0.2: 1.5 is near its return 1.25; 2.5 counts as 2.2, so 0.8 from its return 3."""
    estimate = Estimate(
        advantages=jnp.zeros((1, 3)),
        values=jnp.array([[1.0, 9.0, 2.0]]),
        returns=jnp.array([[1.25, 0.0, 3.0]]),
    )
    values, mask = jnp.array([[1.5, 50.0, 2.5]]), jnp.array([[True, False, True]])
    loss, metrics = critic_loss(values, estimate, mask, clip=0.2, normalizer=jnp.float32(2))
    np.testing.assert_allclose(loss, 0.5 * (0.25**2 + 0.8**2) / 2, rtol=1e-6)
    assert float(metrics["value_loss"]) == float(loss)
    assert float(metrics["value_clip_fraction"]) == 0.5
    plain, metrics = critic_loss(values, estimate, mask, clip=None, normalizer=jnp.float32(2))
    np.testing.assert_allclose(plain, 0.5 * (0.25**2 + 0.5**2) / 2, rtol=1e-6)
    assert metrics.keys() == {"value_loss"}


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_one_update_has_the_gradients_of_the_losses(micro_batches):
    """One epoch, one minibatch, SGD at rate 1: the parameters move by the gradients."""
    algorithm = dataclasses.replace(PPO, epochs=1, minibatches=1, micro_batches=micro_batches)
    optimizer = optax.sgd(1.0)
    samples = random_samples()
    rewards = jnp.asarray(np.random.default_rng(1).normal(size=N * G), jnp.float32)
    state = init_state(params(), optimizer, optimizer)
    head = jnp.asarray(np.random.default_rng(2).normal(size=(1, CONFIG.model_dim)), jnp.float32)
    theirs = state.critic.params | {"score": {"kernel": head}}  # a critic that has learned
    state = state.replace(critic=state.critic.replace(params=theirs))

    def by_hand(ours, theirs):
        given = (PROMPTS, BATCH.prompt_mask, samples.tokens, samples.present)
        mask = samples.mask
        values = completion_values(CRITIC, theirs, *given)
        ends = np.array([np.flatnonzero(row).max(initial=-1) for row in np.asarray(mask)])
        placed = jnp.where(jnp.arange(T) == ends[:, None], rewards[:, None], 0.0)
        advantage, returns = gae(placed, values, mask, discount=1.0, lambda_=0.95)
        logps = completion_logps(MODEL, ours, *given)
        surrogate = clipped_surrogate(logps, samples.logps, whiten(advantage, mask), mask=mask)
        old = jax.lax.stop_gradient(values)
        error = value_loss(values, old, returns, clip=0.2, mask=mask)
        return aggregate(surrogate, mask) + aggregate(error, mask)

    of_policy, of_critic = jax.jit(jax.grad(by_hand, (0, 1)))(state.params, theirs)
    step = functools.partial(update, MODEL, optimizer, algorithm, critic_optimizer=optimizer)
    after, metrics = jax.jit(step)(state, BATCH, samples, rewards)
    moved = jax.tree.map(jnp.subtract, state.params, after.params)
    assert largest_difference(moved, of_policy) < 1e-5
    moved = jax.tree.map(jnp.subtract, theirs, after.critic.params)
    assert largest_difference(moved, of_critic) < 1e-5
    for name, gradient in (("grad_norm", of_policy), ("critic_grad_norm", of_critic)):
        np.testing.assert_allclose(metrics[name], optax.tree.norm(gradient), rtol=1e-4)
        assert float(metrics[name]) > 0.01


def test_a_bandit_is_learned_and_the_critic_learns_what_it_pays(fused):
    """The optimum pays 1 − cost: near it after 60 steps of two epochs of two minibatches."""

    def expected_reward(state) -> float:
        """Exactly, not from samples."""
        tokens, mask = RIGHT[:, None], jnp.ones((N, 1), bool)
        logps = completion_logps(MODEL, state.params, PROMPTS, BATCH.prompt_mask, tokens, mask)
        return float(jnp.mean(jnp.exp(logps[:, 0]) - COST))

    state, history = start(), []
    best = 1.0 - float(COST.mean())
    assert expected_reward(state) < 0.15 - float(COST.mean())
    for _ in range(60):
        state, result = fused(state, BATCH, KEY, None)
        history.append(jax.device_get(result.metrics))
    assert best - 0.05 < expected_reward(state) < best
    losses, explained = (
        [m[name] for m in history] for name in ("value_loss", "explained_variance")
    )
    assert np.mean(losses[-5:]) < 0.1 * np.mean(losses[:5])
    assert abs(explained[0]) < 1e-6, "a new critic says 0 everywhere"
    assert np.mean(explained[-5:]) > 0.9
    assert int(state.step) == 60 and int(state.skipped) == 0
    assert fused._cache_size() == 1


def test_fused_and_split_paths_give_the_same_parameters(fused):
    state, split = start(), start()
    split_update = jax.jit(
        functools.partial(update, MODEL, OPTIMIZER, PPO, critic_optimizer=FASTER)
    )
    for _ in range(2):
        state, result = fused(state, BATCH, KEY, None)
        key = jax.random.fold_in(KEY, split.step)
        samples = rollout(MODEL, PPO, split.params, BATCH, key)
        _, rewards = score(bandit, PPO, None, BATCH, jax.device_get(samples))
        split, _ = split_update(split, BATCH, samples, rewards, key=key)
        np.testing.assert_array_equal(result.samples.tokens, samples.tokens)
    assert largest_difference(state, split) < 1e-5
    assert largest_difference(state.critic.params, start().critic.params) > 1e-3


def test_a_resumed_run_ends_with_the_same_bits(fused, tmp_path):
    """Two steps, a checkpoint, two more; the critic and its moments are in it."""
    state = start()
    for _ in range(2):
        state, _ = fused(state, BATCH, KEY, None)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, root_key=KEY, config={}, wait=True)
    for _ in range(2):
        state, _ = fused(state, BATCH, KEY, None)
    with Checkpoints(tmp_path) as checkpoints:
        resumed, key = checkpoints.restore(start(), config={})
    assert int(resumed.step) == 2
    for _ in range(2):
        resumed, _ = fused(resumed, BATCH, key, None)
    jax.tree.map(np.testing.assert_array_equal, resumed, state)
    assert fused._cache_size() == 1


def test_every_epoch_has_each_prompt_once_in_an_order_of_its_own():
    chosen = np.asarray(minibatch_prompts(KEY, 12, epochs=3, minibatches=4)).reshape(3, 12)
    np.testing.assert_array_equal(np.sort(chosen, axis=1), np.tile(np.arange(12), (3, 1)))
    assert len({tuple(order) for order in chosen}) == 3
    # Two prompts, three samples of each: samples stay with their prompt, and together.
    rows = {"prompt": jnp.array([[10], [20]]), "sample": jnp.array([10, 11, 12, 20, 21, 22])}
    taken = take_prompts(rows, 2, jnp.array([1, 0]))
    np.testing.assert_array_equal(taken["prompt"], [[20], [10]])
    np.testing.assert_array_equal(taken["sample"], [20, 21, 22, 10, 11, 12])


def test_minibatches_are_updates_one_after_the_other_without_a_critic_too():
    """Two epochs of two minibatches are four updates of GRPO, in the key's order."""
    algorithm = dataclasses.replace(PPO, baseline="group", epochs=2, minibatches=2)
    single = dataclasses.replace(algorithm, epochs=1, minibatches=1)
    samples = random_samples()
    advantage = jnp.asarray(np.random.default_rng(1).normal(size=N * G), jnp.float32)
    state = init_state(params(), OPTIMIZER)
    given = jax.jit(functools.partial(update, MODEL, OPTIMIZER, algorithm))
    after, metrics = given(state, BATCH, samples, advantage, key=KEY)

    one = jax.jit(functools.partial(update, MODEL, OPTIMIZER, single))
    prompts = (PROMPTS, BATCH.prompt_mask)
    losses, by_hand = [], state
    orders = minibatch_prompts(jax.random.fold_in(KEY, T), N, epochs=2, minibatches=2)
    for chosen in orders:
        part, rows, weights = take_prompts((prompts, samples, advantage), N, chosen)
        by_hand, of_one = one(by_hand, Batch(*part), rows, weights)
        losses.append(float(of_one["loss"]))
    assert largest_difference(after.params, by_hand.params) < 1e-5
    np.testing.assert_allclose(metrics["loss"], np.mean(losses), rtol=1e-4, atol=1e-6)
    assert int(after.step) == 1 and int(after.opt_state[0].count) == 4
    with pytest.raises(ValueError, match="pass the step's key"):
        given(state, BATCH, samples, advantage)


@pytest.mark.parametrize("broken", ["policy", "critic"])
def test_what_is_not_finite_in_one_holds_both_back(broken):
    rates = {"policy": 0.1, "critic": 0.1} | {broken: float("nan")}
    optimizer, critic_optimizer = optax.sgd(rates["policy"]), optax.sgd(rates["critic"])
    algorithm = dataclasses.replace(PPO, epochs=1)
    state = init_state(params(), optimizer, critic_optimizer)
    step = jax.jit(
        functools.partial(
            update, MODEL, optimizer, algorithm, critic_optimizer=critic_optimizer, key=KEY
        )
    )
    after, metrics = step(state, BATCH, random_samples(), jnp.arange(N * G, dtype=jnp.float32))
    assert int(after.skipped) == int(metrics["skipped_updates"]) == 2, "one of each minibatch"
    assert int(after.step) == 1
    assert largest_difference(after.params, state.params) == 0
    assert largest_difference(after.critic, state.critic) == 0


def test_one_argument_chooses_the_advantages():
    rewards = jnp.array([[1.0, 0.0, 0.5], [2.0, 2.0, 1.0]])
    modes = jnp.zeros((2, 3), jnp.int32)
    of = lambda **changes: advantages(  # noqa: E731
        dataclasses.replace(PPO, **changes), rewards, modes
    )
    np.testing.assert_array_equal(
        of(baseline="leave_one_out"), leave_one_out_advantages(rewards).reshape(-1)
    )
    np.testing.assert_array_equal(of(), rewards.reshape(-1))  # the critic comes in later
    with pytest.raises(ValueError, match="IFPO rebalances advantages of samples"):
        of(inverse_frequency=InverseFrequency())


def test_what_does_not_fit_together_is_refused():
    samples, rewards = random_samples(), jnp.ones(N * G)
    without, with_critic = init_state(params(), OPTIMIZER), start()
    call = functools.partial(update, MODEL, OPTIMIZER)
    group = dataclasses.replace(PPO, baseline="group")
    for algorithm, state, optimizer in (
        (PPO, without, OPTIMIZER),
        (PPO, with_critic, None),
        (group, with_critic, None),
        (group, without, OPTIMIZER),
    ):
        with pytest.raises(ValueError, match="exactly when baseline is"):
            call(algorithm, state, BATCH, samples, rewards, critic_optimizer=optimizer, key=KEY)
    thirds = dataclasses.replace(group, minibatches=3)
    with pytest.raises(ValueError, match="8 prompts can't be split into 3 minibatches"):
        call(thirds, without, BATCH, samples, rewards, key=KEY)
