"""What a run was on, for those who read its numbers later."""

import os
import platform
from pathlib import Path

import jax


def hardware() -> str:
    """What the run runs on, and with which versions."""
    device = jax.devices()[0]
    machine = f"{jax.device_count()} x {device.device_kind}"
    if device.platform == "cpu":
        cpuinfo = Path("/proc/cpuinfo")
        lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        machine = f"{os.cpu_count()} cores, {(names or [platform.machine()])[0]}"
    if jax.process_count() > 1:
        machine += f", {jax.process_count()} processes"
    return f"{machine}; jax {jax.__version__}, Python {platform.python_version()}"
