"""Attention over blocks equals one softmax over everything a row sees, forwards and backwards."""

import dataclasses
import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import TINY, random_params

from jaxalign.models import Transformer, network
from jaxalign.models.attention import KeyValues, attend
from jaxalign.models.fused_attention import attend_fused, attention_path
from jaxalign.models.rotary import (
    LinearScaling,
    Llama3Scaling,
    YarnScaling,
    rotary_frequencies,
    rotary_tables,
    rotate,
    yarn_attention_factor,
)

BATCH, LENGTH, HEADS, KV_HEADS, HEAD_DIM = 6, 3, 4, 2, 8

# Leading size M and length S of each context: M divides the batch.
CONTEXTS = {
    "none": [],
    "prefix": [(1, 5)],
    "prompts": [(3, 4)],
    "prefix and prompts": [(1, 5), (3, 4)],
    "cache": [(6, 7)],
    "prefix, prompts and cache": [(1, 5), (3, 4), (6, 7)],
}


def random_case(
    shapes: list[tuple[int, int]], holes: float = 0.0, seed: int = 0, length: int = LENGTH
) -> dict[str, Any]:
    """Random queries, keys, values and contexts; a position exists with probability 1 − holes."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return {
        "query": normal(BATCH, length, HEADS, HEAD_DIM),
        "keys": normal(BATCH, KV_HEADS, length, HEAD_DIM),
        "values": normal(BATCH, KV_HEADS, length, HEAD_DIM),
        "mask": rng.random((BATCH, length)) >= holes,
        "contexts": tuple(
            KeyValues(
                normal(lead, KV_HEADS, size, HEAD_DIM),
                normal(lead, KV_HEADS, size, HEAD_DIM),
                rng.random((lead, size)) >= holes,
            )
            for lead, size in shapes
        ),
    }


def oracle(case: dict[str, Any]) -> np.ndarray:
    """One softmax over the concatenation of everything a row sees, in float64, row by row."""
    query = case["query"].astype(np.float64)
    out = np.zeros_like(query)
    for b, t, h in np.ndindex(query.shape[:3]):
        kv_head = h // (HEADS // KV_HEADS)
        seen = case["mask"][b, : t + 1]
        keys = [case["keys"][b, kv_head, : t + 1][seen]]
        values = [case["values"][b, kv_head, : t + 1][seen]]
        for context in case["contexts"]:
            entry = b // (BATCH // context.keys.shape[0])
            keys.append(context.keys[entry, kv_head][context.mask[entry]])
            values.append(context.values[entry, kv_head][context.mask[entry]])
        scores = np.concatenate(keys).astype(np.float64) @ query[b, t, h] / np.sqrt(HEAD_DIM)
        if scores.size:
            weights = np.exp(scores - scores.max())
            out[b, t, h] = weights @ np.concatenate(values) / weights.sum()
    return out


def naive(query, keys, values, mask, contexts):
    """The same in plain JAX: repeat every context for its rows, concatenate, softmax."""
    all_keys, all_values, seen = [], [], []
    for context in contexts:
        repeats = BATCH // context.keys.shape[0]
        all_keys.append(jnp.repeat(context.keys, repeats, axis=0))
        all_values.append(jnp.repeat(context.values, repeats, axis=0))
        context_mask = jnp.repeat(context.mask, repeats, axis=0)[:, None]
        seen.append(jnp.broadcast_to(context_mask, (BATCH, LENGTH, context.mask.shape[1])))
    seen.append(jnp.tril(jnp.ones((LENGTH, LENGTH), bool)) & mask[:, None])
    group = HEADS // KV_HEADS
    k = jnp.repeat(jnp.concatenate([*all_keys, keys], axis=2), group, axis=1)
    v = jnp.repeat(jnp.concatenate([*all_values, values], axis=2), group, axis=1)
    scores = jnp.einsum("bthd,bhsd->bhts", query, k) / HEAD_DIM**0.5
    scores = jnp.where(jnp.concatenate(seen, axis=-1)[:, None], scores, -jnp.inf)
    return jnp.einsum("bhts,bhsd->bthd", jax.nn.softmax(scores), v)


@pytest.mark.parametrize("holes", [0.0, 0.4])
@pytest.mark.parametrize("shapes", CONTEXTS.values(), ids=CONTEXTS.keys())
def test_equals_one_softmax_over_everything_seen(shapes, holes):
    case = random_case(shapes, holes)
    np.testing.assert_allclose(jax.jit(attend)(**case), oracle(case), atol=2e-6)


@pytest.mark.parametrize("shapes", CONTEXTS.values(), ids=CONTEXTS.keys())
def test_gradients_equal_those_of_the_naive_form(shapes):
    case = random_case(shapes, holes=0.3, seed=1)
    # Every row sees its own first position: the naive softmax of nothing would be NaN.
    case["mask"][:, 0] = True
    cotangent = np.random.default_rng(2).normal(size=case["query"].shape).astype(np.float32)
    mask = case.pop("mask")
    masks = [context.mask for context in case["contexts"]]
    case["contexts"] = [(context.keys, context.values) for context in case["contexts"]]

    def loss(arrays, function):
        contexts = tuple(
            KeyValues(*pair, m) for pair, m in zip(arrays["contexts"], masks, strict=True)
        )
        out = function(arrays["query"], arrays["keys"], arrays["values"], mask, contexts)
        return jnp.vdot(out, cotangent)

    grad = jax.jit(jax.grad(loss), static_argnums=1)
    got, expected = grad(case, attend), grad(case, naive)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6), got, expected)


def test_rows_that_see_nothing_are_zero_with_zero_gradients():
    case = random_case(CONTEXTS["prefix and prompts"])
    case["mask"][0] = False  # row 0 sees nothing of itself, and of the contexts nothing either:
    for context in case["contexts"]:
        context.mask[0] = False
    case["mask"][1:, 0] = False  # position 0 of rows 1 and 2, which share that empty prompt

    def loss(query, keys, values):
        contexts = case["contexts"]
        out = attend(query, keys, values, case["mask"], contexts)
        return (out**2).sum(), out

    grads, out = jax.jit(jax.grad(loss, argnums=(0, 1, 2), has_aux=True))(
        case["query"], case["keys"], case["values"]
    )
    np.testing.assert_array_equal(out[0], 0.0)
    np.testing.assert_array_equal(out[1, 0], 0.0)
    assert np.abs(out[1, 1:]).min() > 0
    for grad in grads:
        assert np.isfinite(grad).all()
        np.testing.assert_array_equal(grad[0], 0.0)


def test_scores_far_apart_between_blocks_stay_exact():
    """exp(1000) overflows float32: the maxima must be merged before anything is exponentiated."""
    case = random_case(CONTEXTS["prefix and prompts"], holes=0.2)
    for context, scale in zip(case["contexts"], (300.0, 0.01), strict=True):
        context.keys[:] *= scale
    case["keys"] *= -300.0
    out = jax.jit(attend)(**case)
    assert np.isfinite(out).all()
    np.testing.assert_allclose(out, oracle(case), atol=1e-4)


def test_bfloat16_in_bfloat16_out():
    case = random_case(CONTEXTS["prefix and prompts"], holes=0.2)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == np.float32 else x, case)
    out = jax.jit(attend)(**half)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), oracle(case), atol=0.04)


def test_a_context_that_does_not_divide_the_batch_is_an_error():
    with pytest.raises(ValueError, match="4 rows can't serve a batch of 6 rows"):
        attend(**random_case([(4, 2)]))


def test_rotation_by_hand():
    """θ^0 = 1: position p turns the only pair of a two-dimensional head by p radians."""
    rotary = rotary_tables(jnp.array([[0, 1, 3]]), rotary_frequencies(2, 10_000.0))
    x = jnp.broadcast_to(jnp.array([1.0, 0.0]), (1, 3, 1, 2))
    expected = [[np.cos(p), np.sin(p)] for p in (0, 1, 3)]
    np.testing.assert_allclose(rotate(x, rotary)[0, :, 0], expected, atol=1e-6)


def test_rotated_products_depend_on_the_distance_alone():
    rng = np.random.default_rng(0)
    q, k = rng.normal(size=(2, 1, 1, 1, 8)).astype(np.float32)

    def product(q_position: int, k_position: int) -> float:
        frequencies = rotary_frequencies(8, 100.0)
        at = [rotary_tables(jnp.array([[p]]), frequencies) for p in (q_position, k_position)]
        return float((rotate(q, at[0]) * rotate(k, at[1])).sum())

    assert product(7, 3) == pytest.approx(product(104, 100), abs=1e-4)
    assert product(7, 3) != pytest.approx(product(7, 4), abs=1e-2)


def test_llama3_stretches_long_wavelengths_and_leaves_short_ones():
    """θ = 100, d = 8: wavelengths 2π, 19.9, 62.8, 198.7; whole below 16, a quarter above 64."""
    scaling = Llama3Scaling(4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_positions=64)
    plain = 100.0 ** -np.array([0, 0.25, 0.5, 0.75])
    smooth = (64 * plain / (2 * np.pi) - 1) / 3
    assert 0 < smooth[2] < smooth[1] < 1
    expected = [
        plain[0],
        plain[1] * ((1 - smooth[1]) / 4 + smooth[1]),
        plain[2] * ((1 - smooth[2]) / 4 + smooth[2]),
        plain[3] / 4,
    ]
    np.testing.assert_allclose(rotary_frequencies(8, 100.0, scaling), expected, rtol=1e-12)
    np.testing.assert_allclose(rotary_frequencies(8, 100.0), plain, rtol=1e-12)
    with pytest.raises(ValueError, match="low_freq_factor=4.0 must be between 0 and"):
        Llama3Scaling(4.0, 4.0, 4.0, 64)


def test_linear_scaling_divides_all_frequencies():
    scaled = rotary_frequencies(8, 100.0, LinearScaling(4.0))
    np.testing.assert_allclose(scaled, 100.0 ** -np.array([0, 0.25, 0.5, 0.75]) / 4, rtol=1e-12)


def test_yarn_stretches_what_turns_seldom_and_leaves_what_turns_often():
    """θ = 100, d = 8, P = 128: they turn 20.4, 6.4, 2.04 and 0.64 times in P.

    i(β) = 4 log(P / 2πβ) / log 100 is 1.22 for β = 5 and 2.62 for β = 1; whole: 1 and 3.
    """
    plain = 100.0 ** -np.array([0, 0.25, 0.5, 0.75])
    scaling = YarnScaling(4.0, 128, attention_factor=1.5, beta_fast=5.0)
    whole = plain * [1, 1, 1 / 2 + 1 / 2 / 4, 1 / 4]
    np.testing.assert_allclose(rotary_frequencies(8, 100.0, scaling), whole, rtol=1e-12)
    low, high = (4 * np.log(128 / (2 * np.pi * beta)) / np.log(100) for beta in (5, 1))
    assert 1.2 < low < 1.3 and 2.6 < high < 2.7
    ramp = (2 - low) / (high - low)
    exact = rotary_frequencies(8, 100.0, dataclasses.replace(scaling, truncate=False))
    np.testing.assert_allclose(exact, plain * [1, 1, 1 - ramp + ramp / 4, 1 / 4], rtol=1e-12)
    cos, sin = rotary_tables(jnp.array([[3]]), plain, 1.5)
    np.testing.assert_allclose(cos[0, 0, 0], 1.5 * np.cos(3 * plain), rtol=1e-5)
    np.testing.assert_allclose(sin[0, 0, 0], 1.5 * np.sin(3 * plain), rtol=1e-5)
    with pytest.raises(ValueError, match="beta_slow=40 must be between 0 and beta_fast=32"):
        YarnScaling(4.0, 128, 1.0, beta_slow=40)


def test_yarns_attention_factor():
    assert yarn_attention_factor(np.e**10) == pytest.approx(2.0)
    assert yarn_attention_factor(np.e**10, 2.0, 0.5) == pytest.approx(3 / 1.5)
    assert yarn_attention_factor(0.5) == 1.0


@pytest.mark.parametrize("holes", [0.0, 0.4])
@pytest.mark.parametrize("length", [1, LENGTH, LENGTH + 1])
@pytest.mark.parametrize("name", CONTEXTS)
def test_one_fused_kernel_gives_the_numbers_of_the_blocks(name, length, holes):
    """In float32 by XLA; `experiments/benchmarks/attention.py` compares cuDNN's on a GPU."""
    case = random_case(CONTEXTS[name], holes, length=length)

    def both(attention):
        def loss(query, keys, values, contexts):
            out = attention(query, keys, values, case["mask"], contexts)
            return jnp.sum(jnp.sin(out)), out

        wanted = (0, 1, 2, 3)
        floats = [case[x] for x in ("query", "keys", "values", "contexts")]
        (_, out), grads = jax.value_and_grad(loss, wanted, has_aux=True, allow_int=True)(*floats)
        return out, jax.tree.leaves(grads)

    out, grads = both(functools.partial(attend_fused, kernel="xla"))
    expected, expected_grads = both(attend)
    np.testing.assert_allclose(out, expected, atol=1e-5)
    for one, other in zip(grads, expected_grads, strict=True):
        if one.dtype != jax.dtypes.float0:
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_a_context_that_does_not_divide_the_rows_is_named():
    case = random_case([(4, 5)])
    arguments = (case["query"], case["keys"], case["values"], case["mask"], case["contexts"])
    for attention in (attend, functools.partial(attend_fused, kernel="xla")):
        with pytest.raises(ValueError, match="a context of 4 rows can't serve a batch of 6 rows"):
            attention(*arguments)


def test_fused_documents_of_a_row_do_not_see_each_other():
    case = random_case([(1, 5)])
    documents = np.array(
        [[1, 1, 2], [0, 0, 0], [1, 2, 2], [1, 2, 0], [0, 1, 1], [1, 1, 1]], np.int32
    )
    arguments = (case["query"], case["keys"], case["values"], documents, case["contexts"])
    np.testing.assert_allclose(
        attend_fused(*arguments, kernel="xla"), attend(*arguments), atol=1e-5
    )


def gpu(capability="9.0", version="cuda 13000", platform="gpu"):
    client = types.SimpleNamespace(platform_version=version)
    return types.SimpleNamespace(platform=platform, client=client, compute_capability=capability)


@pytest.mark.parametrize(
    "device, dtype, head_dim, path",
    [
        (gpu(), "bfloat16", 64, "cudnn"),
        (gpu("8.0"), "float16", 128, "cudnn"),
        (gpu("10.3"), "bfloat16", 128, "cudnn"),
        (gpu(), "float32", 64, "blocks"),
        (gpu(), "bfloat16", 36, "blocks"),
        (gpu(), "bfloat16", 256, "blocks"),
        (gpu("7.5"), "bfloat16", 64, "blocks"),
        (gpu("gfx942", "rocm 60000"), "bfloat16", 64, "blocks"),
        (gpu(platform="tpu"), "bfloat16", 64, "blocks"),
        (jax.devices("cpu")[0], "bfloat16", 64, "blocks"),
    ],
)
def test_the_kernel_is_for_nvidias_gpus(monkeypatch, device, dtype, head_dim, path):
    monkeypatch.setattr(jax, "devices", lambda: [device])
    config = dataclasses.replace(TINY, head_dim=head_dim)
    assert attention_path(config, dtype) == path
    assert attention_path(config, dtype, mesh=object()) == "blocks"


def test_a_model_that_takes_the_kernel_learns_the_same(monkeypatch):
    """XLA in the place of cuDNN."""
    calls = []

    def fused(*arguments):
        calls.append(arguments[0].shape[1])
        return attend_fused(*arguments, kernel="xla")

    monkeypatch.setattr(network, "attend_fused", fused)
    params = jax.tree.map(jnp.asarray, random_params(TINY, scale=0.1))
    rng = np.random.default_rng(0)
    prompts, tokens = rng.integers(0, TINY.vocab_size, (2, 5)), rng.integers(0, 9, (4, 3))
    prefix = jnp.asarray([3, 4, 5], jnp.int32)

    def run(attention, dtype):
        model = Transformer(TINY, dtype=dtype, attention=attention)

        def loss(params):
            logps = model.logps(
                params,
                jnp.asarray(prompts, jnp.int32),
                jnp.ones(prompts.shape, bool),
                jnp.asarray(tokens, jnp.int32),
                jnp.ones(tokens.shape, bool),
                prefix=prefix,
            )
            return logps.mean()

        return jax.value_and_grad(loss)(params)

    value, grads = run("cudnn", jnp.bfloat16)
    assert set(calls) == {3, 5}, "the prefix and the completions, the prompts"
    wanted, wanted_grads = run("blocks", jnp.bfloat16)
    assert abs(value - wanted) < 0.02
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(wanted_grads), strict=True):
        assert jnp.linalg.norm(one - other) < 0.05 * jnp.linalg.norm(other)
    calls.clear()
    run("cudnn", jnp.float32)
    assert not calls, "cuDNN has no float32"
