"""What a run writes beside its metrics: JSON files, and facts that explain them later."""

import dataclasses
import hashlib
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from jaxalign.data.prompts import Prompt
from jaxalign.errors import InputError


def write_json(path: Path, value: Any) -> None:
    """Writes aside, then renames: a killed run leaves the whole file or none."""
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(aside, path)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object that an earlier process of this run wrote.

    Raises:
      InputError: the file is not JSON.
    """
    try:
        value: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); start another run") from error
    return value


def prompts_digest(prompts: Sequence[Prompt]) -> str:
    """A fingerprint of prompts, so that a resumed run notices another file."""
    text = json.dumps([dataclasses.astuple(prompt) for prompt in prompts])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


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
