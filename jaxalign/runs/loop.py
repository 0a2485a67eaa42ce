"""The outer loop: batches in, steps, metrics, transcripts and checkpoints out."""

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np

from jaxalign.engine.state import TrainState
from jaxalign.host.metrics import MetricsWriter, SamplesWriter
from jaxalign.host.processes import any_of, is_first
from jaxalign.host.progress import progress_bar
from jaxalign.runs.checkpoint import Checkpoints


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """How long to train and what to keep.

    Attributes:
      steps: the run ends after so many, resumed ones counted in.
      checkpoint_every: steps between checkpoints; the last step is always saved.
      keep_checkpoints: how many of the latest to keep.
      sample_every: steps between transcripts in samples.jsonl.
      max_skipped: the run stops when more updates than this were skipped as not finite.
    """

    steps: int
    checkpoint_every: int = 25
    keep_checkpoints: int = 1
    sample_every: int = 5
    max_skipped: int = 5


class DivergedError(RuntimeError):
    """Too many updates were skipped because their gradients were not finite."""


class Interruption:
    """Turns SIGTERM (and the first Ctrl-C) into a flag, so that a run can save before it ends."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def noticed(self) -> bool:
        """Whether this process or another was asked to stop. All of them must call it."""
        return any_of(self.requested)

    def __enter__(self) -> "Interruption":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            os.write(2, b"stopping after this step; Ctrl-C again stops at once\n")
        self.requested = True


LoopStep = Callable[[TrainState, Any, jax.Array], tuple[TrainState, Any]]
"""`(state, batch, root_key) -> (state, result)`."""

Describe = Callable[[int, Any], Iterable[Mapping[str, Any]]]
"""`(step, result) -> rows` for samples.jsonl."""


def train(
    step_fn: LoopStep,
    state: TrainState,
    batch_at: Callable[[int], Any],
    *,
    root_key: jax.Array,
    folder: Path,
    config: LoopConfig,
    settings: Any,
    describe: Describe,
    interruption: Interruption,
    resume: bool = False,
    log: Callable[[str], None] = print,
) -> tuple[TrainState, bool]:
    """Trains until `config.steps`, or until SIGTERM or Ctrl-C, which save first.

    Args:
      step_fn: such as `jaxalign.engine.step.make_step` makes, with the rewards bound to it. Its
        result has `metrics`: scalars, among them `tokens`, sampled or learned, and
        `skipped_updates`.
      state: the state to start from; donated.
      batch_at: the batch of a step, a pure function of the step number: that is the data cursor.
      root_key: the run's key.
      folder: the run folder, shared by all processes; gets metrics.jsonl, samples.jsonl and
        tensorboard/ from the first one, and checkpoints/ from all.
      config: how long, and what to keep.
      settings: JSON-able settings saved with each checkpoint and compared on resume.
      describe: makes transcript rows of a step's result; all processes call it.
      interruption: asked after every step, of all processes.
      resume: go on from the newest checkpoint in `folder`.
      log: prints one line; on a terminal it appears above the progress bar.

    Returns:
      the last state, and whether the run was interrupted before its last step.

    Raises:
      InputError: nothing to resume from, or a checkpoint of another run.
      DivergedError: more than `max_skipped` updates were skipped.
    """
    with Checkpoints(folder, keep=config.keep_checkpoints) as checkpoints:
        if resume:
            state, root_key = checkpoints.restore(state, config=settings)
            log(f"resumed after step {int(state.step)}")
        start = int(state.step)
        with contextlib.ExitStack() as stack:
            progress = stack.enter_context(progress_bar())
            metrics = transcripts = None
            if is_first():
                metrics = stack.enter_context(MetricsWriter(folder, resume_step=start))
                transcripts = stack.enter_context(SamplesWriter(folder, resume_step=start))
            line = progress.add_task("training", total=config.steps, completed=start)
            for step in range(start, config.steps):
                begun = time.perf_counter()
                state, result = step_fn(state, batch_at(step), root_key)
                scalars = {k: float(v) for k, v in jax.device_get(result.metrics).items()}
                seconds = time.perf_counter() - begun
                scalars["seconds"] = seconds
                scalars["tokens_per_second"] = scalars.pop("tokens") / seconds
                last = step + 1 == config.steps
                rows = describe(step, result) if last or step % config.sample_every == 0 else ()
                if metrics is not None and transcripts is not None:
                    metrics.write(step, scalars)
                    transcripts.write(step, rows)
                progress.update(line, completed=step + 1)
                log(f"step {step + 1}/{config.steps}  {_status(scalars)}  {seconds:.1f} s")
                if scalars["skipped_updates"] > config.max_skipped:
                    raise DivergedError(
                        f"{int(scalars['skipped_updates'])} updates were skipped because their "
                        "gradients were not finite: lower the learning rate"
                    )
                interrupted = interruption.noticed()
                stopping = last or interrupted
                if stopping or (step + 1) % config.checkpoint_every == 0:
                    checkpoints.save(state, root_key=root_key, config=settings, wait=stopping)
                if interrupted and not last:
                    log(f"interrupted after step {step + 1}: saved; go on with --resume")
                    return state, True
    return state, False


def _status(scalars: Mapping[str, float]) -> str:
    """The numbers a person watches."""
    shown = {
        "reward": "reward",
        "harmful refused": "harmful_refused",
        "benign refused": "benign_refused",
        "look-alike refused": "lookalike_refused",
        "well-formed": "well_formed",
        "consulted": "consulted",
        "preferred": "preferred",
        "value loss": "value_loss",
    }
    if "reward" not in scalars:
        shown = {"loss": "loss"} | shown
    parts = [
        f"{label} {scalars[name]:.2f}"
        for label, name in shown.items()
        if name in scalars and np.isfinite(scalars[name])
    ]
    return "  ".join([*parts, f"{scalars['tokens_per_second']:.0f} tokens/s"])
