"""Reads what a run left behind into one value, complete or not."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxalign.evaluation.language import warnings_of
from jaxalign.evaluation.measure import RESULTS
from jaxalign.evaluation.measure import summary as summary_of
from jaxalign.host.errors import InputError
from jaxalign.host.json_files import read_json
from jaxalign.host.metrics import METRICS_FILE, SAMPLES_FILE, read_metrics, read_samples
from jaxalign.reports.evaluation_folder import Evaluated, read_evaluation

MOMENTS = {
    "before": "before training",
    "after_cold_start": "after the cold start",
    "after": "after training",
}
"""The evaluations of a run: folder -> when it was."""

VALIDATION = "validation"
"""Folder with an evaluation by the validation prompts for each step at which there was one."""


def validation_folders(run: Path) -> dict[int, Path]:
    """The finished evaluations by validation prompts in a run folder, by step, in their order."""
    folders = [x.parent for x in (run / VALIDATION).glob(f"*/{RESULTS}")]
    found = {int(x.name): x for x in folders if re.fullmatch("0|[1-9][0-9]*", x.name)}
    return dict(sorted(found.items()))


def validation_rates(run: Path) -> dict[int, dict[str, Any]]:
    """Step -> `jaxalign.evaluation.measure.summary` of each finished evaluation of these.

    Raises:
      InputError: one is damaged; it is named.
    """
    return {
        step: summary_of(read_evaluation(folder).results)
        for step, folder in validation_folders(run).items()
    }


def run_warnings(
    evaluations: Mapping[str, Sequence[str]], validation: Mapping[int, Sequence[str]]
) -> list[str]:
    """What a run's evaluations warn of: a line each, and one for all of the validation.

    Args:
      evaluations: when it was -> the lines of `jaxalign.evaluation.language.warnings_of`.
      validation: the same by step.
    """
    lines = [f"{when}: {line}" for when, those in evaluations.items() for line in those]
    if worn := {step: those for step, those in validation.items() if those}:
        steps = ", ".join(map(str, worn))
        last = "; ".join(worn[max(worn)])
        lines.append(f"validation: warnings after step {steps}; the last of them: {last}")
    return lines


@dataclass(frozen=True)
class Run:
    """A run folder's contents; an absent file leaves its field empty and a line in ``missing``.

    ``evaluations``: when it was, as `MOMENTS` says -> those that are there, in that order.
    ``validation``: `step` and the rates of `jaxalign.evaluation.measure.summary`, of each.
    """

    folder: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    summary: dict[str, Any]
    evaluations: Mapping[str, Evaluated]
    validation: list[dict[str, Any]]
    missing: list[str]

    @property
    def warnings(self) -> list[str]:
        """As `run_warnings`."""
        return run_warnings(
            {when: warnings_of(x.results) for when, x in self.evaluations.items()},
            {rates["step"]: rates["warnings"] for rates in self.validation},
        )


def read_run(folder: str | Path) -> Run:
    """Reads a run folder, complete or cut short.

    Raises:
        InputError: the folder is absent, holds nothing of a run, or is an older version's, or one
            of its files is malformed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder of a run")
    config = _read_object(folder / "config.json")
    metrics = read_metrics(folder) if (folder / METRICS_FILE).is_file() else []
    samples = read_samples(folder) if (folder / SAMPLES_FILE).is_file() else []
    summary = _read_object(folder / "summary.json")
    found = {
        label: read_evaluation(folder / name)
        for name, label in MOMENTS.items()
        if (folder / name / RESULTS).is_file()
    }
    if not found and any(folder.glob("evaluation_*.json")):
        raise InputError(
            f"{folder}: of an older jaxalign (evaluation_*.json), whose commit 81ff310 reads it"
        )
    if not any((config, metrics, samples, summary, found)):
        raise InputError(f"{folder}: holds nothing of a run; give the folder that a run wrote")
    unasked = config.get("heldout") == [] and not found
    absent = {
        "No config.json: the settings of this run are unknown.": not config,
        "No training metrics yet.": not metrics,
        "No evaluations: no held-out prompts were given (--heldout).": unasked,
        "No evaluation from before training.": MOMENTS["before"] not in found and not unasked,
        "No evaluation from after training: the run is under way or was cut short.": (
            MOMENTS["after"] not in found and not unasked
        ),
        "No summary.json: the run has not finished.": not summary,
    }
    missing = [line for line, is_absent in absent.items() if is_absent]
    validation = [{"step": step} | rates for step, rates in validation_rates(folder).items()]
    return Run(folder, config, metrics, samples, summary, found, validation, missing)


def _read_object(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; an absent file is an empty one."""
    return read_json(path, remedy="delete or repair it") if path.is_file() else {}
