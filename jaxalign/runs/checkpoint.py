"""Asynchronous checkpoints by Orbax: state, step, key, data cursor and the run's config."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.engine.state import TrainState
from jaxalign.host.errors import InputError
from jaxalign.host.processes import are_several, first_line, is_loss

FORMAT = 4
"""Of run folders and their checkpoints; it counts changes after which older ones can't be read."""

EARLIER = {1: "f049777", 2: "f869242", 3: "562a016"}
"""The last commit that reads each earlier format."""


def format_problem(written: Any, where: Path) -> str | None:
    """Why what another version of jaxalign wrote can't be read; None where it can.

    Args:
      written: the format that is written there; None in the first one, which did not say.
      where: the file or folder.
    """
    written = 1 if written is None else written
    if written == FORMAT:
        return None
    if written in EARLIER:
        return (
            f"{where}: written in format {written}, which commit {EARLIER[written]} reads: resume "
            "it with that checkout, or start another run"
        )
    return f"{where}: written in format {written} by a newer jaxalign: update this one"


class Checkpoints:
    """The `checkpoints/` folder of a run. A context manager; closing waits for writes in flight.

    A checkpoint appears under its name only when it is whole, so a `kill -9` leaves the last one.

    Args:
      folder: the run folder.
      keep: how many of the latest to keep.
    """

    def __init__(self, folder: str | Path, *, keep: int = 1) -> None:
        import orbax.checkpoint as ocp

        self._ocp = ocp
        self._path = Path(folder).absolute() / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self._path,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, create=True, enable_async_checkpointing=True
            ),
        )

    def latest_step(self) -> int | None:
        """The step of the newest whole checkpoint: how many updates it has seen; None for none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, *, root_key: jax.Array, config: Any, wait: bool) -> None:
        """Copies the state to the host and writes it in the background.

        Args:
          state: its step names the checkpoint.
          root_key: the run's key; the step's own is `fold_in(root_key, step)`.
          config: JSON-able settings of the run, compared on resume.
          wait: return only when it is on disk.
        """
        step = int(state.step)
        if self._manager.latest_step() != step:
            meta = {
                "format": FORMAT,
                "step": step,
                "key": np.asarray(jax.random.key_data(root_key)).tolist(),
                "cursor": step,
                "config": config,
            }
            self._manager.save(
                step,
                args=self._ocp.args.Composite(
                    state=self._ocp.args.StandardSave(state),
                    run=self._ocp.args.JsonSave(meta),
                ),
            )
        if wait:
            self._manager.wait_until_finished()

    def restore(self, like: TrainState, *, config: Any) -> tuple[TrainState, jax.Array]:
        """Loads the newest checkpoint.

        Args:
          like: a state with the same tree, shapes and shardings; its buffers are not used.
          config: settings of this run; they must equal the checkpoint's.

        Returns:
          the state and the run's key.

        Raises:
          InputError: there is none, it is torn or foreign, or it is of other settings.
        """
        step = self._manager.latest_step()
        if step is None:
            raise InputError(f"{self._path}: no checkpoint to resume from; start without --resume")
        where = self._path / str(step)

        def read(args: Mapping[str, Any], otherwise: str) -> Any:
            try:
                return self._manager.restore(step, args=self._ocp.args.Composite(**args))
            except Exception as error:
                if is_loss(error):
                    raise
                why = first_line(error)[:160]
                raise InputError(f"{where}: {otherwise.format(why)}") from error

        run = read({"run": self._ocp.args.JsonRestore()}, "not a checkpoint of jaxalign ({})").run
        if problem := format_problem(run.get("format"), where):
            raise InputError(problem)
        theirs, ours = run["config"], json.loads(json.dumps(config))
        for name in sorted(theirs.keys() | ours.keys()):
            if name not in ours:
                raise InputError(
                    f"{where}: {name} was {theirs[name]!r}, and this run has no such setting: "
                    "start it again in another folder"
                )
            if theirs.get(name) != ours.get(name):
                raise InputError(
                    f"{where}: {name} was {theirs.get(name)!r} and is now {ours.get(name)!r}: "
                    "resume with the settings of the run, or start another one"
                )
        abstract = jax.tree.map(self._ocp.utils.to_shape_dtype_struct, like)
        state = read(
            {"state": self._ocp.args.StandardRestore(abstract)},
            "the checkpoint is damaged ({}); start the run again in another folder",
        ).state
        key = jax.random.wrap_key_data(jnp.asarray(run["key"], jnp.uint32))
        return state, key

    def close(self) -> None:
        """Waits for writes in flight and stops the writer."""
        self._manager.wait_until_finished()
        self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        # After an error a write in flight would wait for the other processes, and these for this.
        if kind is None or not are_several():
            self.close()
