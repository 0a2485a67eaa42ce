"""The step: fused equals split, micro-batches change nothing, one compilation, a guarded update."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_model import random_params

from jaxalign.engine.baselines import WholeBatch
from jaxalign.engine.gradients import descend
from jaxalign.engine.objective import GRPO
from jaxalign.engine.optimizer import skip_nonfinite, skipped_updates
from jaxalign.engine.penalties import K2
from jaxalign.engine.ppo import PPO, with_critic
from jaxalign.engine.reductions import SequenceMean, TokenMean
from jaxalign.engine.state import init_state
from jaxalign.engine.step import Frozen, Sampling, Updates, draw, make_step, update_once
from jaxalign.models import ModelConfig, Transformer, plain_decoder
from jaxalign.records import Batch, Prompts
from jaxalign.rewards import device_reward, host_reward
from jaxalign.sampling import Temperature

CONFIG = ModelConfig(
    vocab_size=61, num_layers=2, model_dim=16, num_heads=4, num_kv_heads=2, head_dim=4, mlp_dim=32
)
MODEL = Transformer(CONFIG, dtype=jnp.float32)
SAMPLING = Sampling(samples_per_prompt=4, max_new_tokens=6, stop=(2,), method=Temperature(0.9))
OBJECTIVE = GRPO(advantages=WholeBatch())
KEY = jax.random.key(7)
ADAM = optax.adam(1e-3)


def params():
    return random_params(CONFIG)


def batch(seed: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    lengths = np.array([3, 5, 1, 4])
    return Batch(
        Prompts(
            tokens=jnp.asarray(rng.integers(3, 61, (4, 5)), jnp.int32),
            mask=jnp.asarray(np.arange(5) < lengths[:, None]),
        ),
        prefix=jnp.asarray([5, 6, 7], jnp.int32),
    )


def even_tokens(batch, samples):
    """A reward to learn: the share of even tokens among those generated. For either array kind."""
    even = (samples.tokens % 2 == 0) & samples.mask
    return even.sum(axis=1) / samples.mask.sum(axis=1).clip(1)


EVEN = Frozen(device_reward(even_tokens))


def step_of(optimizer, objective=OBJECTIVE, **updates):
    return make_step(
        MODEL, optimizer, sampling=SAMPLING, objective=objective, updates=Updates(**updates)
    )


def largest_difference(left, right) -> float:
    return max(
        float(jnp.max(jnp.abs(a - b)))
        for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    )


@pytest.fixture(scope="module")
def adam_step():
    """Compiled once for this module."""
    return step_of(ADAM)


def test_fused_and_split_paths_give_the_same_parameters_after_three_steps(adam_step):
    """A reward on the host splits the step in two compiled programs."""
    state, split_state = init_state(params(), ADAM), init_state(params(), ADAM)
    for step in range(3):
        state, result = adam_step(state, batch(step), KEY, EVEN)
        on_host = Frozen(host_reward(even_tokens))
        split_state, split_result = adam_step(split_state, batch(step), KEY, on_host)
        np.testing.assert_array_equal(result.samples.tokens, split_result.samples.tokens)
    assert largest_difference(state.params, split_state.params) < 1e-6
    assert largest_difference(state.params, params()) > 1e-3
    assert adam_step.rollout._cache_size() == adam_step.learn._cache_size() == 1


@pytest.mark.parametrize("aggregation", [TokenMean(), SequenceMean()], ids=repr)
def test_micro_batches_change_nothing(aggregation):
    optimizer = optax.sgd(0.1)
    objective = GRPO(WholeBatch(), kl=K2(0.1), aggregation=aggregation)
    reference = jax.tree.map(lambda x: 1.1 * x, params())
    samples = draw(MODEL, SAMPLING, params(), batch(), KEY)
    scored = EVEN.reward(batch(), samples)

    @functools.partial(jax.jit, static_argnums=1)
    def learned(state, parts):
        experience, _ = objective.experience(
            MODEL, state.params, batch(), samples, scored, base=reference, parts=parts
        )
        return update_once(MODEL, optimizer, objective, state, experience, micro_batches=parts)

    results = [learned(init_state(params(), optimizer), parts) for parts in (1, 4)]
    (whole, first), (state, metrics) = results
    assert largest_difference(whole.params, params()) > 1e-4
    assert largest_difference(whole.params, state.params) < 1e-6
    for name in ("loss", "kl", "logp_gap", "clip_low", "clip_high"):
        np.testing.assert_allclose(metrics[name], first[name], atol=1e-6)


@pytest.mark.parametrize(
    "objective",
    [GRPO(WholeBatch(), kl=K2(0.1)), GRPO(WholeBatch(), aggregation=SequenceMean()), PPO()],
    ids=["tokens", "sequences", "ppo"],
)
def test_completions_that_share_rows_change_nothing(objective):
    """Nor does it matter into how many trips the rows are parted; a trip computes few places."""
    optimizer = optax.sgd(0.1)
    reference = jax.tree.map(lambda x: 1.1 * x, params()) if objective.kl else None
    samples = draw(MODEL, SAMPLING, params(), batch(), KEY)
    scored = EVEN.reward(batch(), samples)
    begin = with_critic(MODEL, params()) if isinstance(objective, PPO) else params()

    @functools.partial(jax.jit, static_argnums=(1, 2))
    def learned(state, micro_batches, packed):
        experience, _ = objective.experience(
            MODEL, state.params, batch(), samples, scored, base=reference, parts=1
        )
        more = {"base": reference, "micro_batches": micro_batches, "packed": packed}
        return update_once(MODEL, optimizer, objective, state, experience, **more)

    whole, first = learned(init_state(begin, optimizer), 1, False)
    assert largest_difference(whole.params, begin) > 1e-4
    for micro_batches in (1, 4):
        state, metrics = learned(init_state(begin, optimizer), micro_batches, True)
        assert largest_difference(whole.params, state.params) < 1e-6
        assert 1.0 <= float(metrics.pop("places_per_token")) < 4.0
        assert metrics.keys() == first.keys()
        for name in metrics:
            np.testing.assert_allclose(metrics[name], first[name], atol=1e-5)


def test_shared_rows_compile_once_whatever_is_drawn():
    step = step_of(ADAM, packed=True)
    state = init_state(params(), ADAM)
    for seed in range(3):
        state, _ = step(state, batch(seed), KEY, EVEN)
    assert step.whole._cache_size() == 1


def test_a_decoder_that_cannot_share_rows_is_told_so():
    model = plain_decoder(lambda params, tokens, mask: params[tokens], max_positions=20)
    step = make_step(
        model, ADAM, sampling=SAMPLING, objective=OBJECTIVE, updates=Updates(packed=True)
    )
    with pytest.raises(ValueError, match="packed: a PlainDecoder is no SharingDecoder"):
        step(init_state(jnp.zeros((61, 61)), ADAM), batch(), KEY, EVEN)


def test_a_second_batch_of_the_same_bucket_compiles_nothing(adam_step):
    state = init_state(params(), ADAM)
    for seed in range(3):
        state, _ = adam_step(state, batch(seed), KEY, EVEN)
    assert adam_step.whole._cache_size() == 1


def test_the_policy_learns_what_is_rewarded():
    optimizer = optax.adam(1e-2)
    step = step_of(optimizer)
    state, key = init_state(params(), optimizer), jax.random.key(2)
    rewards = []
    for seed in range(40):
        state, result = step(state, batch(seed), key, EVEN)
        rewards.append(float(result.metrics["reward"]))
    assert np.mean(rewards[:3]) < 0.65
    assert np.mean(rewards[-3:]) > 0.9


def test_training_logps_are_the_samplers(adam_step):
    _, result = adam_step(init_state(params(), ADAM), batch(), KEY, EVEN)
    assert float(result.metrics["logp_gap"]) < 1e-4


def broken(batch, samples):
    return jnp.full((4, 4), jnp.nan)


def test_a_gradient_that_is_not_finite_changes_nothing_but_the_counters():
    optimizer = skip_nonfinite(ADAM)
    state = init_state(params(), optimizer)
    after, result = step_of(optimizer)(state, batch(), KEY, Frozen(device_reward(broken)))
    assert int(after.step) == 1 and int(skipped_updates(after.opt_state)) == 1
    assert float(result.metrics["skipped_updates"]) == 1
    assert largest_difference(after.params, params()) == 0
    assert int(after.opt_state.inner[0].count) == 0


def test_an_optimizer_without_the_guard_skips_nothing():
    state = init_state(params(), ADAM)
    after, result = step_of(ADAM)(state, batch(), KEY, Frozen(device_reward(broken)))
    assert float(result.metrics["skipped_updates"]) == 0
    assert int(after.opt_state[0].count) == 1
    assert jnp.isnan(after.params["final_norm"]["scale"]).all()


def test_the_kl_pulls_towards_the_reference_and_needs_one():
    optimizer = optax.sgd(1.0)
    free_step = step_of(optimizer)
    pulled_step = step_of(optimizer, GRPO(WholeBatch(), kl=K2(0.1)))

    def take(step, reference):
        frozen = Frozen(EVEN.reward, base=reference)
        return step(init_state(params(), optimizer), batch(), KEY, frozen)

    free, _ = take(free_step, None)
    same, same_result = take(pulled_step, params())
    other, other_result = take(pulled_step, jax.tree.map(lambda x: 1.2 * x, params()))
    assert float(same_result.metrics["kl"]) < 1e-8 < float(other_result.metrics["kl"])
    assert largest_difference(free.params, same.params) < 1e-5
    assert largest_difference(free.params, other.params) > 1e-4
    with pytest.raises(ValueError, match="exactly when the objective has a kl"):
        take(pulled_step, None)
    with pytest.raises(ValueError, match="exactly when the objective has a kl"):
        take(free_step, params())


def test_prompts_that_micro_batches_do_not_divide_are_refused():
    step = step_of(optax.sgd(0.1), micro_batches=3)
    with pytest.raises(ValueError, match="4 prompts can't be split into 3"):
        step(init_state(params(), optax.sgd(0.1)), batch(), KEY, EVEN)


def temporaries(optimizer) -> float:
    """What one update of 16 MB of parameters holds beside them, in units of them."""
    params = {f"w{i}": jnp.zeros((1024, 512)) for i in range(8)}

    def linear(params, x):
        return optax.tree.vdot(params, x), {}  # whose gradient is x

    update = jax.jit(lambda state, x: descend(None, optimizer, state, linear, x), donate_argnums=0)
    compiled = update.lower(init_state(params, optimizer), params).compile()
    size = sum(x.nbytes for x in params.values())
    return compiled.memory_analysis().temp_size_in_bytes / size


def test_the_guard_holds_no_second_copy_of_the_parameters():
    """f049777 decided after the update and held 4.0 times the parameters."""
    adam = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    assert temporaries(skip_nonfinite(adam)) < 1.5


def test_an_objective_need_not_log_anything():
    """Several updates to a rollout average what there is."""

    class Bare:
        experience = OBJECTIVE.experience

        def loss(self, *arguments):
            return OBJECTIVE.loss(*arguments)[0], {}

    step = make_step(
        MODEL, ADAM, sampling=SAMPLING, objective=Bare(), updates=Updates(epochs=2, minibatches=2)
    )
    _, result = step(init_state(params(), ADAM), batch(), KEY, EVEN)
    assert float(result.metrics["grad_norm"]) > 0 and "logp_gap" not in result.metrics
