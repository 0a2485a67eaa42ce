"""What a run writes while it trains: ``metrics.jsonl``, ``samples.jsonl`` and TensorBoard scalars.

Both files hold one JSON object per line, each with an integer ``step``. A line reaches the
operating system before ``write`` returns, so a killed process loses at most the line in flight. A
resumed run first drops what the interrupted one wrote past its last checkpoint, so that every step
appears once.

A number that is not finite has no JSON form: it is stored as null, and the line gains a field
``nonfinite`` that says what it was: ``{"grad_norm": null, "nonfinite": {"grad_norm": "inf"}}``.
"""

import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np

from jaxalign.errors import InputError

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"


class MetricsWriter:
    """Writes each training step to ``metrics.jsonl``, and the same scalars to TensorBoard.

    The column ``time`` is filled in here: seconds of training, which go on from the last kept line
    after a resume. TensorBoard's files are written by a thread of their own and lag by seconds.

    Args:
        folder: the run folder; created when absent.
        resume_step: the first step that this process will write. Lines of this step and later are
            dropped, as is a torn last line; the default, 0, starts the file anew.

    Raises:
        InputError: a line of the existing file other than a torn last one is malformed.
    """

    def __init__(self, folder: str | Path, *, resume_step: int = 0) -> None:
        """Opens the files; see the class."""
        from tensorboardX import SummaryWriter

        self._lines = _StepLines(Path(folder) / METRICS_FILE, resume_step)
        # purge_step tells TensorBoard to hide what older event files say about this step and later.
        self._tensorboard = SummaryWriter(
            str(Path(folder) / "tensorboard"), purge_step=resume_step, flush_secs=2
        )
        last = self._lines.last_row.get("time") or 0.0
        self._start = time.monotonic() - last

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends one line, and the scalars that are finite to TensorBoard.

        Args:
            step: the training step.
            metrics: name to Python, NumPy or JAX scalar. JAX scalars are fetched together, in one
                transfer.

        Raises:
            ValueError: a metric is called ``step``, ``time`` or ``nonfinite``, which the writer
                fills in.
        """
        reserved = {"step", "time", "nonfinite"} & metrics.keys()
        if reserved:
            raise ValueError(f"the writer itself writes {sorted(reserved)}: rename the metric")
        values = jax.device_get(list(metrics.values()))  # a list, for it keeps its order
        scalars = {name: float(value) for name, value in zip(metrics, values, strict=True)}
        self._lines.append({"step": step, "time": time.monotonic() - self._start, **scalars})
        for name, x in scalars.items():
            if math.isfinite(x):
                self._tensorboard.add_scalar(name, x, step)

    def close(self) -> None:
        """Closes the files."""
        self._lines.close()
        self._tensorboard.close()

    def __enter__(self) -> Self:
        """Returns the writer itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes the files, whether or not the block failed."""
        self.close()


class SamplesWriter:
    """Writes transcripts to ``samples.jsonl``, any number a step; resumes as MetricsWriter does.

    Args:
        folder: the run folder; created when absent.
        resume_step: the first step that this process will write; lines of this step and later are
            dropped.

    Raises:
        InputError: a line of the existing file other than a torn last one is malformed.
    """

    def __init__(self, folder: str | Path, *, resume_step: int = 0) -> None:
        """Opens the file; see the class."""
        self._lines = _StepLines(Path(folder) / SAMPLES_FILE, resume_step)

    def write(self, step: int, samples: Iterable[Mapping[str, Any]]) -> None:
        """Appends one line per sample.

        Args:
            step: the training step that drew the samples.
            samples: objects with ``prompt``, ``kind``, ``completion``, ``reward``, ``well_formed``,
                ``refused`` and ``helpfulness``; values are Python or NumPy scalars.
        """
        for sample in samples:
            self._lines.append({"step": step, **sample})

    def close(self) -> None:
        """Closes the file."""
        self._lines.close()

    def __enter__(self) -> Self:
        """Returns the writer itself."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Closes the file, whether or not the block failed."""
        self.close()


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """Reads ``metrics.jsonl``, in file order; the torn last line of a killed run is left out.

    Raises:
        InputError: there is no such file, or a line other than a torn last one is malformed.
    """
    return [row for _, row in _parse(Path(folder) / METRICS_FILE)]


def read_samples(folder: str | Path) -> list[dict[str, Any]]:
    """Reads ``samples.jsonl``, in file order; the torn last line of a killed run is left out.

    Raises:
        InputError: there is no such file, or a line other than a torn last one is malformed.
    """
    return [row for _, row in _parse(Path(folder) / SAMPLES_FILE)]


class _StepLines:
    """An append-only file of JSON lines, cut back to the steps before ``resume_step``."""

    def __init__(self, path: Path, resume_step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [x for x in _parse(path) if x[1]["step"] < resume_step] if path.is_file() else []
        self.last_row = kept[-1][1] if kept else {}
        # Written aside and moved into place: a kill leaves the old file or the new one, whole.
        aside = path.with_name(path.name + ".tmp")
        with aside.open("wb") as file:
            file.writelines(line + b"\n" for line, _ in kept)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        self._file = path.open("ab")

    def append(self, row: Mapping[str, Any]) -> None:
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
        self._file.close()


def _parse(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    """Returns each line with its object.

    A torn last line is known by not parsing: no proper prefix of a JSON object does.
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
