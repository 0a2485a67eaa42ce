"""What a program writes to a terminal."""

import os
import pty
import subprocess
from collections.abc import Sequence
from typing import Any


def written_to_terminal(command: Sequence[str], environment: dict[str, str], **rest: Any) -> str:
    """Standard output and errors of a program that ends with 0, as a terminal gets them."""
    ours, theirs = pty.openpty()
    kept = {name: x for name, x in os.environ.items() if name != "NO_COLOR"}
    kept |= {"TERM": "xterm-256color", "COLUMNS": "100"}
    program = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=kept | environment, **rest
    )
    os.close(theirs)
    parts = []
    try:
        while part := os.read(ours, 1 << 16):
            parts.append(part)
    except OSError:  # how Linux says that the program has closed it
        pass
    os.close(ours)
    assert program.wait() == 0, b"".join(parts)
    return b"".join(parts).decode()
