"""PPO's step against tunix's functions: the parameters move by the gradients of its losses."""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from libraries import arrays
from tiny_model import random_params

from jaxalign.engine.experience import experience_of
from jaxalign.engine.optimizer import with_critic_optimizer
from jaxalign.engine.ppo import PPO, completion_values, with_critic
from jaxalign.engine.state import init_state
from jaxalign.engine.step import Frozen, Sampling, Updates, make_step
from jaxalign.losses import token_logps
from jaxalign.models import ModelConfig, Transformer
from jaxalign.models.heads import logits, output_weight
from jaxalign.records import Batch, Prompts, Rollout
from jaxalign.rewards import device_reward

CONFIG = ModelConfig(
    vocab_size=4, num_layers=1, model_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, mlp_dim=32
)
MODEL = Transformer(CONFIG, dtype=jnp.float32)
RATE = 0.1


@pytest.mark.torch
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="torch for this comes on Python 3.11 only")
def test_two_epochs_of_ppo_are_two_of_tunix():
    """A tool's answer in one row, a row without a token; in the second epoch values are clipped."""
    from libraries.tunix_settings import examples, gradient_of
    from tunix.rl import algo_core
    from tunix.rl.ppo.ppo_learner import PPOConfig

    config, mask = PPOConfig(), arrays.mask.astype(bool)
    prompts, prompt_mask = jnp.array([[1], [2]], jnp.int32), jnp.ones((arrays.N, 1), bool)
    present = jnp.ones(mask.shape, bool)
    given = (prompts, prompt_mask, jnp.asarray(arrays.tokens), present)

    def logits_of(params):
        return logits(MODEL.states(params, *given), output_weight(params))

    optimizer = with_critic_optimizer(optax.sgd(RATE), optax.sgd(RATE))
    trained = with_critic(MODEL, random_params(CONFIG))
    head = jnp.asarray(np.random.default_rng(0).normal(size=(1, 16)), jnp.float32)
    trained["critic"]["head"] = head  # a critic that has learned
    noise = arrays.old_logp - arrays.logp
    old_logps = token_logps(logits_of(trained["policy"]), given[2]) + jnp.asarray(noise)

    none = jnp.zeros(arrays.B, bool)
    samples = Rollout(given[2], jnp.asarray(mask), present, old_logps, none, none, none)
    rewards = jnp.asarray(arrays.rewards.reshape(-1))
    batch, updates = Batch(Prompts(prompts, prompt_mask)), Updates(epochs=2)
    frozen = Frozen(device_reward(lambda batch, samples: rewards, name="given"))
    step = make_step(
        MODEL, optimizer, sampling=Sampling(arrays.G, arrays.T), objective=PPO(), updates=updates
    )
    state = init_state(trained, optimizer)
    after, result = step.learn(state, batch, samples, jax.random.key(0), frozen)

    on_tokens = np.zeros(mask.shape, np.float32)
    for row, reward in enumerate(arrays.rewards.reshape(-1)):
        if mask[row].any():
            on_tokens[row, np.flatnonzero(mask[row])[-1]] = reward
    part = experience_of(batch, samples, rewards)
    values_of = functools.partial(completion_values, MODEL, part=part)
    ours, theirs = trained["policy"], trained["critic"]
    old_values = values_of(theirs)
    advantages, returns = algo_core.compute_gae_advantages(
        on_tokens, old_values, jnp.asarray(arrays.mask), config.gamma, config.gae_lambda
    )
    example = examples(advantages=advantages, old_per_token_logps=old_logps)
    object.__setattr__(example, "old_values", old_values)
    object.__setattr__(example, "returns", returns)
    clipped, losses = [], []
    for _ in range(updates.epochs):
        z, of_policy = jax.vjp(logits_of, ours)
        loss = lambda m: algo_core.ppo_policy_loss_fn(m, example, config, 0, 1)  # noqa: E731
        policy_loss, to_logits = gradient_of(loss, np.asarray(z))
        values, of_critic = jax.vjp(values_of, theirs)
        error = lambda m: algo_core.ppo_value_loss_fn(  # noqa: E731
            m, example, config.clip_range_value, 0, 1
        )
        value_loss, to_values = gradient_of(error, np.asarray(values)[..., None])
        moved = jnp.abs(values - old_values) > config.clip_range_value
        clipped.append(bool(jnp.any(moved & mask)))
        losses.append((float(policy_loss), float(value_loss)))
        [of_policy], [of_critic] = of_policy(jnp.asarray(to_logits)), of_critic(to_values[..., 0])
        descend = lambda x, g: x - RATE * g  # noqa: E731
        ours = jax.tree.map(descend, ours, of_policy)
        theirs = jax.tree.map(descend, theirs, of_critic)
    assert clipped == [False, True]
    want = {"policy": ours, "critic": theirs}
    for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)
    got = (result.metrics["loss"], result.metrics["value_loss"])
    np.testing.assert_allclose(got, np.mean(losses, axis=0), rtol=1e-5, atol=1e-6)
