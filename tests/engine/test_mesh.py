"""One step on eight devices: the numbers of one device, and no device keeps more than its share.

PPO's step, with its critic, too.
"""

from eight_devices import run_on_eight_devices

_STEP = """
import jax, jax.numpy as jnp, numpy as np, optax
from jaxalign.host.errors import InputError
from jaxalign.models import ModelConfig, Transformer
from jaxalign.models.completion import compute_params
from jaxalign.models.layout import parameter_shardings, place_adapter
from jaxalign.models.lora import Lora, init_adapter
from jaxalign.models.sharding import make_mesh
from jaxalign.sampling import Temperature
from jaxalign.engine.objective import GRPO
from jaxalign.engine.optimizer import Adafactor, AdamW
from jaxalign.engine.rounding import stochastic_rounding
from jaxalign.engine.penalties import K2
from jaxalign.engine.state import init_state
from jaxalign.engine.step import Frozen, Sampling, Updates, make_step
from jaxalign.records import Batch, Prompts
from jaxalign.rewards import device_reward
from flax import traverse_util
from tiny_model import random_params

CONFIG = ModelConfig(
    vocab_size=64, num_layers=2, model_dim=32, num_heads=8, num_kv_heads=2, head_dim=8, mlp_dim=64
)
SAMPLING = Sampling(4, 6, stop=(2,), method=Temperature(0.9))
OBJECTIVE, UPDATES = GRPO(kl=K2(0.1)), Updates(micro_batches=2)
OPTIMIZER = AdamW()(1e-4, max_grad_norm=1.0)
rng = np.random.default_rng(0)
BATCH = Batch(
    Prompts(
        tokens=jnp.asarray(rng.integers(3, 64, (8, 5)), jnp.int32),
        mask=jnp.asarray(np.arange(5) < rng.integers(1, 6, (8, 1))),
    ),
    prefix=jnp.asarray([5, 6, 7], jnp.int32),
)

def even_tokens(batch, samples):
    even = ((samples.tokens % 2 == 0) & samples.mask).sum(axis=1)
    return even / jnp.maximum(samples.mask.sum(axis=1), 1)

def two_steps(model, params, adapter=None, optimizer=OPTIMIZER):
    step = make_step(model, optimizer, sampling=SAMPLING, objective=OBJECTIVE, updates=UPDATES)
    state, losses = init_state(params if adapter is None else adapter, optimizer), []
    frozen = Frozen(device_reward(even_tokens), base=params)
    for _ in range(2):
        state, result = step(state, BATCH, jax.random.key(2), frozen)
        losses.append(float(result.metrics["loss"]))
    assert step.whole._cache_size() == 1
    return state, losses, jax.device_get(result.samples.tokens)

def share(leaf):
    return max(shard.data.nbytes for shard in leaf.addressable_shards)

params = random_params(CONFIG, scale=0.3)
expected, losses, tokens = two_steps(Transformer(CONFIG, dtype=jnp.float32), params)
for sizes in ((8, 1, 1), (1, 8, 1), (1, 1, 8), (2, 2, 2)):
    mesh = make_mesh(*sizes)
    shardings = parameter_shardings(CONFIG, mesh)
    laid = jax.device_put(params, traverse_util.unflatten_dict(shardings, sep="/"))
    state, got, sampled = two_steps(Transformer(CONFIG, dtype=jnp.float32, mesh=mesh), laid)
    np.testing.assert_array_equal(sampled, tokens)
    np.testing.assert_allclose(got, losses, atol=1e-5)
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True)
    assert max(float(jnp.abs(jax.device_get(a) - b).max()) for a, b in pairs) <= 1e-5
    # Parameters and both moments: norms are split by fsdp alone, all else by fsdp and tensor.
    trees = [state.params, *(x for x in jax.tree.leaves(
        state.opt_state, is_leaf=lambda x: isinstance(x, dict)) if isinstance(x, dict))]
    assert len(trees) == 3
    for path, leaf in (item for tree in trees for item in jax.tree.leaves_with_path(tree)):
        parts = sizes[1] * (1 if path[-1].key == "scale" else sizes[2])
        assert share(leaf) == leaf.nbytes // parts, (sizes, path, leaf.sharding)
    print("x".join(map(str, sizes)), "equal")

# An adapter and its moments lie as the matrices that it adds to, but for the rank.
lora = Lora(rank=2)
adapter = init_adapter(CONFIG, lora, jax.random.key(1))
expected, losses, tokens = two_steps(Transformer(CONFIG, jnp.float32, lora=lora), params, adapter)
UPDATES = Updates(packed=True)  # rows of several completions are a device's own, by equal numbers
for sizes in ((8, 1, 1), (1, 8, 1), (2, 2, 2)):
    mesh = make_mesh(*sizes)
    shardings = parameter_shardings(CONFIG, mesh)
    laid = jax.device_put(params, traverse_util.unflatten_dict(shardings, sep="/"))
    model = Transformer(CONFIG, jnp.float32, mesh=mesh, lora=lora)
    state, got, sampled = two_steps(model, laid, place_adapter(model, adapter))
    np.testing.assert_array_equal(sampled, tokens)
    np.testing.assert_allclose(got, losses, atol=1e-5)
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True)
    assert max(float(jnp.abs(jax.device_get(a) - b).max()) for a, b in pairs) <= 1e-5
    up = state.params["adapter"]["layers"]["mlp"]["up"]
    assert share(up["a"]) == up["a"].nbytes // sizes[1]
    assert share(up["b"]) == up["b"].nbytes // sizes[2]
    print("x".join(map(str, sizes)), "equal with an adapter")

# Parameters in bfloat16, rounded alike but where sums of another order cross a boundary; means of
# squares of rows and of columns, which are small, are whole on every device.
CONFIG = ModelConfig(
    vocab_size=128, num_layers=2, model_dim=128, num_heads=8, num_kv_heads=2, head_dim=16,
    mlp_dim=256,
)
UPDATES = Updates(micro_batches=2)
small = stochastic_rounding(Adafactor()(1e-4, max_grad_norm=1.0))
params = compute_params(random_params(CONFIG, scale=0.1), jnp.bfloat16, learned=True)
one, *_ = two_steps(Transformer(CONFIG, jnp.float32), params, optimizer=small)
mesh = make_mesh(2, 2, 2)
shardings = parameter_shardings(CONFIG, mesh)
laid = jax.device_put(params, traverse_util.unflatten_dict(shardings, sep="/"))
state, *_ = two_steps(Transformer(CONFIG, jnp.float32, mesh=mesh), laid, optimizer=small)
up, expected = (x.params["layers"]["mlp"]["up"] for x in (state, one))
assert up.dtype == jnp.bfloat16 and share(up) == up.nbytes // 4
changed = np.asarray(up) != np.asarray(params["layers"]["mlp"]["up"])
unequal = np.asarray(up) != np.asarray(expected)
print("bfloat16:", changed.mean() > 0.05, unequal.mean() < 0.01 * changed.mean())
try:
    make_mesh(2, 2, 1)
except InputError as error:
    print(error)
"""


_PPO = """
import jax, jax.numpy as jnp, numpy as np
from flax import traverse_util
from jaxalign.models import ModelConfig, Transformer
from jaxalign.models.layout import parameter_shardings
from jaxalign.models.sharding import make_mesh
from jaxalign.sampling import Temperature
from jaxalign.engine.optimizer import AdamW, with_critic_optimizer
from jaxalign.engine.ppo import PPO, with_critic
from jaxalign.engine.state import init_state
from jaxalign.engine.step import Frozen, Sampling, Updates, make_step
from jaxalign.records import Batch, Prompts
from jaxalign.rewards import device_reward
from tiny_model import random_params

CONFIG = ModelConfig(
    vocab_size=64, num_layers=2, model_dim=32, num_heads=8, num_kv_heads=2, head_dim=8, mlp_dim=64
)
SAMPLING = Sampling(4, 6, stop=(2,), method=Temperature(0.9))
OBJECTIVE, UPDATES = PPO(), Updates(minibatches=2, micro_batches=2)
ADAMW = AdamW()(1e-4, max_grad_norm=1.0)
OPTIMIZER = with_critic_optimizer(ADAMW, ADAMW)
rng = np.random.default_rng(0)
BATCH = Batch(
    Prompts(
        tokens=jnp.asarray(rng.integers(3, 64, (8, 5)), jnp.int32),
        mask=jnp.asarray(np.arange(5) < rng.integers(1, 6, (8, 1))),
    ),
    prefix=jnp.asarray([5, 6, 7], jnp.int32),
)

def even_tokens(batch, samples):
    even = ((samples.tokens % 2 == 0) & samples.mask).sum(axis=1)
    return even / jnp.maximum(samples.mask.sum(axis=1), 1)

def two_steps(model, params):
    step = make_step(model, OPTIMIZER, sampling=SAMPLING, objective=OBJECTIVE, updates=UPDATES)
    state, losses = init_state(with_critic(model, params), OPTIMIZER), []
    for _ in range(2):
        state, result = step(state, BATCH, jax.random.key(2), Frozen(device_reward(even_tokens)))
        losses.append(float(result.metrics["value_loss"]))
    assert step.whole._cache_size() == 1
    return state, losses

params = random_params(CONFIG, scale=0.3)
expected, losses = two_steps(Transformer(CONFIG, dtype=jnp.float32), params)
mesh = make_mesh(2, 2, 2)
laid = jax.device_put(
    params, traverse_util.unflatten_dict(parameter_shardings(CONFIG, mesh), sep="/")
)
model = Transformer(CONFIG, dtype=jnp.float32, mesh=mesh)
state, got = two_steps(model, laid)
np.testing.assert_allclose(got, losses, atol=1e-5)
pairs = zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True)
assert max(float(jnp.abs(jax.device_get(a) - b).max()) for a, b in pairs) <= 1e-5
critic, shardings = state.params["critic"], parameter_shardings(CONFIG, mesh)
for path, leaf in traverse_util.flatten_dict(critic["trunk"], sep="/").items():
    assert leaf.sharding == shardings[path], path
assert critic["head"].sharding.is_fully_replicated
print("equal")
"""


_RESTORE = """
import sys
import jax, jax.numpy as jnp, numpy as np
from flax import traverse_util
from jaxalign.models.config import ModelConfig
from jaxalign.models.layout import parameter_shardings
from jaxalign.models.sharding import make_mesh
from jaxalign.runs.checkpoint import Checkpoints
from jaxalign.engine.optimizer import AdamW
from jaxalign.engine.state import init_state
from tiny_model import random_params

CONFIG = ModelConfig(
    vocab_size=64, num_layers=2, model_dim=32, num_heads=8, num_kv_heads=2, head_dim=8, mlp_dim=64
)

def state_on(sizes, params):
    if sizes:
        shardings = parameter_shardings(CONFIG, make_mesh(*sizes))
        params = jax.device_put(params, traverse_util.unflatten_dict(shardings, sep="/"))
    return init_state(params, AdamW()(1e-4, max_grad_norm=1.0))

saved = state_on((1, 8, 1), random_params(CONFIG))
with Checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(saved, root_key=jax.random.key(3), config={}, wait=True)
    for sizes in ((2, 2, 2), (1, 8, 1), None):
        like = state_on(sizes, jax.tree.map(jnp.zeros_like, random_params(CONFIG)))
        state, key = checkpoints.restore(like, config={})
        for a, b, c in zip(*map(jax.tree.leaves, (state, saved, like)), strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.sharding == c.sharding
        print(sizes, "restored")
"""


def test_a_step_on_eight_devices_is_the_step_on_one():
    """Two steps with a prefix, micro-batches and a KL; one compilation for each mesh.

    Sums over a mesh round otherwise, so about one token in 20,000 is drawn otherwise: not with this
    key.
    """
    lines, messages = run_on_eight_devices(_STEP)
    assert lines == [
        "8x1x1 equal",
        "1x8x1 equal",
        "1x1x8 equal",
        "2x2x2 equal",
        "8x1x1 equal with an adapter",
        "1x8x1 equal with an adapter",
        "2x2x2 equal with an adapter",
        "bfloat16: True True",
        "mesh: data x fsdp x tensor = 2 x 2 x 1 does not make the 8 devices that there are: "
        "give --mesh sizes that do",
    ], messages


def test_ppo_on_eight_devices_is_ppo_on_one():
    """Two steps of two minibatches; the critic lies as the policy does, its head whole."""
    lines, messages = run_on_eight_devices(_PPO)
    assert lines == ["equal"], messages


def test_a_checkpoint_goes_on_on_another_mesh(tmp_path):
    lines, messages = run_on_eight_devices(_RESTORE, tmp_path)
    assert lines == ["(2, 2, 2) restored", "(1, 8, 1) restored", "None restored"], messages
