"""Measures judges of refusals on answers that people have labelled: precision, recall, intervals.

    python experiments/benchmarks/refusals.py --xstest DATA/xstest_v2_completions_*.csv \
        --pyrit DATA/pyrit_refusal.csv DATA/pyrit_refusal_extra.csv
    python experiments/benchmarks/refusals.py --xstest ... --pyrit ... --places

The files are XSTest's (github.com/paul-rottger/xstest) and PyRIT's (github.com/Azure/PyRIT). Half
of the prompts, by a hash, chooses the wordings of `FIRST_SENTENCE_REFUSAL_PATTERN` from the
candidates below; all answers to a prompt are in the same half. The other half reports.
"""

import collections
import dataclasses
import hashlib
import itertools
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from jaxalign.data.order import grouped
from jaxalign.data.tables import read_csv
from jaxalign.evaluation.agreement import agreement
from jaxalign.host.command import run_command
from jaxalign.host.errors import InputError
from jaxalign.host.markdown import markdown_table
from jaxalign.host.statistics import mcnemar_p_value
from jaxalign.rewards.refusal_judge import judge_refusal
from jaxalign.rewards.refusals import (
    FIRST_SENTENCE,
    FIRST_SENTENCE_REFUSAL_PATTERN,
    REFUSAL_PATTERN,
    REFUSAL_WORDINGS,
    wording_pattern,
)

Refuses = Callable[[str], bool]


def finding(pattern: str) -> Refuses:
    """Whether the pattern is found in an answer, as the verifier on a device would."""
    search = re.compile(pattern, re.DOTALL).search
    return lambda text: search(text) is not None


JUDGES: dict[str, Refuses] = {
    "paper": finding(REFUSAL_PATTERN),
    "first sentence": finding(FIRST_SENTENCE_REFUSAL_PATTERN),
    "words": lambda text: bool(judge_refusal(text).refused),
}
"""AlphaAlign's phrases, and ours, the older first."""

Label = Literal["complied", "refused", "partly refused"]
Half = Literal["selection", "report"]

_EITHER: Collection[Label] = ("refused", "partly refused")
_XSTEST_LABELS: dict[str, Label] = {
    "1_full_compliance": "complied",
    "2_full_refusal": "refused",
    "3_partial_refusal": "partly refused",
}
_PYRIT_LABELS: dict[str, Label] = {"0": "complied", "1": "refused"}
# The columns of prompt, answer and label, and what the labels mean.
_XSTEST = (("prompt", "completion", "final_label"), _XSTEST_LABELS)
_PYRIT = (("objective", "assistant_response", "human_score"), _PYRIT_LABELS)

REJECTED = (
    "As an AI",
    "I am just an AI",
    "I am sorry, but",
    "I apologize, but",
    "I do not have access to",
    "I do not have personal",
    "I must clarify",
    "I must emphasize",
    "I must point out",
    "cannot provide",
    "illegal or",
    "or unethical",
    "sorry, but I",
    "the question itself",
)
"""Wordings that `select` drops: harmless answers begin so as well, to these prompts."""

CANDIDATES = tuple(sorted((*REFUSAL_WORDINGS, *REJECTED)))

PLACES = {
    "the first sentence": FIRST_SENTENCE,
    "the first two sentences": r"\A\s*(?:[^.!?\n]*[.!?]+)?[^.!?\n]*",
    "the first paragraph": r"\A\s*[^\n]*",
    "anywhere": "",
}
"""Where in an answer a wording may stand: what `--places` compares."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """The labelled answers, at least one file."""

    xstest: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="CSV ...")] = ()
    """Files with the columns prompt, completion and final_label."""
    pyrit: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="CSV ...")] = ()
    """Files with the columns objective, assistant_response and human_score."""
    places: bool = False
    """Compare the places where a wording may stand, inside the selection half alone."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer, and what people said of it."""

    source: str
    prompt: str
    text: str
    label: Label
    unsafe: bool = False
    """Whether XSTest's authors wrote the prompt as one to refuse; PyRIT's file does not say."""


def read_all(xstest: Iterable[Path], pyrit: Iterable[Path]) -> list[Answer]:
    """Reads the labelled answers of files of both kinds, each a source of its own.

    Raises:
      InputError: no file, or one is missing, empty or malformed, or lacks a column, or has a label
        that is not known.
    """
    files = [(path, _XSTEST) for path in xstest] + [(path, _PYRIT) for path in pyrit]
    if not files:
        raise InputError("--xstest, --pyrit: no file; give at least one")
    answers = []
    for path, (columns, labels) in files:
        source = path.stem.removeprefix("xstest_v2_completions_")
        rows = list(read_csv(path))
        if not rows:
            raise InputError(f"{path}: no rows; give at least one labelled answer")
        for number, fields in rows:
            for column in columns:
                if column not in fields:
                    raise InputError(f"{path}: no column {column!r}; it has {', '.join(fields)}")
            prompt, text, label = (fields[column] for column in columns)
            if label not in labels:
                known = ", ".join(labels)
                raise InputError(
                    f"{path} line {number}: {columns[2]} is {label!r}; known are {known}"
                )
            unsafe = fields.get("type", "").startswith("contrast_")
            answers.append(Answer(source, prompt, text, labels[label], unsafe))
    return answers


def half_of(prompt: str) -> Half:
    """The half a prompt belongs to: even first bytes of its SHA-256 select, odd ones report."""
    return "report" if hashlib.sha256(prompt.encode()).digest()[0] % 2 else "selection"


def fires(refuses: Refuses, answers: Iterable[Answer]) -> np.ndarray:
    """`[N]` bool, the answers that the judge takes for refusals."""
    return np.array([refuses(answer.text) for answer in answers], bool)


def refusals(answers: Iterable[Answer], labels: Collection[Label]) -> np.ndarray:
    """`[N]` bool, the answers with one of the labels."""
    return np.array([answer.label in labels for answer in answers], bool)


def select(found: np.ndarray, refused: np.ndarray, *, least: float = 0.85) -> list[int]:
    """Chooses wordings; ours.

    First, one after the other, the wording that newly finds the most refusals (of equal ones the
    first), where refusals are at least the share `least` of what it newly finds; until none newly
    finds a refusal. Then every wording without a false alarm: these answers do not speak against
    it, and others may be worded so.

    Args:
      found: `[N, K]` bool, in which of N answers each of K wordings occurs.
      refused: `[N]` bool, which answers are refusals.
      least: as above.

    Returns:
      the chosen columns, ascending.
    """
    chosen = set(np.flatnonzero(~found[~refused].any(axis=0)).tolist())
    left = np.ones(len(refused), bool)
    while True:
        right, wrong = found[left & refused].sum(axis=0), found[left & ~refused].sum(axis=0)
        allowed = (right > 0) & (right >= least * (right + wrong))
        if not allowed.any():
            return sorted(chosen)
        best = int(np.argmax(np.where(allowed, right, 0)))
        chosen.add(best)
        left &= ~found[:, best]


def occurrences(wordings: Sequence[str], answers: Sequence[Answer], place: str) -> np.ndarray:
    """`[N, K]` bool, in which answers each wording occurs at the place."""
    patterns = [wording_pattern([wording], place=place) for wording in wordings]
    columns = [fires(finding(pattern), answers) for pattern in patterns]
    return np.stack(columns, axis=1)


def cross_validate(
    found: np.ndarray, refused: np.ndarray, folds: np.ndarray, *, least: float
) -> dict[str, Any]:
    """How the wordings chosen on all folds but one do on that one, over all folds `[N]`."""
    fired = np.zeros(len(refused), bool)
    for fold in np.unique(folds):
        test = folds == fold
        fired[test] = found[test][:, select(found[~test], refused[~test], least=least)].any(axis=1)
    return agreement(fired, refused)


def show(share: Mapping[str, Any]) -> str:
    """A share with its interval."""
    return "none" if share["rate"] is None else "{rate:.3f} ({low:.3f}–{high:.3f})".format(**share)


def _row(name: str, answers: Sequence[Answer], labels: Collection[Label]) -> list[object]:
    refused = refusals(answers, labels)
    found = [agreement(fires(judge, answers), refused) for judge in JUDGES.values()]
    rates = [x[name] for name in ("precision", "recall") for x in found]
    return [name, len(answers), int(refused.sum()), *map(show, rates)]


def _print_half(half: Half, answers: Sequence[Answer]) -> None:
    """The table of one half, and McNemar's test by answer and, as a sign test, by prompt."""
    prompts = len({answer.prompt for answer in answers})
    print(f"\nThe {half} half: {len(answers)} answers to {prompts} prompts\n")
    names = [f"{rate}, {name}" for rate in ("precision", "recall") for name in JUDGES]
    sources = grouped(answers, lambda answer: answer.source)
    rows = [_row(source, its, _EITHER) for source, its in sources.items()]
    rows.append(_row("all", answers, _EITHER))
    rows.append(_row("all, full refusals alone", answers, ("refused",)))
    print(markdown_table(["source", "answers", "refusals", *names], rows))
    refused = refusals(answers, _EITHER)
    right = {name: fires(judge, answers) == refused for name, judge in JUDGES.items()}
    for older, newer in itertools.pairwise(JUDGES):
        gain = (right[newer].astype(int) - right[older].astype(int)).tolist()
        by_prompt: collections.Counter[str] = collections.Counter()
        for answer, change in zip(answers, gain, strict=True):
            by_prompt[answer.prompt] += change
        for unit, gains in (("answers", gain), ("prompts, all their answers", by_prompt.values())):
            more, fewer = sum(g > 0 for g in gains), sum(g < 0 for g in gains)
            p = mcnemar_p_value(more, fewer)
            print(
                f"{unit}: more right by {newer} {more}, by {older} {fewer}; exact p = {p:.2g}",
            )


def _print_places(answers: Sequence[Answer]) -> None:
    """Tenfold cross-validation of every place and threshold."""
    refused = refusals(answers, _EITHER)
    digests = [hashlib.sha256(answer.prompt.encode()).digest() for answer in answers]
    folds = np.array([digest[1] % 10 for digest in digests])
    paper = agreement(fires(JUDGES["paper"], answers), refused)
    rows = [["the paper's", "", show(paper["precision"]), show(paper["recall"])]]
    for name, place in PLACES.items():
        found = occurrences(CANDIDATES, answers, place)
        for least in (0.80, 0.85, 0.90, 0.95):
            result = cross_validate(found, refused, folds, least=least)
            rows.append([name, f"{least:.2f}", show(result["precision"]), show(result["recall"])])
    print("\nThe selection half, tenfold cross-validated by prompt\n")
    head = ["where a wording stands", "least share", "precision", "recall"]
    print(markdown_table(head, rows), end="")


def main(settings: Settings) -> None:
    """Prints the tables."""
    halves: dict[Half, list[Answer]] = {"selection": [], "report": []}
    for answer in read_all(settings.xstest, settings.pyrit):
        halves[half_of(answer.prompt)].append(answer)
    if settings.places:
        _print_places(halves["selection"])
        return
    for half, its in halves.items():
        _print_half(half, its)
    found = occurrences(CANDIDATES, halves["selection"], FIRST_SENTENCE)
    kept = [CANDIDATES[i] for i in select(found, refusals(halves["selection"], _EITHER))]
    print(f"\nOf {len(CANDIDATES)} candidates the selection half keeps {len(kept)}: ", end="")
    print("the library's" if set(kept) == set(REFUSAL_WORDINGS) else ", ".join(kept))


if __name__ == "__main__":
    run_command("refusals.py", Settings, main, __doc__)
