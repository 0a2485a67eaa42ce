"""Small JSON files that a killed run leaves whole, such as what a run depends on."""

import json
import os
from pathlib import Path
from typing import Any

from jaxalign.host.errors import InputError


def write_json(path: Path, value: Any) -> None:
    """Writes aside, then renames: a killed run leaves the whole file or none."""
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(value, indent=1) + "\n")
    os.replace(aside, path)


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
