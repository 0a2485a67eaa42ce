"""Gradients in bfloat16 of what many positions share are those of sums in float64."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eight_devices import run_on_eight_devices
from tiny_model import SMALL, random_params

from jaxalign.models import ModelConfig, Transformer
from jaxalign.models.network import add_bias


def test_a_bias_is_rounded_before_it_is_added():
    """1 + 1/512 is no bfloat16."""
    out = add_bias(jnp.array([3.0, 4.0], jnp.bfloat16), jnp.array([1 + 1 / 512, 0.5]))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(out, np.float32), [4.0, 4.5])


def test_a_bias_of_16384_positions():
    x = jnp.zeros((16, 1024, 8), jnp.bfloat16)
    cotangent = jnp.asarray(np.random.default_rng(0).normal(0.5, 1.0, x.shape), x.dtype)
    got = jax.vjp(lambda bias: add_bias(x, bias), jnp.zeros(8))[1](cotangent)[0]
    wanted = np.asarray(cotangent, np.float64).sum(axis=(0, 1))
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


@pytest.mark.parametrize("family", [{"qkv_bias": True}, {"qk_norm": True, "tie_embeddings": False}])
def test_completions_sum_no_gradient_in_bfloat16(family):
    """On prompts and a prefix, outside of products, which sum in float32 within."""
    model = Transformer(ModelConfig(**{**vars(SMALL), **family}))
    ids, exist = (lambda *shape: jnp.ones(shape, int)), (lambda *shape: jnp.ones(shape, bool))
    rows = ids(2, 5), exist(2, 5), ids(4, 7), exist(4, 7)
    loss = lambda params: model.logps(params, *rows, prefix=ids(3)).sum()  # noqa: E731
    program = str(jax.make_jaxpr(jax.grad(loss))(random_params(model.config)))
    sums = set(re.findall(r":(\w+)\[[\d,]*\] = (reduce_sum|scatter-add)\[", program))
    assert sums == {("f32", "reduce_sum"), ("f32", "scatter-add")}


_MODEL = """
import functools, math
import jax, jax.numpy as jnp, numpy as np
from flax import traverse_util
from jaxalign.models import ModelConfig, Transformer
from jaxalign.models.layout import lay_out, parameter_shardings
from jaxalign.models.packing import PackedBatch, packed_logps
from jaxalign.models.sharding import make_mesh
from tiny_model import random_params

CONFIG = ModelConfig(
    vocab_size=64, num_layers=1, model_dim=32, num_heads=8, num_kv_heads=8, head_dim=4, mlp_dim=32,
    qkv_bias=True,
)
PARAMS = random_params(CONFIG)
rng = np.random.default_rng(0)
tokens = np.where(rng.random((1024, 18)) < 0.95, 5, rng.integers(64, size=(1024, 18)))
assert (tokens == 5).sum() > 16384

def gradients(model, params, tokens):
    places = jnp.broadcast_to(jnp.arange(18), tokens.shape)
    batch = PackedBatch(tokens, jnp.ones_like(tokens), places, places > 0)
    return lay_out(model, jax.grad(lambda params: packed_logps(model, params, batch).sum())(params))

def of_each_row(model, params, tokens):
    return jax.lax.map(lambda row: gradients(model, params, row[None]), tokens)

def compute(what, sizes):
    mesh = make_mesh(*sizes, devices=jax.devices()[: math.prod(sizes)])
    places = traverse_util.unflatten_dict(parameter_shardings(CONFIG, mesh), sep="/")
    function = jax.jit(functools.partial(what, Transformer(CONFIG, mesh=mesh)))
    found = jax.device_get(function(jax.device_put(PARAMS, places), tokens))
    return traverse_util.flatten_dict(found, sep="/")

for sizes in ((1, 1, 1), (2, 4, 1), (1, 1, 8)):
    each, got = compute(of_each_row, (1, 1, sizes[2])), compute(gradients, sizes)
    for path, leaf in each.items():
        wanted = np.asarray(leaf, np.float64).sum(axis=0)
        error = np.linalg.norm(got[path] - wanted) / np.linalg.norm(wanted)
        assert error <= 5e-3, (sizes, path, error)
    print(sizes, "equal")
"""


def test_a_batchs_gradient_is_the_sum_of_its_rows():
    """Each row's in bfloat16, summed in float64: on one device, and on eight that share it.

    Devices that split the products round the activations otherwise, so that a row is asked of them
    too: its gradient is as far from one device's as that is from float32's, .01.
    """
    lines, messages = run_on_eight_devices(_MODEL)
    assert lines == ["(1, 1, 1) equal", "(2, 4, 1) equal", "(1, 1, 8) equal"], messages
