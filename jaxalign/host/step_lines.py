"""Files of JSON lines that a killed run leaves whole, and that a resumed one goes on with.

Each line is an object with an integer ``step``. A number that is not finite has no JSON form: it is
stored as null, and the line gains a field ``nonfinite`` that says what it was:
``{"grad_norm": null, "nonfinite": {"grad_norm": "inf"}}``.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from jaxalign.host.errors import InputError
from jaxalign.host.json_files import write_whole


class StepLines:
    """An append-only file of JSON lines, cut back to the steps before ``resume_step``.

    That is the first step that this process will write; 0 starts the file anew. A context manager
    that closes it; its folder is created when absent.

    Raises:
        InputError: a line of the existing file other than a torn last one is malformed.
    """

    def __init__(self, path: Path, resume_step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [x for x in read_lines(path) if x[1]["step"] < resume_step] if path.is_file() else []
        self.last_row = kept[-1][1] if kept else {}
        write_whole(path, (line + b"\n" for line, _ in kept))
        self._file = path.open("ab")

    def append(self, row: Mapping[str, Any]) -> None:
        """Writes one line; it has reached the operating system when this returns."""
        row = {name: x.item() if isinstance(x, np.generic) else x for name, x in row.items()}
        nonfinite = {
            name: str(x) for name, x in row.items() if isinstance(x, float) and not math.isfinite(x)
        }
        if nonfinite:
            row = {**row, **dict.fromkeys(nonfinite), "nonfinite": nonfinite}
        # ASCII only: model output may hold lone surrogates, which UTF-8 cannot store.
        self._file.write(json.dumps(row, allow_nan=False).encode("ascii") + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def read_lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Each line with its object.

    A torn last line is known by not parsing: no proper prefix of a JSON object does.

    Raises:
        InputError: there is no such file, or a line other than a torn last one is malformed.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; is this the folder of a run?") from None
    unterminated = lines.pop()
    parsed = []
    for number, line in enumerate(lines, start=1):
        row = _parse_line(line)
        if row is None:
            raise InputError(
                f"{path}, line {number}: not a JSON object with an integer 'step'; "
                "repair or delete the line"
            )
        parsed.append((line, row))
    row = _parse_line(unterminated)
    return parsed if row is None else [*parsed, (unterminated, row)]


def _parse_line(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
