"""How an experiment's script ends: one line and an exit code for what goes wrong."""

import os
import sys
import traceback
from collections.abc import Callable

from jaxalign.host.devices import skip_absent_tpu
from jaxalign.host.errors import InputError
from jaxalign.host.processes import are_several, first_line, is_loss
from jaxalign.runs.loop import DivergedError, Interruption


class Interrupted(Exception):
    """SIGTERM or Ctrl-C outside of training; its text says when."""


def run_script(name: str, work: Callable[[Interruption], None]) -> int:
    """Calls `work` and turns what goes wrong into one line.

    Args:
      name: the script's, before each message.
      work: parses, trains, reports.

    Returns:
      the exit code: 0, also when SIGTERM or Ctrl-C made the run save and stop; 2 after bad input;
      1 after a run that diverged; 130 after a second Ctrl-C; 75 (EX_TEMPFAIL) where another
      process of the run is lost. One of several processes does not return but ends, unless with 0.
    """
    skip_absent_tpu()
    code = _exit_code(name, work)
    if code and are_several():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # what JAX does at exit would wait for the others
    return code


def _exit_code(name: str, work: Callable[[Interruption], None]) -> int:
    try:
        with Interruption() as interruption:
            work(interruption)
    except (InputError, OSError, DivergedError) as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 1 if isinstance(error, DivergedError) else 2
    except KeyboardInterrupt:
        print(f"{name}: stopped at once: --resume goes on from the last checkpoint")
        return 130
    except Interrupted as stop:
        print(f"interrupted {stop}: go on with --resume where there is a checkpoint")
    except Exception as error:
        if is_loss(error):
            print(
                f"{name}: error: another process of the run is lost ({first_line(error)}): start "
                "all of them again, with --resume where there is a checkpoint",
                file=sys.stderr,
            )
            return os.EX_TEMPFAIL
        if not are_several():
            raise
        traceback.print_exc()
        return 1
    return 0
