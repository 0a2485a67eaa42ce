"""Any network is a decoder: the Transformer, through `plain_decoder`, draws and learns the same.

The wrapped one is a function from tokens to logits and knows of no prompts, prefixes or caches.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from tiny_model import SMALL, random_params

from jaxalign.engine.baselines import WholeBatch
from jaxalign.engine.objective import GRPO
from jaxalign.engine.penalties import K2
from jaxalign.engine.state import init_state
from jaxalign.engine.step import Frozen, Sampling, Updates, make_step
from jaxalign.models import Transformer
from jaxalign.models.decoder import plain_decoder
from jaxalign.models.heads import logits, output_weight
from jaxalign.records import Batch, Prompts
from jaxalign.rewards import device_reward
from jaxalign.sampling import Greedy, Temperature, sample

CONFIG = dataclasses.replace(SMALL, max_positions=32)
MODEL = Transformer(CONFIG, dtype=jnp.float32)
N, G, T, STOP = 3, 4, 6, (14, 23)  # which these weights like
PREFIX = jnp.array([5, 6, 7], jnp.int32)
PROMPTS = ([3, 1, 4, 1, 5], [9], [2, 6, 5])
KEY = jax.random.key(0)


def apply(params, tokens, mask):
    """A causal network: tokens and which of them exist, and logits after each."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = MODEL.apply({"params": params}, tokens, positions, mask)
    return logits(hidden, output_weight(params))


PLAIN = plain_decoder(apply, max_positions=CONFIG.max_positions)


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG, scale=0.6)


def padded(side):
    """The prompts, padded on one side by tokens that must not matter."""
    tokens, mask = np.full((N, 5), 11, np.int32), np.zeros((N, 5), bool)
    for row, prompt in enumerate(PROMPTS):
        there = slice(0, len(prompt)) if side == "right" else slice(5 - len(prompt), 5)
        tokens[row, there], mask[row, there] = prompt, True
    return Prompts(jnp.asarray(tokens), jnp.asarray(mask))


@functools.partial(jax.jit, static_argnames=("model", "method"))
def rollout(model, params, prompts, prefix, method=Temperature(0.8)):  # noqa: B008
    return sample(
        model,
        params,
        prompts.tokens,
        prompts.mask,
        KEY,
        samples_per_prompt=G,
        max_new_tokens=T,
        method=method,
        stop=STOP,
        prefix=prefix,
    )


@pytest.mark.parametrize("model", [MODEL, PLAIN], ids=["transformer", "plain"])
def test_rows_that_leave_twice_are_those_that_leave_at_once(model, params):
    """A prompt's context goes with its rows; what is left is read as before."""
    prompts, tokens = padded("left"), jnp.arange(N * G, dtype=jnp.int32) % 7 + 3
    context = model.prefill(params, prompts.tokens, prompts.mask, PREFIX)
    cache = model.start(params, context, G, T)
    whole, cache = model.next_logits(params, context, cache, tokens, jnp.int32(0))
    last = jnp.array([9, 2])
    twice = model.take(*model.take(context, cache, jnp.array([2, 5, 9])), jnp.array([2, 0]))
    left, _ = model.next_logits(params, *twice, tokens[last], jnp.int32(1))
    at_once = model.take(context, cache, last)
    right, _ = model.next_logits(params, *at_once, tokens[last], jnp.int32(1))
    np.testing.assert_array_equal(left, right)
    every, _ = model.next_logits(params, context, cache, tokens, jnp.int32(1))
    np.testing.assert_allclose(left, every[last], atol=1e-5)
    assert float(jnp.abs(whole[last] - left).max()) > 1e-3


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("prefix", [None, PREFIX], ids=["no prefix", "prefix"])
def test_the_same_key_draws_the_same_samples(params, side, prefix):
    wanted = rollout(MODEL, params, padded(side), prefix)
    got = rollout(PLAIN, params, padded(side), prefix)
    for name in ("tokens", "mask", "present", "finished", "prompt_of_row"):
        np.testing.assert_array_equal(getattr(got, name), getattr(wanted, name), err_msg=name)
    np.testing.assert_allclose(got.logps, wanted.logps, atol=1e-5)
    assert got.temperature == wanted.temperature == 0.8
    lengths = np.asarray(got.mask.sum(axis=1))
    assert wanted.finished.any() and len(set(lengths)) > 2, "rows end at several places"


def test_the_most_probable_tokens_too(params):
    wanted, got = (
        rollout(model, params, padded("left"), PREFIX, Greedy()) for model in (MODEL, PLAIN)
    )
    np.testing.assert_array_equal(got.tokens, wanted.tokens)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("prefix", [None, PREFIX], ids=["no prefix", "prefix"])
def test_log_probabilities_and_their_gradients_are_the_same(params, side, prefix):
    """Of any tokens, at the temperature that they were drawn at."""
    prompts, samples = padded(side), rollout(MODEL, params, padded(side), prefix)
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(N * G, T)), jnp.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def of(model):
        def loss(params):
            logps = model.logps(
                params,
                prompts.tokens,
                prompts.mask,
                samples.tokens,
                samples.present,
                prefix=prefix,
                temperature=0.8,
            )
            kept = jnp.where(samples.mask, logps, 0.0)
            return (weights * kept).sum() / samples.mask.sum(), kept

        return jax.grad(loss, has_aux=True)(params)

    (wanted_gradients, wanted), (gradients, got) = of(MODEL), of(PLAIN)
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    np.testing.assert_allclose(got, samples.logps, atol=1e-5)
    for (path, got), wanted in zip(
        jax.tree.leaves_with_path(gradients), jax.tree.leaves(wanted_gradients), strict=True
    ):
        scale = np.abs(wanted).max()
        assert scale > 1e-4, path  # every parameter takes part
        np.testing.assert_allclose(got, wanted, atol=1e-5 * max(scale, 1.0), err_msg=str(path))


def test_what_is_not_there_changes_nothing(params):
    """Neither padding nor tokens behind a completion's end are read."""
    samples = rollout(PLAIN, params, padded("right"), PREFIX)

    def logps(prompts, tokens):
        rows = (prompts.tokens, prompts.mask, tokens, samples.present)
        return np.asarray(jnp.where(samples.mask, PLAIN.logps(params, *rows, prefix=PREFIX), 0.0))

    wanted = logps(padded("right"), samples.tokens)
    prompts = padded("right")
    others = Prompts(jnp.where(prompts.mask, prompts.tokens, 13), prompts.mask)
    behind = jnp.where(samples.present, samples.tokens, 17)
    np.testing.assert_array_equal(logps(others, behind), wanted)
    # On which side the padding is, neither.
    np.testing.assert_allclose(logps(padded("left"), samples.tokens), wanted, atol=1e-6)


def test_a_row_that_is_too_long_is_refused(params):
    short = dataclasses.replace(PLAIN, max_positions=3 + 5 + T - 1)
    with pytest.raises(ValueError, match="take up to 14 positions, the model has 13"):
        rollout(short, params, padded("left"), PREFIX)


# --- training -------------------------------------------------------------------------------------


def even_tokens(batch, samples):
    even = (samples.tokens % 2 == 0) & samples.mask
    return even.sum(axis=1) / jnp.maximum(samples.mask.sum(axis=1), 1)


def step_of(model, optimizer, **parts):
    return make_step(model, optimizer, sampling=Sampling(G, T, STOP, Temperature(0.8)), **parts)


def test_a_step_is_the_transformers_step(params):
    """With a KL and in micro-batches; three of them, by SGD: Adam's first are signs of rounding."""
    optimizer = optax.sgd(1e-2)
    frozen = Frozen(device_reward(even_tokens), base=jax.tree.map(lambda x: 1.1 * x, params))
    batch = Batch(padded("left"), prefix=PREFIX)
    states = []
    for model in (MODEL, PLAIN):
        step = step_of(
            model,
            optimizer,
            objective=GRPO(WholeBatch(), kl=K2(0.1)),
            updates=Updates(micro_batches=3),
        )
        state = init_state(params, optimizer)
        for _ in range(3):
            state, result = step(state, batch, KEY, frozen)
        assert float(result.metrics["logp_gap"]) < 1e-5
        assert step.whole._cache_size() == 1
        states.append(state)
    for got, wanted in zip(*(jax.tree.leaves(state.params) for state in states), strict=True):
        np.testing.assert_allclose(got, wanted, atol=2e-6)  # they move by 1e-2


class Bigrams(nn.Module):
    """A network of one's own: the next token by the last one."""

    words: int = 32

    @nn.compact
    def __call__(self, tokens):
        return nn.Dense(self.words)(nn.Embed(self.words, 8)(tokens))


def test_a_network_of_ones_own_learns_what_is_rewarded():
    network = Bigrams()
    model = plain_decoder(
        lambda params, tokens, mask: network.apply({"params": params}, tokens), max_positions=32
    )
    params = network.init(KEY, jnp.zeros((1, 1), jnp.int32))["params"]
    optimizer = optax.adam(3e-2)
    step = step_of(model, optimizer, objective=GRPO(WholeBatch()))
    state, batch, rewards = init_state(params, optimizer), Batch(padded("left")), []
    for _ in range(60):
        state, result = step(state, batch, KEY, Frozen(device_reward(even_tokens)))
        rewards.append(float(result.metrics["reward"]))
    assert np.mean(rewards[:3]) < 0.7
    assert np.mean(rewards[-3:]) > 0.95
    assert step.whole._cache_size() == 1
