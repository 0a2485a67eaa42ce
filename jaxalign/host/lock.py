"""One process at a time writes a folder or a file.

The kernel locks a small file, which says who holds it, and lets go of it when the holder ends,
however that ends: no lock is ever stale. It is .lock in a folder, .NAME.lock beside a file. The
holder takes it away in the end; after kill -9 it stays, and whoever comes next takes it over.
"""

import contextlib
import datetime
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from jaxalign.host.errors import InputError

_held: set[int] = set()


def _let_go() -> None:
    """In a forked process, which would hold on to the locks when its parent is gone."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


@contextlib.contextmanager
def locked(path: Path, instead: str) -> Iterator[None]:
    """Within it no other process, and no other part of this one, locks the same path.

    That is a folder that is there; or a file, there or not, whose folder is made. Where the file
    system can't lock, a line on stderr says so and the work goes on. Hosts that share a folder
    exclude each other where its file system locks between them.

    Raises:
      InputError: it is taken; names the process, the host, and `instead`, such as "another --run".
    """
    file = path / ".lock" if path.is_dir() else path.with_name(f".{path.name}.lock")
    file.parent.mkdir(parents=True, exist_ok=True)
    while (descriptor := _take(file)) is None:
        time.sleep(0.1)  # who has just taken it may not have signed it yet
        with contextlib.suppress(FileNotFoundError):  # it has ended meanwhile
            holder = file.read_text() or "another process writes here"
            raise InputError(f"{path}: {holder}: wait for it, or choose {instead}")
    _held.add(descriptor)
    try:
        host, now = socket.gethostname(), datetime.datetime.now().isoformat(" ", "seconds")
        holder = f"process {os.getpid()} on host {host} writes here since {now}"
        os.ftruncate(descriptor, 0)
        os.write(descriptor, holder.encode())
        os.fsync(descriptor)  # for other hosts
        yield
    finally:
        if descriptor in _held:  # not in a forked process
            _held.remove(descriptor)
            with contextlib.suppress(OSError):  # by hand, it may be gone, or another's by now
                if os.path.samestat(os.fstat(descriptor), file.stat()):
                    file.unlink()
            os.close(descriptor)


def _take(file: Path) -> int | None:
    """The open lock; None where another holds it."""
    for tries in range(10):
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(FileNotFoundError):
                # It is worth nothing where its last holder has just taken the file away. Some file
                # systems number a file anew each time, which looks the same.
                if tries == 9 or os.path.samestat(os.fstat(descriptor), file.stat()):
                    return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError as error:
            reason = f"the file system can't lock it ({error.strerror})"
            print(f"{file}: {reason}: let one process at a time write here", file=sys.stderr)
            return descriptor
        os.close(descriptor)
    return None
