"""Where there is no TPU, nothing is said about one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxalign.host.devices import GOOGLE


def run(shown, **environment):
    program = (
        "import jax; from jaxalign.host.devices import skip_absent_tpu; skip_absent_tpu();"
        f"print({shown})"
    )
    kept = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    command = [sys.executable, "-c", program]
    return subprocess.run(
        command, env=kept | environment, capture_output=True, text=True, check=True
    )


def test_libtpu_without_a_tpu_is_silent():
    pytest.importorskip("libtpu")
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    if any(GOOGLE in vendor.read_text() for vendor in vendors):
        pytest.skip("there may be a TPU here")
    ended = run("jax.config.jax_platforms, jax.devices()[0].platform")
    assert ended.stdout.split() == ["cpu", "cpu"] and not ended.stderr


def test_a_platform_that_was_chosen_stays():
    assert run("jax.config.jax_platforms", JAX_PLATFORMS="tpu").stdout == "tpu\n"
