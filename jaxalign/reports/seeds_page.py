"""Runs of one experiment with several seeds: each, their mean and their spread."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.host.json_files import read_json, write_json
from jaxalign.host.statistics import mean_and_spread
from jaxalign.reports.page import Block, table, write_page
from jaxalign.reports.run_folder import MOMENTS


def seed_folders(folder: Path) -> dict[int, Path]:
    """The folders of the runs in it, by their seeds."""
    runs = [
        (re.fullmatch("seed-(0|[1-9][0-9]*)", path.name), path) for path in folder.glob("seed-*")
    ]
    return dict(sorted((int(seed[1]), path) for seed, path in runs if seed))


def write_seeds_report(folder: Path) -> Path:
    """Writes summary.json and report.html of a folder with runs in seed-0, seed-1 and so on.

    summary.json has, of each evaluation, `seeds`: seed -> figure -> value; `mean` and `spread`, the
    standard deviation between seeds with n − 1, None of one seed: figure -> value. Runs that are
    not finished do not count.

    Returns:
      the path of report.html.
    """
    summaries = {seed: run / "summary.json" for seed, run in seed_folders(folder).items()}
    runs = {seed: read_json(path) for seed, path in summaries.items() if path.exists()}
    asked = [moment for moment in MOMENTS if any(run.get(moment) for run in runs.values())]
    content = {moment: _figures(runs, moment) for moment in asked}
    write_json(folder / "summary.json", content)
    facts = [f"{len(runs)} seeds", *sorted({str(run["hardware"]) for run in runs.values()})]
    blocks: list[Block] = [{"quiet": " · ".join(facts)}]
    for moment, figures in content.items():
        blocks += [{"h2": MOMENTS[moment].capitalize()}, _table(figures)]
    blocks.append({"quiet": "Spread: standard deviation between seeds. Each run has a report."})
    return write_page(folder / "report.html", folder.resolve().name, blocks)


def _figures(runs: Mapping[int, Mapping[str, Any]], moment: str) -> dict[str, Any]:
    """The numbers of an evaluation by seed, with mean and spread of those that all seeds have."""
    seeds = {
        seed: {name: x for name, x in run[moment].items() if isinstance(x, int | float)}
        for seed, run in runs.items()
        if run.get(moment)
    }
    first, *others = seeds.values()
    names = [name for name in first if all(name in x for x in others)]
    both = {name: mean_and_spread(x[name] for x in seeds.values()) for name in names}
    mean = {name: mean for name, (mean, _) in both.items()}
    return {"seeds": seeds, "mean": mean, "spread": {name: x for name, (_, x) in both.items()}}


def _table(figures: Mapping[str, Any]) -> Block:
    """A row for each figure: its mean, its spread, and each seed's."""
    shown = lambda x: "" if x is None else f"{x:.3g}"  # noqa: E731
    rows = [
        (
            name.replace("_", " "),
            shown(mean),
            shown(figures["spread"][name]),
            *(shown(x[name]) for x in figures["seeds"].values()),
        )
        for name, mean in figures["mean"].items()
    ]
    return table(("", "mean", "spread", *(f"seed {seed}" for seed in figures["seeds"])), rows)
