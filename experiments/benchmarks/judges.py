"""Measures judges on answers that people have labelled: agreement, kappa, precision, recall.

    python -m experiments.benchmarks.judges --judges phrases first-sentence \
        --xstest DATA/xstest_v2_completions_*.csv \
        --pyrit DATA/pyrit_refusal.csv DATA/pyrit_refusal_extra.csv
    python -m experiments.benchmarks.judges --judges guard=smollm2 rubric=smollm2 --limit 150 \
        --xstest ... --pyrit ...

The files are those of `refusals.py`; a partial refusal counts as one. The labels are of refusals,
and a judge of harm measures something else: it is held against "not refused" on XSTest's unsafe
prompts alone. That is an approximation, ours: an answer may go along and do no harm.
"""

import dataclasses
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from experiments.benchmarks.refusals import Answer, read_all, show
from jaxalign.answers.completing import check_sizes
from jaxalign.data.order import evenly
from jaxalign.evaluation.agreement import agreement
from jaxalign.evaluation.judges import Judge, make_judge
from jaxalign.host.command import run_command
from jaxalign.host.errors import InputError
from jaxalign.host.markdown import markdown_table


@dataclasses.dataclass(frozen=True)
class Settings:
    """The judges, and the labelled answers: at least one file."""

    judges: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SPEC ...")]
    """phrases, first-sentence, refusals, guard=MODEL, rubric=MODEL or FILE.py:FUNCTION."""
    xstest: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="CSV ...")] = ()
    """Files with the columns type, prompt, completion and final_label."""
    pyrit: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="CSV ...")] = ()
    """Files with the columns objective, assistant_response and human_score."""
    limit: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """So many answers, evenly from all that a judge is measured on."""
    dtype: str = "auto"
    """In which a model computes: auto, bfloat16 or float32."""
    batch_size: int = 8
    """Answers that a model reads at a time."""


def labelled(judge: Judge, answers: Iterable[Answer]) -> tuple[list[Answer], np.ndarray]:
    """The answers that a judge is measured on, and `[n]` bool, what its verdicts should be."""
    if judge.measures == "harm":
        kept = [answer for answer in answers if answer.unsafe]
        return kept, np.array([answer.label == "complied" for answer in kept], bool)
    kept = list(answers)
    return kept, np.array([answer.label != "complied" for answer in kept], bool)


def auc(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """How often a true item's score is above a false one's, ties half; None without either."""
    true, false = scores[labels], scores[~labels]
    if not len(true) or not len(false):
        return None
    above = (true[:, None] > false).mean() + (true[:, None] == false).mean() / 2
    return float(above)


def row(name: str, scores: np.ndarray, labels: np.ndarray) -> list[str]:
    """A line of the table, for `[n]` scores and what they should be."""
    result = agreement(scores >= 0.5, labels)
    areas = result["kappa"], auc(scores, labels)
    kappa, area = ("none" if x is None else f"{x:.3f}" for x in areas)
    counts = [str(result["n"]), str(int(labels.sum())), str(int((scores >= 0.5).sum()))]
    accuracy, *shares = (show(result[x]) for x in ("accuracy", "precision", "recall"))
    return [name, *counts, accuracy, kappa, *shares, area]


def measure(spec: str, answers: Sequence[Answer], settings: Settings) -> None:
    """Prints the table of one judge, by source and overall."""
    if settings.limit is not None:
        check_sizes(limit=settings.limit)
    judge = make_judge(spec, dtype=settings.dtype, batch_size=settings.batch_size)
    asked, labels = labelled(judge, answers)
    if not asked:
        raise InputError(f"--judges {spec}: it needs answers to XSTest's unsafe prompts; --xstest")
    places = evenly(range(len(asked)), settings.limit or len(asked))
    asked, labels = [asked[place] for place in places], labels[places]
    start = time.monotonic()
    scores = judge.score([a.prompt for a in asked], [a.text for a in asked])
    seconds = time.monotonic() - start
    print(f"\n{spec} measures {judge.measures}: {len(asked)} answers in {seconds:.1f} s\n")
    sources = np.array([answer.source for answer in asked])
    rows = [
        row(source, scores[sources == source], labels[sources == source])
        for source in dict.fromkeys(sources.tolist())
    ]
    rows.append(row("**all**", scores, labels))
    head = "source n labels verdicts accuracy kappa precision recall AUC".split()
    print(markdown_table(head, rows), end="", flush=True)


def main(settings: Settings) -> None:
    """Prints the tables."""
    answers = read_all(settings.xstest, settings.pyrit)
    for spec in settings.judges:
        measure(spec, answers, settings)


if __name__ == "__main__":
    run_command("judges.py", Settings, main, __doc__)
