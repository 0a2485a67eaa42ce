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
    """The folder of a run, under way or cut short too, or of the runs of several --seeds."""

    def run(self) -> None:
        """Writes report.html and prints its path."""
        from jaxalign.reports.run_page import write_report
        from jaxalign.reports.seeds_page import seed_folders, write_seeds_report

        several = seed_folders(self.folder)
        print((write_seeds_report if several else write_report)(self.folder))
