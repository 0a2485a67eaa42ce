"""Whether what is written to a terminal has colours."""

import os
from collections.abc import Sequence

import tyro

NO_COLOR = "--no-color, or NO_COLOR in the environment: no colours on a terminal."
"""For the help of a command."""


def heed_no_color(arguments: Sequence[str]) -> list[str]:
    """The arguments without --no-color; with it, or with NO_COLOR set, nothing has colours.

    rich heeds the variable (https://no-color.org) by itself, tyro does not.
    """
    if "--no-color" in arguments:
        os.environ["NO_COLOR"] = "1"
    if os.environ.get("NO_COLOR"):
        tyro._experimental_options["ansi_codes"] = False  # which has no public name
    return [word for word in arguments if word != "--no-color"]
