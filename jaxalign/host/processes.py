"""Several processes with one program, such as one on each host of a TPU slice.

All of them run the same lines on the same prompts, and each keeps its part of every array. The
first alone writes and prints; what must be decided alike is agreed upon.
"""

import contextlib
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxalign.host.errors import InputError
from jaxalign.host.lock import locked

_ADDRESS = re.compile(r"([^\s,]+:\d+),(\d+),(\d+)")

# What JAX says where another process is gone: by Gloo on CPUs, by the service that joins them.
_LOST = re.compile(r"Gloo|UNAVAILABLE|ABORTED|DEADLINE_EXCEEDED|heartbeat|[Cc]onnection")


def join(processes: str | None) -> None:
    """Makes this process one of several; call it before anything is computed.

    It returns when all have come. Where they do not come within five minutes JAX ends the process,
    with exit code 134. What all but the first print from then on is dropped, except for errors.

    Args:
      processes: None for a process that is alone; "auto" where the cluster says who is who (TPU
        slices, Slurm, Open MPI, GKE); "HOST:PORT,COUNT,INDEX" with the address of the first, how
        many there are, and which one this is, from 0.

    Raises:
      InputError: another form, None on one of several hosts, no cluster that JAX knows, or a port
        that the first process can't listen at.
      RuntimeError: something was computed before.
    """
    if jax.distributed.is_initialized():
        return
    if processes is None:
        if jax.process_count() > 1:
            raise InputError(
                f"this is one of {jax.process_count()} hosts: add --processes auto, and start the "
                "script on all of them"
            )
        return
    form = _ADDRESS.fullmatch(processes)
    if processes != "auto" and not (form and int(form[3]) < int(form[2])):
        raise InputError(
            f"processes={processes!r} must be auto, or HOST:PORT,COUNT,INDEX with INDEX below "
            "COUNT, such as 10.0.0.2:8476,2,0"
        )
    if form and not int(form[3]):
        _check_port(processes, int(form[1].rpartition(":")[2]))
    # It would take SIGTERM for itself; a run heeds that in `jaxalign.runs.loop.Interruption`.
    jax.config.update("jax_enable_preemption_service", False)
    all_of_them = f"{form[2]} processes at {form[1]}" if form else "all processes"
    print(f"waiting for {all_of_them}", file=sys.stderr)
    try:
        if form:
            jax.distributed.initialize(form[1], int(form[2]), int(form[3]))
        else:
            jax.distributed.initialize()
    except ValueError as error:
        raise InputError(
            f"processes=auto: no cluster is known here ({error}): give HOST:PORT,COUNT,INDEX"
        ) from error
    if not is_first():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  (for as long as the process lives)


def _check_port(processes: str, port: int) -> None:
    """Refuses a port that is taken; JAX's own service may crash on one."""
    try:
        with socket.socket() as listening:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(("", port))
    except (OSError, OverflowError) as error:
        raise InputError(
            f"processes={processes}: the first process can't listen at port {port} ({error}): give "
            "all of them another one"
        ) from error


def are_several() -> bool:
    """Whether this process is one of several that `join` brought together."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_loss(error: BaseException) -> bool:
    """Whether an error, of whatever of JAX, says that another process of the run is gone."""
    known = isinstance(error, ValueError | RuntimeError)
    return known and are_several() and _LOST.search(str(error)) is not None


def is_first() -> bool:
    """Whether this is the process that writes and prints; one that is alone is."""
    return jax.process_index() == 0


def least(value: int) -> int:
    """The smallest value of all processes. All of them must call it, in the same order."""
    if not are_several():
        return value
    return int(multihost_utils.process_allgather(np.array(value)).min())


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process; called as `least` is."""
    return not least(not flag)


def all_of(flag: bool) -> bool:
    """Whether the flag is set in every process; called as `least` is."""
    return bool(least(flag))


def wait_for_all() -> None:
    """Returns when every process has called it."""
    least(0)


@contextlib.contextmanager
def locked_for_all(path: Path, instead: str) -> Iterator[None]:
    """`jaxalign.host.lock.locked` of all processes, which are one holder: the first. Called so too.

    Raises:
      InputError: as there, and in every process.
    """
    with contextlib.ExitStack() as stack:
        problem: Exception | None = None
        if is_first():
            try:
                stack.enter_context(locked(path, instead))
            except (InputError, OSError) as error:
                problem = error
        if any_of(problem is not None):
            raise problem or InputError(f"{path}: the first process of the run can't lock it")
        yield


def fetch(tree: Any) -> Any:
    """`jax.device_get`, also of arrays whose parts lie with other processes.

    Such an array is put together on every device first. All processes must call it.
    """

    def whole(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return multihost_utils.process_allgather(leaf, tiled=True)
        return leaf

    return jax.device_get(jax.tree.map(whole, tree))


def first_line(error: Exception) -> str:
    """Of its message, or its name where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
