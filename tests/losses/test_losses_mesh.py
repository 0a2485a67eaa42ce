"""Rows split over four devices: what reduces over the batch gives what one device gives."""

import os
import subprocess
import sys
from pathlib import Path

SPLIT = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxalign.losses import *

assert jax.device_count() == 4
rows = NamedSharding(Mesh(np.array(jax.devices()), "data"), PartitionSpec("data"))
keys = iter(jax.random.split(jax.random.key(0), 9))
rewards = jax.random.normal(next(keys), (8, 4))
parts = jax.random.normal(next(keys), (8, 4, 2))
modes = jax.random.randint(next(keys), (8, 4), 0, 3)
logp, old, advantages, values = (jax.random.normal(next(keys), (32, 5)) for _ in range(4))
mask = jax.random.bernoulli(next(keys), 0.7, (32, 5)).at[-8:].set(False)  # a device without tokens


def losses(logp, old, advantages, mask):
    token = clipped_surrogate(logp, old, advantages, ratio="sequence", mask=mask)
    norm = {"constant": 7.0}
    return jnp.stack([
        aggregate(token, mask, mode=mode, normalizer=norm.get(mode))
        for mode in ("token_mean", "sequence_mean", "sequence_sum", "constant")
    ])


FUNCTIONS = {
    "losses": (losses, logp, old, advantages, mask),
    "their gradients": (jax.jacobian(losses), logp, old, advantages, mask),
    "clip fraction": (clip_fraction, logp, old, advantages, mask),
    "group": (group_advantages, rewards),
    "batch": (batch_advantages, rewards),
    "shrinkage": (shrinkage_advantages, rewards),
    "several rewards": (lambda r: multi_reward_advantages(r, jnp.array([1.0, 0.3])), parts),
    "inverse frequency": (
        lambda r, m: inverse_frequency_advantages(r, m, num_modes=3, scope="batch"), rewards, modes
    ),
    "whitened": (lambda r, v, m: whiten(gae(r, v, m)[0], m), advantages, values, mask),
}
for name, (function, *arrays) in FUNCTIONS.items():
    whole = jax.jit(function)(*arrays)
    split = jax.jit(function)(*(jax.device_put(a, rows) for a in arrays))
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(split), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6, err_msg=name)
    print(name)
"""


def test_a_split_over_devices_changes_nothing():
    flags = "--xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", SPLIT],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "whitened"
