"""The frame of ablations: arms x learning rates x seeds, each point trained and measured once.

An arm is what a page's `main` is given, or the start model as it is. The folder of an ablation has
one for each point, which holds measurements.json once it is measured; comparison.json says what all
points share.
"""

import dataclasses
import json
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from jaxalign.data.templates import Template, bare_messages
from jaxalign.host.errors import InputError
from jaxalign.host.json_files import read_json, write_json
from jaxalign.runs.settings import has_checkpoint


@dataclasses.dataclass(frozen=True)
class Arm:
    """What a point of it trains, if anything, and how it is asked then.

    Attributes:
      page: the experiment, a module with `main`; None for the start model.
      flags: of the experiment: the name of its preset, then what the arm changes of it.
      template: how it is asked.
      group: what it is drawn with.
      rates: its learning rates; (None,) for the only one there is.
      start: label of the point that training starts from.
    """

    page: ModuleType | None = None
    flags: Sequence[str] = ()
    template: Template = bare_messages
    group: str = "no training"
    rates: Sequence[float | None] = (None,)
    start: str | None = None


@dataclasses.dataclass(frozen=True)
class Point:
    """One model to measure: an arm, its learning rate if it trains with several, and a seed."""

    arm: str
    rate: float | None = None
    seed: int | None = None

    @property
    def label(self) -> str:
        """The arm, with its rate if it has one."""
        return self.arm if self.rate is None else f"{self.arm} {self.rate:g}"

    @property
    def name(self) -> str:
        """Of its folder."""
        label = self.label.replace(" ", "-")
        return label if self.seed is None else f"{label}-{self.seed}"


def check(
    settings: Any, arms: Mapping[str, Arm], flags: Sequence[str], *, ours: Sequence[str]
) -> None:
    """Refuses what no ablation can work with.

    Args:
      settings: of the command, with `arms`.
      arms: the arms there are.
      flags: behind `--`.
      ours: flags that the ablation sets itself, beside those of the arms that are chosen; so no
        fields of them either.

    Raises:
      InputError: names the arm, the flag or the setting.
    """
    if not settings.arms:
        raise InputError(f"arms: name at least one of {', '.join(arms)}")
    for arm in settings.arms:
        if arm not in arms:
            raise InputError(f"unknown arm {arm!r}: choose from {', '.join(arms)}")
    own = [word for arm in settings.arms for word in arms[arm].flags if word.startswith("--")]
    ours = (*ours, "--settings", *dict.fromkeys(re.split("[=.]", word)[0] for word in own))
    for given in flags:
        name = given.partition("=")[0].replace("_", "-").replace("--no-", "--")
        for flag in (x.replace("--no-", "--") for x in ours):
            if name == flag:
                raise InputError(f"{flag} is the comparison's to set: leave it out behind --")
            if name.startswith(f"{flag}."):
                raise InputError(
                    f"{name}: flags that begin with {flag} are the comparison's to set: leave it "
                    "out behind --"
                )


def flags_but(flags: Sequence[str], leave: Callable[[str], bool]) -> list[str]:
    """The flags, with their values, but for those to leave by their names, such as `cold_start`."""
    kept: list[str] = []
    keep = True
    for word in flags:
        if word.startswith("--"):
            name = re.split(r"[=.]", word.removeprefix("--").removeprefix("no-"))[0]
            keep = not leave(name.replace("-", "_"))
        kept += [word] if keep else []
    return kept


def points_of(
    arms: Mapping[str, Arm], chosen: Sequence[str], seeds: Sequence[int | None] = (None,)
) -> list[Point]:
    """Those without training, then each seed with every arm and rate: a stopped one has as many."""
    pages = [arm for arm in chosen if arms[arm].page is not None]
    return [Point(arm) for arm in chosen if arm not in pages] + [
        Point(arm, rate, seed) for seed in seeds for arm in pages for rate in arms[arm].rates
    ]


def keep_shared(out: Path, shared: Mapping[str, Any]) -> None:
    """Notes what all points share; refuses to add to an ablation that shares something else.

    Where no point has begun there is nothing to add to: after a mistyped model, say.

    Raises:
      InputError: names what is another, or a folder that cannot be made.
    """
    values = json.loads(json.dumps(shared, default=str))
    kept = out / "comparison.json"
    begun = any(path.is_file() for path in out.glob("*/*"))
    theirs = read_json(kept) if kept.exists() and begun else values
    for name, value in values.items():
        if theirs.get(name) != value:
            raise InputError(f"{kept}: {name} is another; give the same, or another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out: {out} cannot be made ({error.strerror}); give another") from error
    write_json(kept, values)


def measure_points(
    out: Path,
    points: Sequence[Point],
    *,
    train: Callable[[Point], bool],
    measure: Callable[[Point], Mapping[str, Any]] = lambda point: {},
    report: Callable[[], object] = lambda: None,
) -> None:
    """Trains and measures each point that is not measured yet, then deletes its model.

    Args:
      out: folder of the ablation.
      points: in their order.
      train: makes the point's model if it needs one; whether there is one then.
      measure: the content of its measurements.json, beside arm, rate and seed.
      report: called after each point that was measured.
    """
    for point in points:
        folder = out / point.name
        if not (folder / "measurements.json").exists():
            print(f"\n=== {point.name}")
            folder.mkdir(exist_ok=True)
            found = measure(point) if train(point) else {"diverged": True}
            write_json(folder / "measurements.json", {**dataclasses.asdict(point), **found})
            report()
        for heavy in ("model", "checkpoints"):
            shutil.rmtree(folder / heavy, ignore_errors=True)


def measured_points(
    out: Path, order: Sequence[str]
) -> tuple[dict[Point, dict[str, Any]], list[Point]]:
    """The measurements of all points there are, by arm in an order, rate and seed.

    Returns:
      those that have a model, and those that came to none.
    """
    rows = {
        Point(row["arm"], row["rate"], row["seed"]): row
        for row in map(read_json, out.glob("*/measurements.json"))
    }
    points = sorted(rows, key=lambda x: (order.index(x.arm), x.rate or 0, x.seed or 0))
    lost = [point for point in points if "diverged" in rows[point]]
    return {point: rows[point] for point in points if point not in lost}, lost


def run_once(page: ModuleType, arguments: Sequence[str], run: Path) -> bool:
    """Runs an experiment unless it is done, resumed where there is a checkpoint.

    Args:
      page: the experiment, as in `Arm`.
      arguments: all but --run and --resume.
      run: its folder.

    Returns:
      whether it came to an end; not if it diverged.

    Raises:
      SystemExit: the page's code after an error; 130 when it was interrupted.
    """
    done = run / "summary.json"  # is written after the model
    if done.exists():
        return True
    resume = ["--resume"] if has_checkpoint(run) else []
    code = page.main([*arguments, f"--run={run}", *resume])
    if code == 1:
        return False
    if code or not done.exists():
        raise SystemExit(code or 130)
    return True
