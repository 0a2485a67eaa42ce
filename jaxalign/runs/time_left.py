"""How long a run has still to go, as far as what it did tells."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from jaxalign.evaluation.measure import pace_path
from jaxalign.host.json_files import read_json
from jaxalign.host.progress import roughly
from jaxalign.reports.run_folder import MOMENTS, VALIDATION, validation_folders
from jaxalign.runs.settings import Loop


def time_left(seconds: Sequence[float], steps: int, evaluations: float) -> str:
    """What a step's line says of the time left; "" when nothing is to come.

    Args:
      seconds: of each step that this process took.
      steps: to come.
      evaluations: seconds of those to come.
    """
    left = statistics.median(seconds[1:] or seconds) * steps + evaluations
    if not left:
        return ""
    first = ", evaluations included, or less: the first step compiles" if len(seconds) == 1 else ""
    return f"{roughly(left)} left{first}"


def evaluation_seconds(run: Path, loop: Loop, step: int) -> float:
    """Of the evaluations from a step's on: each as long as the latest one of its prompts took.

    Args:
      run: the run folder, which keeps the pace of each.
      loop: when evaluations by the validation prompts are.
      step: the number of steps taken; its own evaluation is still to come.
    """
    asked = [_seconds(folder, VALIDATION) for folder in validation_folders(run).values()][-1:]
    heldout = [_seconds(run / name, "heldout") for name in MOMENTS if name != "after"]
    count = sum(loop.evaluates(at) for at in range(step, loop.steps + 1))
    return count * sum(asked) + next(filter(None, reversed(heldout)), 0.0)


def _seconds(evaluation: Path, name: str) -> float:
    """That the prompts of a finished evaluation took; 0 where they were not asked."""
    path = pace_path(evaluation, name)
    return float(read_json(path)["seconds"]) if path.exists() else 0.0
