"""The folder of an evaluation: what `jaxalign eval` writes and `jaxalign compare` reads."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

from jaxalign.data.tables import read_json_lines
from jaxalign.evaluation.measure import ANSWERS, RESULTS, VERDICTS
from jaxalign.evaluation.rates import file_name
from jaxalign.host.errors import InputError
from jaxalign.host.json_files import read_json
from jaxalign.reports.printable import percent


@dataclass(frozen=True)
class Judged:
    """A prompt, the answers to it, and what judges say of them.

    Attributes:
      prompt: the request, as it is without an attack.
      kind: "harmful", "benign" or "lookalike".
      rows: of the answers' file: every variant and sample; none where it was too long to ask.
      scores: of each row, judge -> score.
      well_formed: of each row, whether it has the format that was asked for.
    """

    prompt: str
    kind: str
    rows: Sequence[Mapping[str, Any]]
    scores: Sequence[Mapping[str, float]]
    well_formed: Sequence[bool]

    @property
    def asked(self) -> str:
        """The request with the conversation before it, a paragraph a turn."""
        turns = self.rows[0].get("conversation", ()) if self.rows else ()
        told = [f"{turn['role']}: {turn['content']}" for turn in turns]
        return "\n\n".join([*told, f"user: {self.prompt}"]) if told else self.prompt


@dataclass(frozen=True)
class Evaluated:
    """A finished evaluation: `results.json`, and by suite and attack its prompts in order."""

    folder: Path
    results: Mapping[str, Any]
    judged: Mapping[tuple[str, str], list[Judged]]

    @property
    def measures(self) -> dict[str, str]:
        """Judge -> what it measures: refusal or harm."""
        return {rate["judge"]: rate["measures"] for rate in self.results["rates"]}


_FIELDS = {
    "settings": "template wording judge",
    "answers": "suite attack skipped answers well_formed finished consulted distinct_answers "
    "distinct_reasonings mean_tokens",
    "rates": "suite attack kind judge measures measure rate low high n by_category",
    "safety_at_k": "suite attack judge k any_safe any_interval all_safe all_interval prompts",
    "key_words": "suite attack by low high rollouts",
    "cost": "suite attack kind answers total reasoning answer format",
}
"""Of the parts of results.json, most of which are lists."""


def check_evaluation(folder: Path, *, flag: str, replaceable: bool = True) -> None:
    """Refuses what is neither new, nor empty, nor an evaluation that may be replaced."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{flag}: {folder} is a file; give a folder")
    known = replaceable and (folder / ANSWERS).is_dir()
    if folder.is_dir() and any(folder.iterdir()) and not known:
        raise InputError(f"{flag}: {folder} holds other things; give a new folder")


def prepare_folder(folder: Path) -> None:
    """Makes the folder of an evaluation, or takes one that holds an evaluation already.

    Raises:
      InputError: it holds other things, is a file, or cannot be written.
    """
    check_evaluation(folder, flag="--out")
    try:
        (folder / ANSWERS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--out: {folder} cannot be made ({error.strerror}); give another folder"
        ) from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"--out: {folder} cannot be written; give another folder")


def read_evaluation(folder: str | Path) -> Evaluated:
    """Reads what `jaxalign eval --out FOLDER` wrote.

    Raises:
      InputError: it is no such folder, or one of its files is missing or damaged.
    """
    folder = Path(folder)
    path = folder / RESULTS
    if not path.is_file():
        raise InputError(
            f"{folder}: no {RESULTS}; give a folder that `jaxalign eval --out` wrote, or before or "
            "after in a run's"
        )
    results = read_json(path)
    judged: dict[tuple[str, str], list[Judged]] = {}
    try:
        _check(results)
        for fact in results["answers"]:
            key = fact["suite"], fact["attack"]
            name = f"{file_name(*key)}.jsonl"
            rows = [row for _, row in read_json_lines(folder / ANSWERS / name)]
            judged[key] = []
            for _, line in read_json_lines(folder / VERDICTS / name):
                scores, formed = line["scores"], line["well_formed"]
                theirs, rows = rows[: len(scores)], rows[len(scores) :]
                for score, _, row in zip(scores, formed, theirs, strict=True):
                    list(map(float, score.values()))
                    itemgetter("prompt", "completion", "tokens", "sample")(row)
                prompt, kind = str(line["prompt"]), str(line["kind"])
                judged[key].append(Judged(prompt, kind, theirs, scores, formed))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{folder}: damaged, or of an older jaxalign ({error!r}); the command that wrote it "
            "judges its answers again"
        ) from error
    return Evaluated(folder, results, judged)


def _check(results: Mapping[str, Any]) -> None:
    """Raises where a field is missing that a page or a table shows, or a rate is no number."""
    for part, names in _FIELDS.items():
        items = results[part] if isinstance(results[part], list) else [results[part]]
        for item in items:
            itemgetter(*names.split())(item)
    itemgetter("model", "weights", "date", "hardware")(results)
    results["answers"][0]
    for rate in results["rates"]:
        for name in ("rate", "low", "high"):
            percent(rate[name])
