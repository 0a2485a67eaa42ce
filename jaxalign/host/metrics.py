"""What a run writes while it trains: ``metrics.jsonl``, ``samples.jsonl`` and TensorBoard scalars.

Both files are `StepLines`. A resumed run first drops what the interrupted one wrote past its last
checkpoint, so that every step appears once.
"""

import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxalign.host.step_lines import StepLines, read_lines

METRICS_FILE = "metrics.jsonl"
SAMPLES_FILE = "samples.jsonl"


class MetricsWriter(StepLines):
    """Writes each training step to ``metrics.jsonl``, and the same scalars to TensorBoard.

    The column ``time`` is filled in here: seconds of training, which go on from the last kept line
    after a resume. TensorBoard's files are written by a thread of their own and lag by seconds. The
    file is opened as `StepLines` opens its own.
    """

    def __init__(self, folder: str | Path, *, resume_step: int = 0) -> None:
        from tensorboardX import SummaryWriter

        super().__init__(Path(folder) / METRICS_FILE, resume_step)
        # purge_step tells TensorBoard to hide what older event files say about this step and later.
        self._tensorboard = SummaryWriter(
            str(Path(folder) / "tensorboard"), purge_step=resume_step, flush_secs=2
        )
        last = self.last_row.get("time") or 0.0
        self._start = time.monotonic() - last

    def write(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Appends one line, and the scalars that are finite to TensorBoard.

        Metrics are Python, NumPy or JAX scalars; the latter are fetched together, in one transfer.

        Raises:
            ValueError: a metric is called ``step``, ``time`` or ``nonfinite``, which the writer
                fills in.
        """
        reserved = {"step", "time", "nonfinite"} & metrics.keys()
        if reserved:
            raise ValueError(f"the writer itself writes {sorted(reserved)}: rename the metric")
        values = jax.device_get(list(metrics.values()))  # a list, for it keeps its order
        scalars = {name: float(value) for name, value in zip(metrics, values, strict=True)}
        self.append({"step": step, "time": time.monotonic() - self._start, **scalars})
        for name, x in scalars.items():
            if math.isfinite(x):
                self._tensorboard.add_scalar(name, x, step)

    def close(self) -> None:
        """Closes the files."""
        super().close()
        self._tensorboard.close()


class SamplesWriter(StepLines):
    """Writes transcripts to ``samples.jsonl``, any number a step; opened as `MetricsWriter` is."""

    def __init__(self, folder: str | Path, *, resume_step: int = 0) -> None:
        super().__init__(Path(folder) / SAMPLES_FILE, resume_step)

    def write(self, step: int, samples: Iterable[Mapping[str, Any]]) -> None:
        """Appends one line per sample that the step drew.

        Samples have ``prompt``, ``kind``, ``completion``, ``reward``, ``well_formed``, ``refused``
        and ``helpfulness``; values are Python or NumPy scalars.
        """
        for sample in samples:
            self.append({"step": step, **sample})


def read_metrics(folder: str | Path) -> list[dict[str, Any]]:
    """Reads ``metrics.jsonl``, in file order; the torn last line of a killed run is left out.

    Raises:
        InputError: there is no such file, or a line other than a torn last one is malformed.
    """
    return [row for _, row in read_lines(Path(folder) / METRICS_FILE)]


def read_samples(folder: str | Path) -> list[dict[str, Any]]:
    """Reads ``samples.jsonl`` as `read_metrics` does its file."""
    return [row for _, row in read_lines(Path(folder) / SAMPLES_FILE)]
