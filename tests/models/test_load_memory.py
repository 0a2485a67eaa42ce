"""What a process holds while it loads its share of a large checkpoint, measured."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_model import random_params

from jaxalign.models import ModelConfig, Transformer, save_pretrained

TESTS = Path(__file__).parents[1]
CONFIG = ModelConfig(
    vocab_size=49152,
    num_layers=12,
    model_dim=1024,
    num_heads=16,
    num_kv_heads=16,
    head_dim=64,
    mlp_dim=4096,
)

# Anonymous memory: pages of the file that the kernel keeps while nobody else needs the room are
# not held. Sampled every millisecond, for the kernel keeps no peak of it.
_LOAD = """
import json, sys, threading, time
from transformers import PreTrainedTokenizerFast  # brings torch where it is, before what counts
from jaxalign.models import load_pretrained
from jaxalign.models.sharding import make_mesh
from jaxalign.host.processes import join
import jax

def held():
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024

def watch():
    while not done:
        seen.append(held())
        time.sleep(0.001)

join(sys.argv[2])
mesh = make_mesh(1, 2, 1)
jax.block_until_ready(jax.numpy.ones(8) + 1)
done, before, seen = False, held(), []
watcher = threading.Thread(target=watch)
watcher.start()
model, params, tokenizer = load_pretrained(sys.argv[1], mesh=mesh)
jax.block_until_ready(params)
done = True
watcher.join()
kept = sum(s.data.nbytes for x in jax.tree.leaves(params) for s in x.addressable_shards)
print(json.dumps({"peak": max(seen) - before, "kept": kept}), file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_a_process_holds_little_more_than_its_share(tmp_path, smollm2_tokenizer):
    """Two processes, a float32 checkpoint of a gigabyte in files: at most 1.3 shares + 200 MB."""
    folder = tmp_path / "model"
    params = random_params(CONFIG)
    save_pretrained(folder, Transformer(CONFIG), params, smollm2_tokenizer, max_shard_bytes=2**28)
    del params
    files = sorted(folder.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files)
    assert len(files) > 3 and size > 10**9
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _LOAD, folder, f"{address},2,{index}"],
            env=os.environ
            | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(TESTS.parent)}
            | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    everything = [process.communicate(timeout=300)[1] for process in processes]
    for process, messages in zip(processes, everything, strict=True):
        assert process.returncode == 0, messages
        measured = json.loads(messages.splitlines()[-1])
        print(measured)
        assert size / 2 * 0.98 < measured["kept"] < size / 2 * 1.02
        assert measured["peak"] <= 1.3 * measured["kept"] + 200e6
