"""The decoder: its tree, what its positions see, rematerialisation and sharding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from eight_devices import run_on_eight_devices
from flax import linen as nn
from flax import traverse_util
from tiny_model import SMALL

from jaxalign.models.config import ModelConfig
from jaxalign.models.heads import output_weight
from jaxalign.models.parameters import leaf_shapes
from jaxalign.models.transformer import Transformer

CONFIG = SMALL
MODEL = Transformer(CONFIG, dtype=jnp.float32)
TOKENS = np.random.default_rng(0).integers(32, size=(2, 7)).astype(np.int32)
POSITIONS = np.broadcast_to(np.arange(7), TOKENS.shape)
ALL = np.ones(TOKENS.shape, bool)


def init(model: Transformer):
    one = jnp.ones((1, 1), jnp.int32)
    return nn.unbox(model.init(jax.random.key(0), one, one, one.astype(bool)))["params"]


@pytest.fixture(scope="module")
def params():
    return jax.jit(functools.partial(init, MODEL))()


@functools.partial(jax.jit, static_argnames="model")
def run(params, tokens=TOKENS, mask=ALL, model=MODEL):
    return model.apply({"params": params}, tokens, POSITIONS, mask)[0]


@pytest.mark.parametrize(
    ("tied", "family"), [(True, {}), (False, {"qkv_bias": True}), (True, {"qk_norm": True})]
)
def test_tree_is_the_one_that_checkpoints_fill(tied, family):
    config = ModelConfig(**{**vars(CONFIG), "tie_embeddings": tied, **family})
    tree = jax.eval_shape(functools.partial(init, Transformer(config)))
    leaves = traverse_util.flatten_dict(tree, sep="/")
    assert {path: leaf.shape for path, leaf in leaves.items()} == leaf_shapes(config)
    assert {leaf.dtype for leaf in leaves.values()} == {jnp.dtype("float32")}
    assert output_weight(tree) is leaves["embed/embedding" if tied else "lm_head/kernel"]


def test_a_position_depends_on_itself_and_the_past_alone(params):
    changed = TOKENS.copy()
    changed[:, 4] = (changed[:, 4] + 1) % 32
    difference = np.abs(run(params) - run(params, changed)).max(axis=(0, 2))
    np.testing.assert_array_equal(difference[:4], 0.0)
    assert (difference[4:] > 1e-4).all()


def test_a_masked_position_changes_nothing_elsewhere(params):
    mask = ALL.copy()
    mask[:, 2] = False
    changed = TOKENS.copy()
    changed[:, 2] = (changed[:, 2] + 1) % 32
    hidden = run(params, TOKENS, mask)
    others = [0, 1, 3, 4, 5, 6]
    np.testing.assert_array_equal(hidden[:, others], run(params, changed, mask)[:, others])
    # Without the mask it is seen, so it is the mask that hides it.
    assert np.abs(hidden - run(params))[:, 3:].max() > 1e-4


def test_a_block_on_top_of_another_equals_both_in_one(params):
    def apply(part, *contexts):
        inputs = TOKENS[:, part], POSITIONS[:, part], ALL[:, part]
        return MODEL.apply({"params": params}, *inputs, contexts)

    @jax.jit
    def in_two():
        first, block = apply(slice(0, 4))
        second, _ = apply(slice(4, 7), block)
        return jnp.concatenate([first, second], axis=1)

    np.testing.assert_allclose(in_two(), run(params), atol=1e-5)


def test_hidden_states_have_the_compute_dtype(params):
    hidden = run(params, model=Transformer(CONFIG, dtype=jnp.bfloat16))
    assert hidden.dtype == jnp.bfloat16
    np.testing.assert_allclose(hidden.astype(np.float32), run(params), atol=0.1)


def test_rematerialisation_keeps_the_gradients(params):
    cotangent = np.random.default_rng(1).normal(size=(2, 7, 16)).astype(np.float32)

    @functools.partial(jax.jit, static_argnames="remat")
    @jax.grad
    def grads(params, *, remat):
        model = Transformer(CONFIG, dtype=jnp.float32, remat=remat)
        return jnp.vdot(cotangent, model.apply({"params": params}, TOKENS, POSITIONS, ALL)[0])

    kept = grads(params, remat="none")
    for remat in ("dots", "full"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
            grads(params, remat=remat),
            kept,
        )


_SHARDED = """
import functools
import jax, jax.numpy as jnp, numpy as np
from flax import linen as nn, traverse_util
from jaxalign.models.config import ModelConfig
from jaxalign.models.heads import hidden_token_logps, output_weight
from jaxalign.models.layout import parameter_shardings
from jaxalign.models.sharding import make_mesh
from jaxalign.models.transformer import Transformer

assert jax.device_count() == 8
model = Transformer({config!r}, dtype=jnp.float32)
one = jnp.ones((1, 1), jnp.int32)
params = jax.jit(lambda: nn.unbox(model.init(jax.random.key(0), one, one, one > 0)))()["params"]
mesh = make_mesh(2, 2, 2)
shardings = traverse_util.unflatten_dict(parameter_shardings(model.config, mesh), sep="/")
sharded = jax.device_put(params, shardings)

shard = lambda leaf: leaf.sharding.shard_shape(leaf.shape)
attention = sharded["layers"]["attention"]
assert shard(sharded["embed"]["embedding"]) == (32 // 2, 16 // 2)   # tensor, fsdp
assert shard(attention["query"]) == (2, 24 // 2, 16 // 2)           # all layers, tensor, fsdp
assert shard(attention["output"]) == (2, 16 // 2, 24 // 2)          # all layers, fsdp, tensor
assert shard(sharded["final_norm"]["scale"]) == (16 // 2,)          # fsdp

rng = np.random.default_rng(0)
inputs, targets = rng.integers(32, size=(2, 8, 5)).astype(np.int32)
mask = np.arange(5) < np.arange(1, 9)[:, None]
positions = np.broadcast_to(np.arange(5), mask.shape)

@functools.partial(jax.jit, static_argnums=0)
def run(model, params, inputs, targets, mask):
    def loss(params):
        hidden, _ = model.apply({{"params": params}}, inputs, positions, mask)
        logps = hidden_token_logps(hidden, output_weight(params), targets)
        return jnp.where(mask, logps, 0.0).sum(), logps
    return jax.grad(loss, has_aux=True)(params)

expected_grads, expected = run(model, params, inputs, targets, mask)
rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(("data", "fsdp")))
grads, got = run(model.clone(mesh=mesh), sharded, *jax.device_put((inputs, targets, mask), rows))
np.testing.assert_allclose(got, expected, atol=1e-5)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, expected_grads)
print("equal")
"""


def test_eight_devices_compute_what_one_does():
    lines, messages = run_on_eight_devices(_SHARDED.format(config=CONFIG))
    assert lines == ["equal"], messages
