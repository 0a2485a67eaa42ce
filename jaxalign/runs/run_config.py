"""A run folder's config.json: it begins a run, and tells it from others."""

import contextlib
import json
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.host.json_files import read_json, write_json
from jaxalign.reports.run_folder import MOMENTS, VALIDATION
from jaxalign.runs.checkpoint import format_problem
from jaxalign.runs.keep import BEST
from jaxalign.runs.settings import LOOP_ONLY


def begin_run(config: Path, saved: Mapping[str, Any]) -> None:
    """Writes config.json into a run folder without what an earlier start left in it.

    A first evaluation of the same settings stays.
    """
    ours, theirs = json.dumps(saved), ""
    with contextlib.suppress(OSError, ValueError):
        theirs = json.dumps(json.loads(config.read_bytes()))
    for name in (*MOMENTS, VALIDATION, BEST):
        if (config.parent / name).exists() and (name, theirs) != ("before", ours):
            shutil.rmtree(config.parent / name)
    (config.parent / "summary.json").unlink(missing_ok=True)
    config.parent.mkdir(parents=True, exist_ok=True)
    write_json(config, saved)


def other_run(config: Path, saved: Mapping[str, Any], *, resume: bool) -> str | None:
    """Why a config.json is not this run's; None where it is.

    Args:
      config: of a resumed run may be absent.
      saved: what this process would write into it.
      resume: whether the run is resumed; else another process has begun it.
    """
    for _ in range(60):  # a shared folder may show a new file late
        if resume or config.exists():
            break
        time.sleep(1)
    else:
        return f"{config}: not every process sees it: choose a --run folder that all of them share"
    theirs = read_json(config) if config.exists() else {}
    problem = format_problem(theirs.get("run_format"), config) if theirs else None
    if problem:
        return problem
    may_differ = LOOP_ONLY if resume else ("run", "processes")
    theirs = theirs | theirs.get("facts", {})
    for name, value in {**saved, **saved["facts"]}.items():
        if name == "facts":
            continue
        if name in theirs and name not in may_differ and theirs[name] != value:
            if not resume:
                return (
                    f"{name} is {theirs[name]!r} in the first process and {value!r} in another: "
                    "give all of them the same"
                )
            return (
                f"{config}: {name} was {theirs[name]!r} and is now {value!r}: resume with the "
                "settings of the run, or start another one"
            )
    return None
