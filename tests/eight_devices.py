"""Runs a program on eight virtual devices, in a process of its own: they are fixed at start."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def run_on_eight_devices(program, *arguments):
    """The lines that a program prints, and its messages."""
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={
            **os.environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=8 "
            "--xla_backend_optimization_level=0",  # compiling is most of the time
            "JAX_PLATFORMS": "cpu",
            "PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS))),
        },
        capture_output=True,
        text=True,
    )
    return done.stdout.splitlines(), done.stderr
