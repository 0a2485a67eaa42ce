"""The command line of a comparison, and one run of an experiment in it."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import tyro

from jaxalign.host.devices import skip_absent_tpu
from jaxalign.host.errors import InputError
from jaxalign.runs.settings import has_checkpoint

AnySettings = TypeVar("AnySettings")


def run_command(
    name: str,
    settings: type[AnySettings],
    main: Callable[[AnySettings, Sequence[str]], None],
    doc: str | None,
) -> None:
    """Parses the comparison's own flags, and behind `--` those for every run.

    Args:
      name: of the comparison, for messages.
      settings: a dataclass of its flags.
      main: does the work.
      doc: for --help.

    Raises:
      SystemExit: 2 after an `InputError`, which is printed on one line.
    """
    skip_absent_tpu()
    given = sys.argv[1:]
    cut = given.index("--") if "--" in given else len(given)
    try:
        main(tyro.cli(settings, description=doc, args=given[:cut]), given[cut + 1 :])
    except InputError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None


def refuse(flags: Sequence[str], ours: Sequence[str]) -> None:
    """Refuses flags behind `--` that the comparison sets itself, and flags of their fields.

    Raises:
      InputError: names the flag.
    """
    for given in flags:
        name = given.partition("=")[0].replace("_", "-")
        for flag in ours:
            if name == flag:
                raise InputError(f"{flag} is the comparison's to set: leave it out behind --")
            if name.startswith(f"{flag}."):
                raise InputError(
                    f"{name}: flags that begin with {flag} are the comparison's to set: leave it "
                    "out behind --"
                )


def run_once(script: Callable[[Sequence[str]], int], arguments: Sequence[str], run: Path) -> bool:
    """Runs an experiment unless it is done, resumed where there is a checkpoint.

    Args:
      script: its `main`.
      arguments: all but --run and --resume.
      run: its folder.

    Returns:
      whether it came to an end; not if it diverged.

    Raises:
      SystemExit: the script's code after an error; 130 when it was interrupted.
    """
    done = run / "summary.json"  # is written after the model
    if done.exists():
        return True
    resume = ["--resume"] if has_checkpoint(run) else []
    code = script([*arguments, f"--run={run}", *resume])
    if code == 1:
        return False
    if code or not done.exists():
        raise SystemExit(code or 130)
    return True
