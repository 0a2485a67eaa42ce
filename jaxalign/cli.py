"""The command `jaxalign`: train models, measure and compare them, ask one, plan a run, report."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Annotated, Any, cast

import tyro

from jaxalign.commands.common import note
from jaxalign.commands.compare import Compare
from jaxalign.commands.evaluate import Eval
from jaxalign.commands.export import Export
from jaxalign.commands.generate import Generate
from jaxalign.commands.plan import Plan
from jaxalign.commands.report import Report
from jaxalign.commands.train import Train
from jaxalign.commands.utility import Utility
from jaxalign.host.colors import NO_COLOR, heed_no_color
from jaxalign.host.errors import InputError

_Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Eval, tyro.conf.subcommand("eval")]
    | Annotated[Compare, tyro.conf.subcommand("compare")]
    | Annotated[Generate, tyro.conf.subcommand("generate")]
    | Annotated[Plan, tyro.conf.subcommand("plan")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Utility, tyro.conf.subcommand("utility")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
      argv: the arguments; default the process's own.

    Returns:
      the exit code: 0; 2 after bad input, which one line on stderr explains; 130 after Ctrl-C;
      of `train` as `jaxalign.runs.script.main_of` has it.
    """
    arguments, flags = _split(heed_no_color(sys.argv[1:] if argv is None else argv))
    try:
        command = tyro.cli(
            cast(Any, _Command),
            args=arguments,
            prog="jaxalign",
            description="Aligns language models for safety, in JAX. See: jaxalign COMMAND --help"
            f"\n\n{NO_COLOR}",
        )
        if isinstance(command, Plan | Train):
            command = dataclasses.replace(command, flags=tuple(flags))
        from jaxalign.host.devices import skip_absent_tpu

        skip_absent_tpu()
        return command.run() or 0
    except SystemExit as stop:  # tyro's, after its help or a message on the arguments
        if stop.code and arguments[:1] == ["plan"]:
            note("flags of the script itself, such as --micro-batches, go behind --")
        return stop.code if isinstance(stop.code, int) else 2
    except (InputError, OSError) as error:
        note(f"error: {' '.join(str(error).split())}")
        return 2
    except KeyboardInterrupt:
        note("interrupted")
        return 130


def _split(arguments: list[str]) -> tuple[list[str], list[str]]:
    """What the command itself reads, and what it passes on to an experiment."""
    if arguments[:1] == ["train"]:
        return arguments[:2], arguments[2:]
    if arguments[:1] == ["plan"] and "--" in arguments:
        split = arguments.index("--")
        return arguments[:split], arguments[split + 1 :]
    return arguments, []


if __name__ == "__main__":
    sys.exit(main())
