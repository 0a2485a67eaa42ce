"""Files that a killed run leaves whole, such as what a run depends on, as JSON."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jaxalign.host.errors import InputError


def write_whole(path: Path, parts: Iterable[bytes]) -> None:
    """Writes aside, then renames: a kill leaves the old file or the new one, whole."""
    aside = path.with_name(f"{path.name}.tmp")
    with aside.open("wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def write_json(path: Path, value: Any) -> None:
    """Writes a file that is whole at any time (`write_whole`)."""
    write_whole(path, [json.dumps(value, indent=1).encode(), b"\n"])


def fingerprint(value: Any) -> str:
    """What tells a JSON value from others, in 16 characters."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def read_json(path: Path, *, remedy: str = "start another run, in another place") -> dict[str, Any]:
    """The JSON object that an earlier process wrote; an error ends with the remedy.

    Raises:
      InputError: the file holds no JSON object.
    """
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path}: damaged ({error}); {remedy}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path}: damaged (not a JSON object); {remedy}")
    return value
