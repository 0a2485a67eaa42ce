"""The command line of a script: flags from a dataclass, one line for bad input."""

import sys
from collections.abc import Callable
from typing import Any

import tyro

from jaxalign.host.colors import NO_COLOR, heed_no_color
from jaxalign.host.devices import skip_absent_tpu
from jaxalign.host.errors import InputError
from jaxalign.host.fields import Checked, checked_later


def run_command(
    name: str,
    settings: type,
    main: Callable[..., Any],
    doc: str | None,
    *,
    passes_on: bool = False,
) -> None:
    """Parses the process's arguments and calls `main` with the settings, a dataclass of flags.

    `doc` is for --help, `name` for messages. Settings that are `Checked` have their fields checked.
    `passes_on` says whether flags behind `--` are for other scripts; `main` gets them in a list.

    Raises:
      SystemExit: 2 after an `InputError`, or a file that can't be used, printed on one line.
    """
    skip_absent_tpu()
    own, others = heed_no_color(sys.argv[1:]), []
    if passes_on and "--" in own:
        cut = own.index("--")
        own, others = own[:cut], own[cut + 1 :]
    try:
        with checked_later():  # tyro would wrap what it says
            parsed: Any = tyro.cli(settings, description=f"{doc or ''}\n{NO_COLOR}", args=own)
        if isinstance(parsed, Checked):
            parsed.check_fields("")
        main(parsed, *([others] if passes_on else []))
    except (InputError, OSError) as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
