"""One process at a time writes: others are told who, a killed one is out, a fork has nothing."""

import contextlib
import errno
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys

import pytest

from jaxalign.host.errors import InputError
from jaxalign.host.lock import locked
from jaxalign.host.processes import locked_for_all

HOLD = """
import os, sys, time
from pathlib import Path
from jaxalign.host.lock import locked
with locked(Path(sys.argv[1]), "another --run"):
    child = os.fork()
    if child:
        print(child, flush=True)
    time.sleep(60)
"""

# Only one process at a time may be where it makes a file that must not be there yet.
RACE = """
import sys, time
from pathlib import Path
from jaxalign.host.errors import InputError
from jaxalign.host.lock import locked
path, end, times = Path(sys.argv[1]), time.monotonic() + 0.5, 0
while time.monotonic() < end:
    try:
        with locked(path, "another"):
            (path / "inside").touch(exist_ok=False)
            (path / "inside").unlink()
            times += 1
    except InputError:
        pass
print(times)
"""


def start(code, path):
    command = [sys.executable, "-c", code, str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("name", ["run", "answers.jsonl"])
def test_a_second_process_is_told_who_writes_until_that_one_is_killed(name, tmp_path):
    path = tmp_path / name
    if name == "run":
        path.mkdir()
    holder = start(HOLD, path)
    child = int(holder.stdout.readline())
    try:
        with pytest.raises(InputError) as refused, locked(path, "another --run"):
            pass
        who = f"{path}: process {holder.pid} on host {socket.gethostname()} writes here since "
        when = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d: wait for it, or choose another --run"
        assert re.fullmatch(re.escape(who) + when, str(refused.value))
        holder.kill()
        holder.wait()
        os.kill(child, 0)  # it lives, and has nothing
        with locked(path, "another --run"):
            with pytest.raises(InputError, match=f"process {os.getpid()} "):
                locked(path, "another --run").__enter__()
    finally:
        os.kill(child, signal.SIGKILL)
        holder.stdout.close()
    assert [x.name for x in tmp_path.rglob("*")] == (["run"] if name == "run" else [])


def test_of_those_that_start_at_one_instant_one_wins(tmp_path):
    racers = [start(RACE, tmp_path) for _ in range(4)]
    times = [int(process.communicate()[0]) for process in racers]
    assert any(times) and not any(process.returncode for process in racers)


def test_a_lock_that_its_holder_takes_away_meanwhile_is_worth_nothing(tmp_path, monkeypatch):
    """Between opening and locking it: another process has locked a new file of that name."""
    flock = fcntl.flock
    with contextlib.ExitStack() as other:

        def meanwhile(*given):
            monkeypatch.setattr(fcntl, "flock", flock)
            (tmp_path / ".lock").unlink()
            other.enter_context(locked(tmp_path, "another"))
            flock(*given)

        monkeypatch.setattr(fcntl, "flock", meanwhile)
        with pytest.raises(InputError, match="writes here"):
            other.enter_context(locked(tmp_path, "another"))


def test_where_the_file_system_cannot_lock_a_line_says_so(tmp_path, monkeypatch, capsys):
    def refuse(*given):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(tmp_path, "another"):
        (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path}/.lock: the file system can't lock it (No locks available)")


def test_the_first_of_several_processes_locks_for_all(tmp_path, monkeypatch):
    """tests/experiments/test_two_processes.py has two real ones."""
    with locked(tmp_path, "another"):
        with pytest.raises(InputError, match="writes here"), locked_for_all(tmp_path, "another"):
            pass
        monkeypatch.setattr("jax.process_index", lambda: 1)
        with locked_for_all(tmp_path, "another"):
            pass
