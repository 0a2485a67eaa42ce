"""`jaxalign report`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class Report:
    """Write the report of a run: one page with numbers, plots and answers.

    jaxalign report runs/demo
    """

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """The folder that a run wrote; a run under way or cut short will do."""

    def run(self) -> None:
        """Writes report.html and prints its path."""
        from jaxalign.reports.run_page import write_report

        print(write_report(self.folder))
