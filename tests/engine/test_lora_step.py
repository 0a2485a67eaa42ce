"""A step that trains an adapter: the base stays, and is the reference as it is."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_step import (
    ADAM,
    CONFIG,
    EVEN,
    KEY,
    OBJECTIVE,
    SAMPLING,
    batch,
    even_tokens,
    largest_difference,
    params,
)

from jaxalign.engine.baselines import WholeBatch
from jaxalign.engine.objective import GRPO
from jaxalign.engine.optimizer import skip_nonfinite
from jaxalign.engine.penalties import K2
from jaxalign.engine.ppo import PPO, with_critic
from jaxalign.engine.state import complete, init_state
from jaxalign.engine.step import Frozen, Updates, draw, make_step
from jaxalign.models import Transformer
from jaxalign.models.lora import Lora, init_adapter, merge, on_base
from jaxalign.rewards import host_reward

LORA = Lora(rank=2, alpha=8.0)
MODEL = Transformer(CONFIG, dtype=jnp.float32, lora=LORA)
ON_BASE = Frozen(EVEN.reward, base=params())


def adapter():
    return init_adapter(CONFIG, LORA, jax.random.key(1))


def step_of(optimizer, objective=OBJECTIVE, **updates):
    return make_step(
        MODEL, optimizer, sampling=SAMPLING, objective=objective, updates=Updates(**updates)
    )


def test_only_the_adapter_and_its_moments_are_in_the_state():
    step, state = step_of(ADAM), init_state(adapter(), ADAM)
    state, first = step(state, batch(), KEY, ON_BASE)
    state, result = step(state, batch(1), KEY, ON_BASE)
    shapes = jax.tree.map(jnp.shape, adapter())
    assert jax.tree.map(jnp.shape, state.params) == shapes
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sum(x.size for x in moments) == 2 * sum(x.size for x in jax.tree.leaves(adapter()))
    assert largest_difference(state.params, adapter()) > 1e-4
    assert step.whole._cache_size() == 1
    # Sampler and training pass run the same unmerged products.
    assert max(float(r.metrics["logp_gap"]) for r in (first, result)) < 1e-6


def test_it_learns():
    optimizer = optax.adam(3e-2)
    step, state = step_of(optimizer), init_state(adapter(), optimizer)
    rewards = []
    for _ in range(30):
        state, result = step(state, batch(), KEY, ON_BASE)
        rewards.append(float(result.metrics["reward"]))
    assert np.mean(rewards[-5:]) > np.mean(rewards[:5]) + 0.2


def test_fused_and_split_paths_are_the_same():
    fused, state = step_of(ADAM), init_state(adapter(), ADAM)
    split = init_state(adapter(), ADAM)
    for number in range(2):
        state, result = fused(state, batch(number), KEY, ON_BASE)
        on_host = Frozen(host_reward(even_tokens), base=params())
        split, other = fused(split, batch(number), KEY, on_host)
        np.testing.assert_array_equal(result.samples.tokens, other.samples.tokens)
    assert largest_difference(state.params, split.params) < 1e-6


def test_a_full_update_by_sgd_that_a_large_rank_could_follow():
    """With B = 0 an update moves B by −η s ∂W Aᵀ: the same direction as a full model's ∂W."""
    optimizer, plain = optax.sgd(0.1), Transformer(CONFIG, dtype=jnp.float32)
    ours, _ = step_of(optimizer)(init_state(adapter(), optimizer), batch(), KEY, ON_BASE)
    whole = make_step(plain, optimizer, sampling=SAMPLING, objective=OBJECTIVE)
    full, _ = whole(init_state(params(), optimizer), batch(), KEY, EVEN)
    for group, name in (("attention", "query"), ("mlp", "down")):
        change = full.params["layers"][group][name] - params()["layers"][group][name]
        first = adapter()["adapter"]["layers"][group][name]["a"]
        due = LORA.scale * jnp.einsum("loi,lri->lor", change, first)
        moved = ours.params["adapter"]["layers"][group][name]["b"]
        np.testing.assert_allclose(moved, due, atol=1e-6)


def test_the_reference_is_the_base_exactly():
    step = step_of(ADAM, GRPO(WholeBatch(), kl=K2(0.1)))
    state, first = step(init_state(adapter(), ADAM), batch(), KEY, ON_BASE)
    assert float(first.metrics["kl"]) < 1e-9
    _, second = step(state, batch(), KEY, ON_BASE)
    assert float(second.metrics["kl"]) > 1e-7


def test_micro_batches_change_nothing():
    optimizer = optax.sgd(0.1)
    states = [
        step_of(optimizer, micro_batches=parts)(
            init_state(adapter(), optimizer), batch(), KEY, ON_BASE
        )[0]
        for parts in (1, 4)
    ]
    assert largest_difference(states[0].params, adapter()) > 1e-5
    assert largest_difference(states[0].params, states[1].params) < 1e-6


def test_ppo_trains_two_adapters_and_a_head_on_one_base():
    whole = with_critic(MODEL, on_base(adapter(), params()))
    optimizer = skip_nonfinite(ADAM)
    state = init_state(whole, optimizer)
    assert state.params["critic"]["trunk"].keys() == {"adapter"}
    step = step_of(optimizer, PPO())
    for number in range(2):
        state, result = step(state, batch(number), KEY, ON_BASE)
    assert float(result.metrics["value_loss"]) > 0
    assert float(jnp.abs(state.params["critic"]["head"]).max()) > 0
    assert largest_difference(state.params["policy"], adapter()) > 1e-4
    assert complete(state.params, params())["critic"]["trunk"].keys() == {"base", "adapter"}


def test_an_adapter_without_its_base_is_refused():
    with pytest.raises(ValueError, match="an adapter is trained: pass the parameters that it adds"):
        step_of(ADAM)(init_state(adapter(), ADAM), batch(), KEY, EVEN)
    with pytest.raises(ValueError, match="give on_base.adapter, base."):
        with_critic(MODEL, adapter())


def test_a_state_keeps_no_base():
    ours, whole = (init_state(x, ADAM) for x in (adapter(), on_base(adapter(), params())))
    jax.tree.map(np.testing.assert_array_equal, ours, whole)


def test_what_is_merged_samples_the_same():
    optimizer = optax.adam(1e-2)
    state, _ = step_of(optimizer)(init_state(adapter(), optimizer), batch(), KEY, ON_BASE)
    policy = on_base(state.policy, params())
    ours = draw(MODEL, SAMPLING, policy, batch(), KEY)
    plain = Transformer(CONFIG, dtype=jnp.float32)
    merged = draw(plain, SAMPLING, merge(policy, LORA), batch(), KEY)
    np.testing.assert_array_equal(ours.tokens, merged.tokens)
    np.testing.assert_allclose(ours.logps, merged.logps, atol=1e-5)
