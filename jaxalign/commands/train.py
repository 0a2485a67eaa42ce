"""`jaxalign train`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro

from jaxalign.commands.pages import PageName, describe_pages, load_page


@dataclass(frozen=True)
class Train:
    """Run an experiment: evaluate, train, evaluate again, write a folder with a report.

    jaxalign train alphaalign --help         what it is, and its presets

    jaxalign train alphaalign demo --help    its flags

    jaxalign train alphaalign demo --run runs/mine --steps 100 --learning-rate 2e-5

    jaxalign train mine.py demo              a page of your own: docs/your-own-method.md
    """

    page: Annotated[PageName, tyro.conf.arg(help_behavior_hint="", help=describe_pages())]
    flags: tyro.conf.Suppress[tuple[str, ...]] = ()

    def run(self) -> int:
        """Runs a preset, the first of the flags; returns the exit code."""
        page = load_page(self.page)
        from jaxalign.runs.script import main_of

        name, prog = page.__name__.removeprefix("page."), f"jaxalign train {self.page}"
        doc = (page.__doc__ or "").replace(f"python experiments/{name}.py", prog)
        return main_of("jaxalign", page.PRESETS, page.build, doc, prog=prog)(self.flags)
