"""The decoder: its tree, what its positions see, rematerialisation and sharding."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from jaxalign.models.config import ModelConfig
from jaxalign.models.transformer import Transformer, output_weight
from jaxalign.models.weights import leaf_shapes

CONFIG = ModelConfig(
    vocab_size=32,
    num_layers=2,
    model_dim=16,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    mlp_dim=24,
)
MODEL = Transformer(CONFIG, dtype=jnp.float32)
ONE = jnp.ones((1, 1), jnp.int32)
TOKENS = np.random.default_rng(0).integers(32, size=(2, 7)).astype(np.int32)
POSITIONS = np.broadcast_to(np.arange(7), TOKENS.shape)


def initial(model: Transformer):
    return nn.unbox(model.init(jax.random.key(0), ONE, ONE, ONE.astype(bool)))["params"]


@pytest.fixture(scope="module")
def params():
    return initial(MODEL)


def run(params, tokens=TOKENS, mask=None, model=MODEL):
    mask = np.ones(tokens.shape, bool) if mask is None else mask
    return model.apply({"params": params}, tokens, POSITIONS, mask)[0]


@pytest.mark.parametrize("tied", [True, False])
def test_tree_is_the_one_that_checkpoints_fill(tied):
    config = ModelConfig(**{**vars(CONFIG), "tie_embeddings": tied})
    leaves = traverse_util.flatten_dict(initial(Transformer(config)), sep="/")
    shapes = {
        path: (config.num_layers, *shape) if path.startswith("layers/") else shape
        for path, shape in leaf_shapes(config).items()
    }
    assert {path: leaf.shape for path, leaf in leaves.items()} == shapes
    assert {leaf.dtype for leaf in leaves.values()} == {jnp.dtype("float32")}
    expected = leaves["embed/embedding" if tied else "lm_head/kernel"]
    assert output_weight(traverse_util.unflatten_dict(leaves, sep="/")) is expected


def test_a_position_depends_on_itself_and_the_past_alone(params):
    changed = TOKENS.copy()
    changed[:, 4] = (changed[:, 4] + 1) % 32
    difference = np.abs(run(params) - run(params, changed)).max(axis=(0, 2))
    assert (difference[:4] == 0).all()
    assert (difference[4:] > 1e-4).all()


def test_a_masked_position_changes_nothing_elsewhere(params):
    mask = np.ones(TOKENS.shape, bool)
    mask[:, 2] = False
    changed = TOKENS.copy()
    changed[:, 2] = (changed[:, 2] + 1) % 32
    others = [0, 1, 3, 4, 5, 6]
    np.testing.assert_array_equal(
        run(params, mask=mask)[:, others], run(params, changed, mask)[:, others]
    )
    # It was seen before it was masked, so the mask is what hides it.
    assert np.abs(run(params) - run(params, mask=mask))[:, 3:].max() > 1e-4


def test_a_block_on_top_of_another_equals_both_in_one(params):
    whole = run(params)
    apply = lambda part, *contexts: MODEL.apply(  # noqa: E731
        {"params": params},
        TOKENS[:, part],
        POSITIONS[:, part],
        np.ones(TOKENS[:, part].shape, bool),
        contexts,
    )
    first, block = apply(slice(0, 4))
    second, _ = apply(slice(4, 7), block)
    np.testing.assert_allclose(np.concatenate([first, second], axis=1), whole, atol=1e-5)


def test_compute_dtype_is_the_models(params):
    model = Transformer(CONFIG, dtype=jnp.bfloat16)
    hidden = run(params, model=model)
    assert hidden.dtype == jnp.bfloat16
    np.testing.assert_allclose(hidden.astype(np.float32), run(params), atol=0.1)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_rematerialisation_keeps_the_gradients(params, remat):
    cotangent = np.random.default_rng(1).normal(size=(2, 7, 16)).astype(np.float32)

    def grads(model):
        return jax.jit(jax.grad(lambda p: jnp.vdot(cotangent, run(p, model=model))))(params)

    got = grads(Transformer(CONFIG, dtype=jnp.float32, remat=remat))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, grads(MODEL))


_SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from flax import linen as nn
from jaxalign.models.completion import completion_logps
from jaxalign.models.config import ModelConfig
from jaxalign.models.sharding import RULES, parameter_shardings
from jaxalign.models.transformer import Transformer

assert jax.device_count() == 8
model = Transformer({config!r}, dtype=jnp.float32)
one = jnp.ones((1, 1), jnp.int32)
params = nn.unbox(model.init(jax.random.key(0), one, one, one.astype(bool)))["params"]
mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 2, 2), ("data", "fsdp", "tensor"))
sharded = jax.device_put(params, parameter_shardings(model, mesh))

shard = lambda leaf: leaf.sharding.shard_shape(leaf.shape)
attention = sharded["layers"]["attention"]
assert shard(sharded["embed"]["embedding"]) == (32 // 2, 16 // 2)   # tensor, fsdp
assert shard(attention["query"]) == (2, 24 // 2, 16 // 2)           # all layers, tensor, fsdp
assert shard(attention["output"]) == (2, 16 // 2, 24 // 2)          # all layers, fsdp, tensor
assert shard(sharded["final_norm"]["scale"]) == (16 // 2,)          # fsdp

rng = np.random.default_rng(0)
prompts = rng.integers(32, size=(4, 3)).astype(np.int32)
tokens = rng.integers(32, size=(8, 5)).astype(np.int32)
mask = np.arange(5) < np.arange(1, 9)[:, None]

def loss(params, prompts, tokens, mask):
    logps = completion_logps(model, params, prompts, jnp.ones(prompts.shape, bool), tokens, mask)
    return jnp.where(mask, logps, 0.0).sum(), logps

run = jax.jit(jax.value_and_grad(loss, has_aux=True))
(_, expected), expected_grads = run(params, prompts, tokens, mask)
rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))
with mesh, nn.logical_axis_rules(RULES):
    (_, got), grads = run(sharded, *jax.device_put((prompts, tokens, mask), rows))
np.testing.assert_allclose(got, expected, atol=1e-5)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, expected_grads)
print("equal")
"""


def test_eight_devices_compute_what_one_does():
    flags = "--xla_force_host_platform_device_count=8"
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", _SHARDED.format(config=CONFIG)],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PYTHONPATH": root},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "equal", done.stderr
