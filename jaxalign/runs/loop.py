"""The outer loop: batches in, steps, metrics, transcripts and checkpoints out."""

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import FrameType
from typing import Any

import jax
import numpy as np

from jaxalign.engine.state import TrainState
from jaxalign.host.metrics import MetricsWriter, SamplesWriter
from jaxalign.host.processes import any_of, is_first
from jaxalign.host.progress import Outlook, progress_bar, roughly
from jaxalign.records import Params
from jaxalign.runs.checkpoint import Checkpoints
from jaxalign.runs.settings import Settings
from jaxalign.runs.time_left import evaluation_seconds, time_left
from jaxalign.sampling import Stage, stage_key

MAX_SKIPPED = 5
"""A run stops when more updates than this, for each in a step, were skipped as not finite."""


class DivergedError(RuntimeError):
    """Too many updates were skipped because their gradients were not finite."""


class Interrupted(Exception):
    """SIGTERM or Ctrl-C outside of training; its text says when."""


class Interruption:
    """Turns SIGTERM (and the first Ctrl-C) into a flag, so that a run can save before it ends."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def noticed(self) -> bool:
        """Whether this process or another was asked to stop. All of them must call it."""
        return any_of(self.requested)

    @contextlib.contextmanager
    def heeded(
        self, label: str, total: int | None, things: str
    ) -> Iterator[Callable[[int, int | None], None]]:
        """A progress bar whose updates also end the run after SIGTERM or Ctrl-C.

        What will take a minute or more is said in a line, too, after the second of the updates that
        follow the one at the start.

        Args:
          label: of the bar.
          total: how much there is to do; None where that is not known.
          things: what it is, for "interrupted after 3 of 8 THINGS".

        Yields:
          `(done, total) -> None`, which updates the bar or raises `Interrupted`.
        """
        with progress_bar() as bar:
            line, outlook = bar.add_task(label, total=total), Outlook()

            def heed(done: int, total: int | None) -> None:
                bar.update(line, completed=done, total=total)
                left = outlook.seconds_left(done, total, time.monotonic())
                if left is not None and left >= 60:
                    print(f"{done} of {total} {things}: {roughly(left)} of it left")
                if self.noticed():
                    count = done if total is None else f"{done} of {total}"
                    raise Interrupted(f"after {count} {things}")

            yield heed

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


@dataclasses.dataclass(frozen=True)
class Training:
    """What a run trains with.

    Attributes:
      step: such as `jaxalign.engine.step.make_step` makes, with the rewards bound to it. Its result
        has `metrics`: scalars, among them `tokens`, sampled or learned, and `skipped_updates`.
      start: the start parameters to the state before the first step.
      batch_at: the batch of a step, a pure function of the step number: that is the data cursor.
      describe: makes transcript rows of a step's result; all processes call it.
      speed: the policy's parameters to generated tokens per second, of a run that samples.
    """

    step: LoopStep
    start: Callable[[Params], TrainState]
    batch_at: Callable[[int], Any]
    describe: Describe = lambda step, result: ()
    speed: Callable[[Params], float] | None = None


def train(
    training: Training,
    state: TrainState,
    settings: Settings,
    *,
    saved: Any,
    interruption: Interruption,
    resume: bool,
    watch: Callable[[int, Params], bool] = lambda step, policy: False,
) -> tuple[TrainState, bool]:
    """Trains until `settings.loop.steps`, until `watch` ends it, or until SIGTERM or Ctrl-C.

    The latter save first. The run folder, which all processes share, gets metrics.jsonl,
    samples.jsonl and tensorboard/ from the first one, and checkpoints/ from all.

    Args:
      training: the step and its batches.
      state: the state to start from; donated.
      settings: the run's.
      saved: JSON-able, saved with each checkpoint and compared on resume.
      interruption: asked after every step, of all processes.
      resume: go on from the newest checkpoint in the run folder.
      watch: called with the policy after as many steps as `settings.loop.evaluates` says; where it
        is true training ends. A checkpoint is written before, so that a run that is interrupted in
        it goes on with it.

    Returns:
      the last state, and whether the run was interrupted before its last step.

    Raises:
      InputError: nothing to resume from, or a checkpoint of another run.
      DivergedError: too many updates were skipped.
    """
    root_key = stage_key(settings.seed, Stage.TRAINING)
    with Checkpoints(settings.run) as checkpoints:
        if resume:
            state, root_key = checkpoints.restore(state, config=saved)
            done = ", the last" if int(state.step) == settings.loop.steps else ""
            print(f"resumed after step {int(state.step)}{done}")
        start = int(state.step)
        if settings.loop.evaluates(start) and watch(start, state.policy):
            return state, False
        with contextlib.ExitStack() as stack:
            progress = stack.enter_context(progress_bar())
            metrics = transcripts = None
            if is_first():
                metrics = stack.enter_context(MetricsWriter(settings.run, resume_step=start))
                transcripts = stack.enter_context(SamplesWriter(settings.run, resume_step=start))
            line = progress.add_task("training", total=settings.loop.steps, completed=start)
            taken: list[float] = []
            for step in range(start, settings.loop.steps):
                begun = time.perf_counter()
                state, result = training.step(state, training.batch_at(step), root_key)
                scalars = {k: float(v) for k, v in jax.device_get(result.metrics).items()}
                seconds = time.perf_counter() - begun
                scalars["seconds"] = seconds
                scalars["tokens_per_second"] = scalars.pop("tokens") / seconds
                last = step + 1 == settings.loop.steps
                shown = last or step % settings.loop.sample_every == 0
                rows = training.describe(step, result) if shown else ()
                if metrics is not None and transcripts is not None:
                    metrics.write(step, scalars)
                    transcripts.write(step, rows)
                progress.update(line, completed=step + 1)
                taken.append(seconds)
                evaluations = evaluation_seconds(settings.run, settings.loop, step + 1)
                left = time_left(taken, settings.loop.steps - step - 1, evaluations)
                parts = (f"step {step + 1}/{settings.loop.steps}", _status(scalars))
                print("  ".join(filter(None, (*parts, f"{seconds:.1f} s", left))))
                if scalars["skipped_updates"] > MAX_SKIPPED * settings.updates_per_step:
                    raise DivergedError(
                        f"{int(scalars['skipped_updates'])} updates were skipped because their "
                        "gradients were not finite: lower the learning rate"
                    )
                interrupted = interruption.noticed()
                watched = settings.loop.evaluates(step + 1)
                stopping = last or interrupted or watched
                if stopping or (step + 1) % settings.loop.checkpoint_every == 0:
                    checkpoints.save(state, root_key=root_key, config=saved, wait=stopping)
                if interrupted and not last:
                    print(f"interrupted after step {step + 1}: saved; go on with --resume")
                    return state, True
                if watched:
                    progress.stop()  # it has a bar of its own
                    if watch(step + 1, state.policy):
                        break
                    progress.start()
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
