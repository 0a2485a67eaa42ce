"""What keeps less than Adam's two float32 moments, and parameters in bfloat16."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import random_params

from jaxalign.engine.optimizer import Adafactor, AdamW, skip_nonfinite
from jaxalign.engine.rounding import round_stochastically, stochastic_rounding
from jaxalign.engine.state import init_state
from jaxalign.models import ModelConfig
from jaxalign.models.completion import compute_params

RNG = np.random.default_rng(0)


def updates(optimizer, params, gradients):
    """The parameters after each gradient, and the last state."""
    state, found = optimizer.init(params), []
    for gradient in gradients:
        changes, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, changes)
        found.append(params)
    return found, state


def test_adafactor_is_its_equations():
    rate, steps = 0.01, 4
    gradients = RNG.normal(size=(steps, 2, 130, 140)) * [[[[3.0]], [[0.2]]]]
    start = RNG.normal(size=(2, 130, 140))  # two layers
    optimizer = Adafactor(clipping_threshold=0.9)(rate, max_grad_norm=1e9)
    found, state = updates(
        optimizer, jnp.asarray(start, jnp.float32), jnp.asarray(gradients, jnp.float32)
    )
    rows, columns, expected = np.zeros((2, 130)), np.zeros((2, 140)), start
    for t, gradient in enumerate(gradients, start=1):
        beta = 1 - t**-0.8
        rows = beta * rows + (1 - beta) * (gradient**2).mean(axis=2)
        columns = beta * columns + (1 - beta) * (gradient**2).mean(axis=1)
        squares = rows[:, :, None] * columns[:, None] / rows.mean(axis=1)[:, None, None]
        change = gradient / np.sqrt(squares)
        change /= max(1, np.sqrt((change**2).mean()) / 0.9)
        expected = expected - rate * change
        np.testing.assert_allclose(found[t - 1], expected, atol=2e-6)
    assert sum(x.size for x in jax.tree.leaves(state)) < 2 * (130 + 140) + 10


def test_a_bfloat16_mean_of_gradients_is_adamw_all_the_same():
    params = jnp.zeros(1000)
    gradients = jnp.asarray(RNG.normal(size=(5, 1000)), jnp.float32)
    wide, narrow = (
        updates(AdamW(mu_dtype=dtype)(1e-2, max_grad_norm=1e9), params, gradients)[0][-1]
        for dtype in ("float32", "bfloat16")
    )
    assert 0 < float(jnp.abs(wide - narrow).max()) < 0.02 * float(jnp.abs(wide).max())


finite = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)


@given(finite, st.integers(0, 2**31))
@settings(deadline=None)
def test_rounding_takes_a_neighbour(x, seed):
    found = float(round_stochastically(jnp.float32(x), jax.random.key(seed)))
    nearest = float(jnp.float32(x).astype(jnp.bfloat16))
    gap = abs(np.float32(x)) * 2.0**-7  # of two neighbours, at most
    assert found == float(jnp.bfloat16(found))
    assert abs(found - x) <= gap
    if nearest == x:
        assert found == x


def test_rounding_is_right_in_the_mean():
    """1 + 1/512 lies a quarter of the way from 1 to 1 + 1/128."""
    x = jnp.full(40_000, 1 + 1 / 512)
    found = round_stochastically(x, jax.random.key(0))
    assert set(np.unique(found)) == {1.0, 1 + 1 / 128}
    share = float((found > 1).mean())
    assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / x.size)
    np.testing.assert_array_equal(round_stochastically(-x, jax.random.key(0)), -found)
    infinite = jnp.array([jnp.inf, -jnp.inf])
    np.testing.assert_array_equal(round_stochastically(infinite, jax.random.key(0)), infinite)


def test_small_changes_add_up():
    """200 updates of 1/2000 each: 0.1 in all, of which rounding to the nearest leaves nothing."""
    params = {"up": jnp.ones(2_000, jnp.bfloat16), "scale": jnp.ones(3)}
    gradient = {"up": jnp.full(2_000, -1.0, jnp.bfloat16), "scale": jnp.full(3, -1.0)}
    nearest, _ = updates(optax.sgd(1 / 2000), params, [gradient] * 200)
    assert {float(x) for x in np.unique(nearest[-1]["up"])} == {1.0}
    rounded, state = updates(stochastic_rounding(optax.sgd(1 / 2000)), params, [gradient] * 200)
    up = np.asarray(rounded[-1]["up"], np.float64)
    assert rounded[-1]["up"].dtype == jnp.bfloat16
    assert up.mean() == pytest.approx(1.1, abs=4 * up.std() / np.sqrt(up.size))
    np.testing.assert_allclose(rounded[-1]["scale"], 1.1, rtol=1e-5)
    assert int(state.updates) == 200
    assert not np.array_equal(rounded[0]["up"], rounded[1]["up"])  # numbers of its own each


def test_it_computes_in_float32():
    """So moments are, and with float32 parameters it is the optimizer that it wraps."""
    params = {"up": jnp.ones(4, jnp.bfloat16)}
    inner = AdamW()(1e-3, max_grad_norm=1.0)
    moments = [x for x in jax.tree.leaves(stochastic_rounding(inner).init(params)) if x.ndim]
    assert {x.dtype for x in moments} == {jnp.dtype("float32")}
    wide = {"up": jnp.asarray(RNG.normal(size=9), jnp.float32)}
    gradients = [{"up": jnp.asarray(RNG.normal(size=9), jnp.float32)}] * 3
    plain, wrapped = (
        updates(each, wide, gradients)[0][-1]["up"] for each in (inner, stochastic_rounding(inner))
    )
    np.testing.assert_array_equal(plain, wrapped)


def test_what_is_not_finite_is_still_skipped():
    optimizer = skip_nonfinite(stochastic_rounding(optax.sgd(0.1)))
    params = {"up": jnp.ones(3, jnp.bfloat16)}
    (after,), state = updates(optimizer, params, [{"up": jnp.array([1.0, jnp.nan, 1.0])}])
    np.testing.assert_array_equal(after["up"], params["up"])
    assert int(state.skipped) == 1


@pytest.mark.parametrize(
    ("optimizer", "dtype", "bytes_each"),
    [
        (AdamW(), "float32", 12.0),
        (AdamW(mu_dtype="bfloat16"), "float32", 10.0),
        (AdamW(), "bfloat16", 10.0),
        (AdamW(mu_dtype="bfloat16"), "bfloat16", 8.0),
        (Adafactor(), "float32", 4.0),
        (Adafactor(), "bfloat16", 2.0),
    ],
)
def test_bytes_of_a_parameter_as_docs_scale_md_has_them(optimizer, dtype, bytes_each):
    """Of the matrices and their moments; norm scales, biases and the embedding are float32."""
    config = ModelConfig(
        vocab_size=8, model_dim=256, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=128,
        mlp_dim=512, tie_embeddings=True,
    )  # fmt: skip
    params = random_params(config)
    count = sum(x.size for x in jax.tree.leaves(params))
    transformation = stochastic_rounding(optimizer(1e-4, max_grad_norm=1.0))
    state = init_state(compute_params(params, dtype, learned=True), transformation)
    held = sum(x.nbytes for x in jax.tree.leaves((state.params, state.opt_state)))
    assert held / count == pytest.approx(bytes_each, abs=0.06)
