"""Reads what a run left behind into one value, complete or not."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxalign.data.order import grouped
from jaxalign.host.errors import InputError
from jaxalign.host.json_files import read_json
from jaxalign.host.metrics import METRICS_FILE, SAMPLES_FILE, read_metrics, read_samples

KINDS = {"harmful": "Harmful", "benign": "Benign", "lookalike": "Look-alike"}

_OPENING = re.compile(r"<(\w*reasoning)>")
# Control characters, lone surrogates, marks of direction, and what has no width or is a tag: they
# can hide or reorder shown text. Joiners stay: scripts and emoji need them.
_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200b\u200e\u200f\u2028-\u202e"
    r"\u2060\u2066-\u2069\ufeff\U000e0000-\U000e007f]"
)


@dataclass(frozen=True)
class Measure:
    """A rate to show: its key in the files, its label, the kind it is over, which way is better."""

    name: str
    label: str
    kind: str | None
    wish: str


MEASURES = (
    Measure("harmful_refused", "Harmful refused", "harmful", "▲ higher"),
    Measure("benign_refused", "Benign refused", "benign", "▼ lower"),
    Measure("lookalike_refused", "Look-alike refused", "lookalike", "▼ lower"),
    Measure("well_formed", "Well-formed", None, "▲ higher"),
)

#: Of runs with a tool. Consulting is no aim of its own.
CONSULTING = tuple(
    Measure(f"{kind}_consulted", f"{label} consulted", kind, "· no aim")
    for kind, label in KINDS.items()
)


@dataclass(frozen=True)
class Pair:
    """The answers to one prompt; ``before`` or ``after`` is None where it was not evaluated."""

    kind: str
    prompt: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None


@dataclass(frozen=True)
class Run:
    """A run folder's contents; an absent file leaves its field empty and a line in ``missing``."""

    folder: Path
    config: dict[str, Any]
    metrics: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    summary: dict[str, Any]
    before: dict[str, Any]
    after: dict[str, Any]
    pairs: list[Pair]
    missing: list[str]


def read_run(folder: str | Path) -> Run:
    """Reads a run folder, complete or cut short.

    Raises:
        InputError: the folder is absent or holds nothing of a run, or one of its files is
            malformed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder of a run")
    config = _read_object(folder / "config.json")
    metrics = read_metrics(folder) if (folder / METRICS_FILE).is_file() else []
    samples = read_samples(folder) if (folder / SAMPLES_FILE).is_file() else []
    summary = _read_object(folder / "summary.json")
    first = _read_object(folder / "evaluation_before.json")
    last = _read_object(folder / "evaluation_after.json")
    before = summary.get("before") or first.get("rates") or {}
    after = summary.get("after") or last.get("rates") or {}
    if not any((config, metrics, samples, summary, first, last)):
        raise InputError(f"{folder}: holds nothing of a run; give the folder that a run wrote")
    unasked = config.get("heldout") == [] and not before and not after
    absent = {
        "No config.json: the settings of this run are unknown.": not config,
        "No training metrics yet.": not metrics,
        "No evaluations: no held-out prompts were given (--heldout).": unasked,
        "No evaluation from before training.": not before and not unasked,
        "No evaluation from after training: the run is under way or was cut short.": (
            not after and not unasked
        ),
        "No summary.json: the run has not finished.": not summary,
    }
    return Run(
        folder=folder,
        config=config,
        metrics=metrics,
        samples=samples,
        summary=summary,
        before=before,
        after=after,
        pairs=_pair_rows(first.get("rows") or [], last.get("rows") or []),
        missing=[line for line, is_absent in absent.items() if is_absent],
    )


def measures(*sections: Mapping[str, Any]) -> tuple[Measure, ...]:
    """What to show of evaluations: `MEASURES`, and `CONSULTING` where there was a tool."""
    consulting = any(measure.name in section for section in sections for measure in CONSULTING)
    return MEASURES + (CONSULTING if consulting else ())


def get_rate(section: Mapping[str, Any], measure: Measure) -> dict[str, Any]:
    """Finds a rate in the ``before`` or ``after`` section of a summary; {} when it is not there.

    The rate stands under the measure's name, its interval in ``section["intervals"][name]`` as
    [low, high], its number of trials in ``section["n"][kind]``; the last two may be absent.

    Returns:
        ``rate``, ``low``, ``high`` and ``n``; all but the first may be None.

    Raises:
        InputError: the value is no number from 0 to 1.
    """
    value = section.get(measure.name)
    low, high = (section.get("intervals") or {}).get(measure.name) or (None, None)
    counts = section.get("n") or {}
    kinds = KINDS if measure.kind is None else (measure.kind,)
    n = sum(counts.get(kind, 0) for kind in kinds) or None
    if value is None or value != value:  # a rate over no prompts: null or NaN
        return {}
    if not isinstance(value, int | float) or not 0.0 <= value <= 1.0:
        raise InputError(f"{measure.name} is {value!r} in the evaluation; it must be a fraction")
    return {"rate": value, "low": low, "high": high, "n": n}


def first_of_each_kind(pairs: list[Pair], count: int) -> list[Pair]:
    """Takes the first ``count`` of each kind, in the order of KINDS; nobody picks the good ones."""
    groups = grouped(pairs, lambda pair: pair.kind)
    return [pair for kind in {**KINDS, **groups} for pair in groups.get(kind, [])[:count]]


def split_answer(completion: str) -> tuple[str | None, str]:
    """Splits a completion into (reasoning, answer), or (None, all of it) when tags are missing.

    Text around the tags stays with the part that it touches, so that nothing the model wrote goes
    unseen.
    """
    opening = _OPENING.search(completion)
    if opening is not None:
        head, rest = completion[: opening.start()], completion[opening.end() :]
        reasoning, closed, rest = rest.partition(f"</{opening[1]}>")
        between, opened, rest = rest.partition("<answer>")
        answer, ended, tail = rest.rpartition("</answer>")
        if closed and opened and ended:
            return _join(head, reasoning, between), _join(answer, tail)
    return None, completion.strip()


def printable(text: object) -> str:
    """Replaces characters that could hide or reorder the text around them by U+FFFD."""
    return _UNPRINTABLE.sub("\ufffd", str(text))


def percent(share: float | None) -> str:
    """A share in percent, or a dash where there is none."""
    return "–" if share is None else f"{share:.1%}"


def _join(*parts: str) -> str:
    return "\n".join(part.strip() for part in parts if part.strip())


def _pair_rows(first: list[dict[str, Any]], last: list[dict[str, Any]]) -> list[Pair]:
    def name(row: Mapping[str, Any]) -> Any:
        return row.get("id", row.get("prompt"))

    before, after = (
        {key: x[0] for key, x in grouped(rows, name).items()} for rows in (first, last)
    )
    pairs = []
    for key in before | after:
        row = before.get(key) or after[key]
        kind, prompt = str(row.get("kind", "")), str(row.get("prompt", ""))
        pairs.append(Pair(kind, prompt, before.get(key), after.get(key)))
    return pairs


def _read_object(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; an absent file is an empty one."""
    return read_json(path, remedy="delete or repair it") if path.is_file() else {}
