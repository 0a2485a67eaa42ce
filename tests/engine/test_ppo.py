"""PPO in the step: a critic's advantages by hand, its gradients by hand, and a task it learns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_model import random_params

from jaxalign.engine.baselines import InverseFrequency
from jaxalign.engine.epochs import minibatch_prompts, take_prompts
from jaxalign.engine.experience import Experience, experience_of
from jaxalign.engine.objective import GRPO
from jaxalign.engine.optimizer import skip_nonfinite, skipped_updates, with_critic_optimizer
from jaxalign.engine.ppo import PPO, completion_values, token_advantages, with_critic
from jaxalign.engine.reductions import Finished, Totals
from jaxalign.engine.state import init_state
from jaxalign.engine.step import Frozen, Sampling, Updates, make_step, update_once
from jaxalign.losses import aggregate, clipped_surrogate, gae, value_loss, whiten
from jaxalign.models import ModelConfig, Transformer
from jaxalign.records import Batch, Prompts, Rollout, Score
from jaxalign.rewards import device_reward
from jaxalign.runs.checkpoint import Checkpoints
from jaxalign.sampling import Temperature

CONFIG = ModelConfig(
    vocab_size=16, num_layers=2, model_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32
)
MODEL = Transformer(CONFIG, dtype=jnp.float32)
N, G, T = 8, 8, 3
SAMPLING = Sampling(G, T, (2,), Temperature(1.0))
UPDATES = Updates(epochs=2, minibatches=2)
KEY = jax.random.key(7)
OPTIMIZER = skip_nonfinite(with_critic_optimizer(optax.adam(5e-3), optax.adam(1e-2)))

# The bandit: the prompt's token tells which first token is right. Half of the prompts cost 1,
# whatever is answered: no policy can help it, and a critic can learn it.
PROMPTS = Prompts(
    jnp.asarray([[3], [4], [5], [6], [3], [4], [5], [6]], jnp.int32), jnp.ones((N, 1), bool)
)
RIGHT = jnp.asarray([7, 8, 9, 10, 7, 8, 9, 10], jnp.int32)
COST = jnp.asarray([0, 1, 0, 1, 0, 1, 0, 1], jnp.float32)
BATCH = Batch(PROMPTS, facts=(RIGHT, COST))


def params():
    return random_params(CONFIG)


def bandit(batch, samples):
    right, cost = (jnp.repeat(x, G) for x in batch.facts)
    return (samples.tokens[:, 0] == right) - cost


FROZEN = Frozen(device_reward(bandit))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Given:
    """Rewards `[B]` that are what they are, whatever the completions."""

    rewards: jax.Array

    def __call__(self, batch, samples):
        return Score(self.rewards.reshape(N, G))


@pytest.fixture(scope="module")
def fused():
    """The whole step, compiled once for this module."""
    return make_step(MODEL, OPTIMIZER, sampling=SAMPLING, objective=PPO(), updates=UPDATES)


def start(optimizer=OPTIMIZER):
    """Where a restored state will be too, so that both take one compilation."""
    state = init_state(with_critic(MODEL, params()), optimizer)
    return jax.device_put(state, jax.devices()[0])


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


class Says:
    """In a model's place: its states are values, which a head of 1 leaves as they are."""

    def __init__(self, values):
        self.values = values

    def states(self, params, prompts, prompt_mask, tokens, mask, *, prefix=None):
        return self.values[..., None]


def one_row(values, mask, reward, **constants):
    """What PPO makes of one completion with these values."""
    no = jnp.zeros(1, bool)
    samples = Rollout(jnp.zeros((1, 3), jnp.int32), mask, mask | True, values, no, no, no)
    batch = Batch(Prompts(jnp.ones((1, 1), jnp.int32), jnp.ones((1, 1), bool)))
    params = {"policy": None, "critic": {"trunk": None, "head": jnp.ones((1, 1))}}
    return PPO(**constants).experience(
        Says(values), params, batch, samples, Score(jnp.array([[reward]])), base=None, parts=1
    )


def test_a_reward_on_the_last_token_by_hand():
    """γ = λ = ½, reward 3, a tool's answer in the middle, whose 9 is skipped.

    δ = (0 + ½·2 − 1, 3 − 2) = (0, 1);  A = (0 + ¼·1, 1);  returns A + V = (1.25, 3)
    """
    values, mask = jnp.array([[1.0, 9.0, 2.0]]), jnp.array([[True, False, True]])
    halves = {"discount": 0.5, "lambda_": 0.5}
    advantages, returns = token_advantages(jnp.array([3.0]), values, mask, **halves)
    np.testing.assert_allclose(advantages, [[0.25, 0.0, 1.0]])
    np.testing.assert_allclose(returns, [[1.25, 0.0, 3.0]])

    experience, metrics = one_row(values, mask, 3.0, whiten=False, **halves)
    np.testing.assert_allclose(experience.rows.advantages, advantages)
    for got, wanted in zip(experience.rows.more, (values, returns), strict=True):
        np.testing.assert_allclose(got, wanted)
    # Returns vary by ±0.875, what the values leave of them, (0.25, 1), by ±0.375.
    np.testing.assert_allclose(metrics["explained_variance"], 1 - (0.375 / 0.875) ** 2, rtol=1e-6)
    whitened, _ = one_row(values, mask, 3.0, whiten=True, **halves)
    expected = [[-(0.5**0.5), 0.0, 0.5**0.5]]
    np.testing.assert_allclose(whitened.rows.advantages, expected, rtol=1e-6)
    np.testing.assert_allclose(whitened.rows.more[1], returns)


def test_the_critics_loss_by_hand():
    """Clip 0.2: 1.5 is near its return 1.25; 2.5 counts as 2.2, so 0.8 from its return 3."""
    old, mask = jnp.array([[1.0, 9.0, 2.0]]), jnp.array([[True, False, True]])
    part, _ = one_row(old, mask, 3.0, discount=0.5, lambda_=0.5)
    values, totals = jnp.array([[1.5, 50.0, 2.5]]), Totals.of(mask)
    loss, metrics = PPO(value_clip=0.2).critic_loss(values, part, totals)
    np.testing.assert_allclose(loss, 0.5 * (0.25**2 + 0.8**2) / 2, rtol=1e-6)
    assert float(metrics["value_loss"]) == float(loss)
    assert float(metrics["value_clip_fraction"]) == 0.5
    plain, metrics = PPO(value_clip=None).critic_loss(values, part, totals)
    np.testing.assert_allclose(plain, 0.5 * (0.25**2 + 0.5**2) / 2, rtol=1e-6)
    assert metrics.keys() == {"value_loss"}


def test_a_completion_that_is_left_out_teaches_neither():
    values, mask = jnp.array([[1.0, 9.0, 2.0]]), jnp.array([[True, False, True]])
    part, _ = one_row(values, mask, 3.0, keep=Finished())
    assert not part.rows.mask.any() and not part.rows.advantages.any()
    loss, _ = PPO().critic_loss(values + 1, part, Totals.of(part.rows.mask))
    assert float(loss) == 0


@pytest.mark.parametrize("micro_batches", [1, 4])
def test_one_update_has_the_gradients_of_the_losses(micro_batches):
    """One epoch, one minibatch, SGD at rate 1: the parameters move by the gradients."""
    optimizer = with_critic_optimizer(optax.sgd(1.0), optax.sgd(1.0))
    samples = random_samples()
    rewards = jnp.asarray(np.random.default_rng(1).normal(size=N * G), jnp.float32)
    head = jnp.asarray(np.random.default_rng(2).normal(size=(1, CONFIG.model_dim)), jnp.float32)
    trained = with_critic(MODEL, params())
    trained["critic"]["head"] = head  # a critic that has learned

    def by_hand(trained):
        part, mask = experience_of(BATCH, samples, rewards), samples.mask
        values = completion_values(MODEL, trained["critic"], part)
        ends = np.array([np.flatnonzero(row).max(initial=-1) for row in np.asarray(mask)])
        placed = jnp.where(jnp.arange(T) == ends[:, None], rewards[:, None], 0.0)
        advantage, returns = gae(placed, values, mask, discount=1.0, lambda_=0.95)
        given = (PROMPTS.tokens, PROMPTS.mask, samples.tokens, samples.present)
        logps = MODEL.logps(trained["policy"], *given)
        surrogate = clipped_surrogate(logps, samples.logps, whiten(advantage, mask), mask=mask)
        old = jax.lax.stop_gradient(values)
        error = value_loss(values, old, returns, clip=0.2, mask=mask)
        return aggregate(surrogate, mask) + aggregate(error, mask)

    gradients = jax.jit(jax.grad(by_hand))(trained)
    step = make_step(
        MODEL,
        optimizer,
        sampling=SAMPLING,
        objective=PPO(),
        updates=Updates(micro_batches=micro_batches),
    )
    state = init_state(trained, optimizer)
    after, result = step.learn(state, BATCH, samples, KEY, Frozen(Given(rewards)))
    moved = jax.tree.map(jnp.subtract, trained, after.params)
    assert largest_difference(moved, gradients) < 1e-5
    for name, part in (("grad_norm", "policy"), ("critic_grad_norm", "critic")):
        norm = optax.tree.norm(gradients[part])
        np.testing.assert_allclose(result.metrics[name], norm, rtol=1e-4)
        assert float(result.metrics[name]) > 0.01


def test_a_bandit_is_learned_and_the_critic_learns_what_it_pays(fused):
    """The optimum pays 1 − cost: near it after 60 steps of two epochs of two minibatches."""

    def expected_reward(state) -> float:
        """Exactly, not from samples."""
        tokens, mask = RIGHT[:, None], jnp.ones((N, 1), bool)
        logps = MODEL.logps(state.policy, PROMPTS.tokens, PROMPTS.mask, tokens, mask)
        return float(jnp.mean(jnp.exp(logps[:, 0]) - COST))

    state, history = start(), []
    best = 1.0 - float(COST.mean())
    assert expected_reward(state) < 0.15 - float(COST.mean())
    for _ in range(60):
        state, result = fused(state, BATCH, KEY, FROZEN)
        history.append(jax.device_get(result.metrics))
    assert best - 0.05 < expected_reward(state) < best
    losses, explained = (
        [m[name] for m in history] for name in ("value_loss", "explained_variance")
    )
    assert np.mean(losses[-5:]) < 0.1 * np.mean(losses[:5])
    assert abs(explained[0]) < 1e-6, "a new critic says 0 everywhere"
    assert np.mean(explained[-5:]) > 0.9
    assert int(state.step) == 60 and int(skipped_updates(state.opt_state)) == 0
    assert fused.whole._cache_size() == 1


def test_fused_and_split_paths_give_the_same_parameters(fused):
    """The step's two halves by hand, the rollout seen by the host in between."""
    state, split = start(), start()
    for _ in range(2):
        state, result = fused(state, BATCH, KEY, FROZEN)
        samples = jax.device_get(fused.rollout(split, BATCH, KEY))
        split, _ = fused.learn(split, BATCH, samples, KEY, FROZEN)
        np.testing.assert_array_equal(result.samples.tokens, samples.tokens)
    assert largest_difference(state, split) < 1e-5
    assert largest_difference(state.params["critic"], start().params["critic"]) > 1e-3


def test_a_resumed_run_ends_with_the_same_bits(fused, tmp_path):
    """Two steps, a checkpoint, two more; the critic and its moments are in it."""
    state = start()
    for _ in range(2):
        state, _ = fused(state, BATCH, KEY, FROZEN)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, root_key=KEY, config={}, wait=True)
    for _ in range(2):
        state, _ = fused(state, BATCH, KEY, FROZEN)
    with Checkpoints(tmp_path) as checkpoints:
        resumed, key = checkpoints.restore(start(), config={})
    assert int(resumed.step) == 2
    for _ in range(2):
        resumed, _ = fused(resumed, BATCH, key, FROZEN)
    jax.tree.map(np.testing.assert_array_equal, resumed, state)
    assert fused.whole._cache_size() == 1


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
    objective, optimizer = GRPO(advantages=lambda rewards: rewards), optax.adam(5e-3)
    samples = random_samples()
    advantage = jnp.asarray(np.random.default_rng(1).normal(size=N * G), jnp.float32)
    state = init_state(params(), optimizer)
    step = make_step(MODEL, optimizer, sampling=SAMPLING, objective=objective, updates=UPDATES)
    after, result = step.learn(
        jax.tree.map(jnp.copy, state), BATCH, samples, KEY, Frozen(Given(advantage))
    )

    one = jax.jit(functools.partial(update_once, MODEL, optimizer, objective))
    rows = experience_of(BATCH, samples, advantage).rows
    losses, by_hand = [], state
    key = jax.random.fold_in(jax.random.fold_in(KEY, 0), 1)  # of step 0, for the order
    orders = minibatch_prompts(key, N, epochs=2, minibatches=2)
    for chosen in orders:
        by_hand, of_one = one(by_hand, Experience(take_prompts(rows, N, chosen), None))
        losses.append(float(of_one["loss"]))
    assert largest_difference(after.params, by_hand.params) < 1e-5
    np.testing.assert_allclose(result.metrics["loss"], np.mean(losses), rtol=1e-4, atol=1e-6)
    assert int(after.step) == 1 and int(after.opt_state[0].count) == 4


@pytest.mark.parametrize("broken", ["policy", "critic"])
def test_what_is_not_finite_in_one_holds_both_back(broken):
    class Broken:
        """PPO with a gradient of one part that is not a number."""

        experience = PPO().experience

        def loss(self, model, params, part, totals):
            loss, metrics = PPO().loss(model, params, part, totals)
            return loss + float("nan") * jax.tree.leaves(params[broken])[0].sum(), metrics

    optimizer = skip_nonfinite(with_critic_optimizer(optax.adam(0.1), optax.adam(0.1)))
    step = make_step(
        MODEL, optimizer, sampling=SAMPLING, objective=Broken(), updates=Updates(minibatches=2)
    )
    state, rewards = start(optimizer), jnp.arange(N * G, dtype=jnp.float32)
    after, result = step.learn(
        start(optimizer), BATCH, random_samples(), KEY, Frozen(Given(rewards))
    )
    skipped = int(skipped_updates(after.opt_state))
    assert skipped == int(result.metrics["skipped_updates"]) == 2, "one of each minibatch"
    assert int(after.step) == 1
    assert largest_difference(after.params, state.params) == 0
    assert largest_difference(after.opt_state.inner, state.opt_state.inner) == 0


def test_ifpo_rebalances_samples_not_tokens():
    with pytest.raises(TypeError, match="unexpected keyword argument 'adjust'"):
        PPO(adjust=InverseFrequency())


def test_what_does_not_fit_together_is_refused():
    def learn(trained, objective, updates=Updates()):  # noqa: B008
        optimizer = optax.sgd(0.1)
        step = make_step(MODEL, optimizer, sampling=SAMPLING, objective=objective, updates=updates)
        frozen = Frozen(Given(jnp.ones(N * G)))
        step.learn(init_state(trained, optimizer), BATCH, random_samples(), KEY, frozen)

    with pytest.raises(ValueError, match="PPO trains a critic too"):
        learn(params(), PPO())
    with pytest.raises(ValueError, match="the state has a critic, which GRPO would not train"):
        learn(with_critic(MODEL, params()), GRPO())
    with pytest.raises(ValueError, match="8 prompts can't be split into 3 minibatches"):
        learn(params(), GRPO(), Updates(minibatches=3))
