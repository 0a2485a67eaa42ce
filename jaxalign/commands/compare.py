"""`jaxalign compare`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxalign.commands.common import note, print_table
from jaxalign.host.errors import InputError


@dataclass(frozen=True)
class Compare:
    """Compare models that `jaxalign eval` has measured, prompt by prompt.

    jaxalign eval --model smollm2 --suites xstest=xstest_prompts.csv --out before

    jaxalign eval --model runs/demo/model --suites xstest=xstest_prompts.csv --out after

    jaxalign compare before after --out comparison

    Only prompts that both were asked count, and only where one model's verdict differs from the
    other's is there evidence: p is of McNemar's exact test. It says how surprising the difference
    is if the models are equally good; 0.05 in 20 rows is no surprise.
    """

    folders: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="FOLDER ...")]
    """Two or more that `jaxalign eval --out` wrote; each is compared with the first one."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Also write comparison.json, comparison.html and comparison.png into this folder."""

    def run(self) -> None:
        """Prints a table for each folder after the first, and writes the files."""
        if len(self.folders) < 2:
            raise InputError("compare needs two folders at least, that `jaxalign eval --out` wrote")
        if len({folder.resolve() for folder in self.folders}) < len(self.folders):
            raise InputError("compare: a folder is named twice; give different ones")
        from jaxalign.reports.comparison import (
            compare,
            comparison_tables,
            language_tables,
            remarks,
            write_comparison,
        )
        from jaxalign.reports.evaluation_folder import read_evaluation

        first, *others = (read_evaluation(folder) for folder in self.folders)
        found = [compare(first, other) for other in others]
        for other, those in zip(others, found, strict=True):
            print(f"first: {first.folder}, second: {other.folder}")
            for title, (table, _) in comparison_tables(those).items():
                print_table(title, table)
            for title, table in language_tables(those).items():
                print_table(title, table)
            for line in remarks(those):
                note(f"{other.folder}: {line}")
        if self.out is not None:
            print(f"Written: {write_comparison(self.out, first, others, found)}")
