"""Completions on shared prompts equal plain passes over prefix + prompt + completion."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import SMALL, random_params

from jaxalign.models.completion import compute_params
from jaxalign.models.heads import output_weight
from jaxalign.models.transformer import Transformer

CONFIG = dataclasses.replace(SMALL, vocab_size=29, num_layers=3, rope_theta=100.0)
MODEL = Transformer(CONFIG, dtype=jnp.float32)
TEMPERATURE = 0.8
GROUP, NEW_TOKENS = 2, 5
PREFIX = [8, 8, 2, 0]
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5]]
LENGTHS = np.array([5, 3, 1, 0, 4, 2])  # of the completions, one per row

_RNG = np.random.default_rng(1)
TOKENS = _RNG.integers(CONFIG.vocab_size, size=(len(LENGTHS), NEW_TOKENS)).astype(np.int32)
MASK = np.arange(NEW_TOKENS) < LENGTHS[:, None]
WEIGHTS = _RNG.normal(size=MASK.shape).astype(np.float32) * MASK


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


def pad(rows, width, side):
    """Rows of ids as an array and its mask; the padding is an ordinary id, which must not count."""
    ids = np.full((len(rows), width), 7, np.int32)
    mask = np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(len(row))
        ids[i, place], mask[i, place] = row, True
    return ids, mask


@functools.partial(jax.jit, static_argnames="prefix")
@functools.partial(jax.value_and_grad, has_aux=True)
def shared(params, prompts, prompt_mask, tokens, *, prefix):
    """Loss with its gradients, and log-probabilities, with every prompt computed once."""
    logps = MODEL.logps(
        params,
        prompts,
        prompt_mask,
        tokens,
        MASK,
        prefix=jnp.array(prefix, jnp.int32) if prefix else None,
        temperature=TEMPERATURE,
        tile=7,
    )
    return jnp.vdot(WEIGHTS, logps), logps


@jax.jit
@functools.partial(jax.value_and_grad, has_aux=True)
def plain(params, ids, exists, predictors):
    """The same of whole sequences `[B, S]` and the places `[B, T]` that predict the tokens."""
    positions = jnp.broadcast_to(jnp.arange(ids.shape[1]), ids.shape)
    hidden, _ = MODEL.apply({"params": params}, ids, positions, exists)
    z = jnp.einsum("btd,vd->btv", hidden, output_weight(params)) / TEMPERATURE
    rows = np.arange(len(LENGTHS))[:, None]
    logps = jax.nn.log_softmax(z)[rows, predictors, TOKENS]
    return jnp.vdot(WEIGHTS, logps), logps


@pytest.fixture(scope="module", params=[(), PREFIX], ids=["no prefix", "prefix"])
def expected(request, params):
    """The prefix, and what the plain pass makes of each row's one full sequence."""
    prefix = request.param
    prompts = [PROMPTS[row // GROUP] for row in range(len(LENGTHS))]
    whole = [
        [*prefix, *prompt, *tokens[:length]]
        for prompt, tokens, length in zip(prompts, TOKENS, LENGTHS, strict=True)
    ]
    width = 20
    first = np.array([[len(prefix) + len(prompt) - 1] for prompt in prompts])
    return tuple(prefix), plain(params, *pad(whole, width, "right"), first + np.arange(NEW_TOKENS))


def assert_same(got, wanted):
    ((loss, logps), grads), ((wanted_loss, wanted_logps), wanted_grads) = got, wanted
    np.testing.assert_allclose(logps[MASK], wanted_logps[MASK], atol=1e-5)
    np.testing.assert_allclose(loss, wanted_loss, rtol=1e-5)
    for (path, grad), wanted_grad in zip(
        jax.tree.leaves_with_path(grads), jax.tree.leaves(wanted_grads), strict=True
    ):
        scale = np.abs(wanted_grad).max()
        assert scale > 1e-3, path  # every parameter takes part
        np.testing.assert_allclose(grad, wanted_grad, atol=1e-5 * max(scale, 1.0), err_msg=path)


@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_and_gradients_equal_the_plain_pass(params, expected, side):
    prefix, wanted = expected
    assert_same(shared(params, *pad(PROMPTS, 6, side), TOKENS, prefix=prefix), wanted)


def test_tokens_where_the_mask_is_false_change_nothing(params, expected):
    prefix, wanted = expected
    tokens = np.where(MASK, TOKENS, (TOKENS + 1) % CONFIG.vocab_size)
    assert_same(shared(params, *pad(PROMPTS, 6, "left"), tokens, prefix=prefix), wanted)


def test_an_empty_prefix_is_no_prefix(params):
    def program(prefix):
        run = functools.partial(MODEL.logps, prefix=prefix)
        return str(jax.make_jaxpr(run)(params, *pad(PROMPTS, 6, "left"), TOKENS, MASK))

    assert program(np.zeros(0, np.int32)) == program(None)
    assert program(np.zeros(1, np.int32)) != program(None)


@pytest.mark.parametrize(("learned", "kept"), [(False, {"scale"}), (True, {"scale", "embedding"})])
def test_compute_params_casts_matrices_and_keeps_scales(params, learned, kept):
    cast = compute_params(jax.tree.map(jnp.asarray, params), jnp.bfloat16, learned=learned)
    for path, leaf in jax.tree.leaves_with_path(cast):
        expected = jnp.float32 if path[-1].key in kept else jnp.bfloat16
        assert leaf.dtype == expected, path
