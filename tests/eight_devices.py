"""Runs a program on eight virtual devices, in a process of its own: they are fixed at start."""

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def run_on_eight_devices(program, *arguments):
    """The lines that a program prints, and its messages."""
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", program, *map(str, arguments)],
            env={
                **os.environ,
                "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
                "JAX_PLATFORMS": "cpu",
                "PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS))),
            },
            capture_output=True,
            text=True,
        )
        # On few cores the threads of XLA's CPU client can wait for each other in a collective; it
        # aborts after 40 seconds. That says nothing of the program.
        if done.returncode >= 0 or "rendezvous" not in done.stderr:
            break
    return done.stdout.splitlines(), done.stderr
