"""Completions on shared prompts equal plain passes over prefix + prompt + completion."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxalign.models.completion import completion_logps, compute_params
from jaxalign.models.config import ModelConfig
from jaxalign.models.transformer import Transformer, output_weight

CONFIG = ModelConfig(
    vocab_size=29,
    num_layers=3,
    model_dim=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    mlp_dim=24,
    rope_theta=100.0,
)
MODEL = Transformer(CONFIG, dtype=jnp.float32)
GROUP, NEW_TOKENS = 2, 5
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5]]
LENGTHS = [5, 3, 1, 0, 4, 2]  # of the completions, one per row


@pytest.fixture(scope="module")
def params():
    block = jnp.ones((1, 1), jnp.int32)
    tree = nn.unbox(MODEL.init(jax.random.key(0), block, block, block.astype(bool)))["params"]
    # Norm scales start at one and embeddings near zero; move both, so that all of them matter.
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: x + 0.3 * rng.normal(size=x.shape).astype(np.float32), tree)


def pad(rows, width, side):
    """Rows of ids as an array and its mask; the padding is arbitrary ids, which must not matter."""
    ids = np.full((len(rows), width), 7, np.int32)
    mask = np.zeros((len(rows), width), bool)
    for i, row in enumerate(rows):
        place = slice(width - len(row), width) if side == "left" else slice(len(row))
        ids[i, place], mask[i, place] = row, True
    return ids, mask


def completions():
    rng = np.random.default_rng(1)
    tokens = rng.integers(CONFIG.vocab_size, size=(len(LENGTHS), NEW_TOKENS)).astype(np.int32)
    return tokens, np.arange(NEW_TOKENS) < np.array(LENGTHS)[:, None]


def plain_logps(params, prefix, tokens, mask, temperature):
    """One full sequence per row through the model, no contexts; `[B, T]` as completion_logps."""
    whole = [
        [*prefix, *PROMPTS[row // GROUP], *tokens[row][mask[row]]] for row in range(len(tokens))
    ]
    ids, exists = pad(whole, max(map(len, whole)), "right")
    positions = np.broadcast_to(np.arange(ids.shape[1]), ids.shape)
    hidden, _ = MODEL.apply({"params": params}, ids, positions, exists)
    z = jnp.einsum("btd,vd->btv", hidden, output_weight(params)) / temperature
    logps = jax.nn.log_softmax(z)
    starts = [len(prefix) + len(PROMPTS[row // GROUP]) for row in range(len(tokens))]
    predictors = np.minimum(np.array(starts)[:, None] - 1 + np.arange(NEW_TOKENS), ids.shape[1] - 1)
    return logps[np.arange(len(tokens))[:, None], predictors, tokens]


@pytest.mark.parametrize("prefix", [None, [], [8, 8, 2, 0]], ids=["none", "empty", "prefix"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_loss_and_gradients_equal_the_plain_pass(params, side, prefix):
    prompts, prompt_mask = pad(PROMPTS, 6, side)
    tokens, mask = completions()
    weights = np.random.default_rng(2).normal(size=mask.shape).astype(np.float32) * mask
    temperature = 0.8

    def shared(params):
        logps = completion_logps(
            MODEL,
            params,
            prompts,
            prompt_mask,
            tokens,
            mask,
            prefix=None if prefix is None else jnp.array(prefix, jnp.int32),
            temperature=temperature,
            chunk=7,
        )
        return jnp.vdot(weights, logps), logps

    def plain(params):
        logps = plain_logps(params, prefix or [], tokens, mask, temperature)
        return jnp.vdot(weights, logps), logps

    (loss, logps), grads = jax.jit(jax.value_and_grad(shared, has_aux=True))(params)
    (wanted, wanted_logps), wanted_grads = jax.jit(jax.value_and_grad(plain, has_aux=True))(params)
    np.testing.assert_allclose(logps[mask], wanted_logps[mask], atol=1e-5)
    np.testing.assert_allclose(loss, wanted, atol=1e-5 * np.abs(wanted_logps[mask]).sum())
    for (path, got), expected in zip(
        jax.tree.leaves_with_path(grads), jax.tree.leaves(wanted_grads), strict=True
    ):
        scale = np.abs(expected).max()
        assert scale > 1e-3, path
        np.testing.assert_allclose(got, expected, atol=1e-5 * max(scale, 1.0), err_msg=str(path))


def test_padding_side_and_width_change_nothing(params):
    tokens, mask = completions()
    runs = []
    for side, width in [("left", 5), ("right", 5), ("right", 9)]:
        prompts, prompt_mask = pad(PROMPTS, width, side)
        runs.append(completion_logps(MODEL, params, prompts, prompt_mask, tokens, mask)[mask])
    np.testing.assert_allclose(runs[1], runs[0], atol=1e-5)
    np.testing.assert_allclose(runs[2], runs[0], atol=1e-5)


def test_tokens_where_the_mask_is_false_change_nothing(params):
    prompts, prompt_mask = pad(PROMPTS, 5, "left")
    tokens, mask = completions()
    other = np.where(mask, tokens, (tokens + 1) % CONFIG.vocab_size)

    def loss(params, tokens):
        logps = completion_logps(MODEL, params, prompts, prompt_mask, tokens, mask)
        return jnp.where(mask, logps, 0.0).sum()

    value_and_grad = jax.jit(jax.value_and_grad(loss))
    first, second = value_and_grad(params, tokens), value_and_grad(params, other)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), first, second)


def test_compute_params_casts_matrices_and_keeps_scales(params):
    cast = compute_params(params, jnp.bfloat16)
    for path, leaf in jax.tree.leaves_with_path(cast):
        expected = jnp.float32 if path[-1].key == "scale" else jnp.bfloat16
        assert leaf.dtype == expected, path
