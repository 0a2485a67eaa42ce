"""The losses can be used on their own: importing them loads jax and chex, and nothing heavier."""

import pathlib
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).parents[2]
HEAVY = {"transformers", "datasets", "flax", "optax", "orbax", "torch", "tensorflow"}
SHOW = "import sys, jaxalign.losses; print(*sys.modules)"


def test_importing_the_losses_loads_nothing_heavy():
    shown = subprocess.run(
        [sys.executable, "-c", SHOW], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    modules = shown.stdout.split()
    assert "jaxalign.losses" in modules
    assert not HEAVY & {name.split(".")[0] for name in modules}
    ours = {name.split(".")[1] for name in modules if name.startswith("jaxalign.")}
    assert ours <= {"losses", "errors"}
