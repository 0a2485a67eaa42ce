"""Judges of answers: does it refuse, or does it harm?

Measured on answers that people have labelled in `docs/judges.md`.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from jaxalign.answers.asking import LanguageModel, Progress
from jaxalign.answers.completing import check_sizes
from jaxalign.answers.first_words import form_scores
from jaxalign.evaluation.guard import guard_form
from jaxalign.evaluation.rubric import RUBRIC
from jaxalign.host.errors import InputError
from jaxalign.host.user_functions import load_function, names_function, scoring_texts
from jaxalign.rewards import (
    FIRST_SENTENCE_REFUSAL_PATTERN,
    REFUSAL_PATTERN,
    judge_refusal,
    split,
)

Measures = Literal["refusal", "harm"]
Score = Callable[[Sequence[str], Sequence[str]], np.ndarray]

SPECS = "phrases, first-sentence, refusals, guard=MODEL, rubric=MODEL or FILE.py:FUNCTION"
_REFUSES: dict[str, Callable[[str], bool]] = {
    "phrases": lambda answer: _finds(REFUSAL_PATTERN, answer),
    "first-sentence": lambda answer: _finds(FIRST_SENTENCE_REFUSAL_PATTERN, answer),
    "refusals": lambda answer: bool(judge_refusal(answer).refused),
}
_FORMS = {"guard": guard_form, "rubric": lambda tokenizer: RUBRIC}


@dataclasses.dataclass(frozen=True)
class Judge:
    """Gives answers a score; 0.5 or more is its verdict.

    Attributes:
      name: for tables.
      measures: what 1 says: "refusal", that the answer certainly refuses; "harm", that it certainly
        does harm.
      score: from n requests and n answers to `[n]` float32 in [0, 1]. Answers are whole outputs: of
        one with `rewards.ANSWER_TAGS` only the part between them is judged.
    """

    name: str
    measures: Measures
    score: Score


JUDGING_DATE = "2024-07-26"
"""What chat templates of judges take for today, ours: verdicts of two days can be compared."""


def make_judge(
    spec: str,
    *,
    dtype: str = "auto",
    batch_size: int = 16,
    progress: Progress = lambda done, total: None,
) -> Judge:
    """Makes the judge that a specification names.

    - `phrases`: any of AlphaAlign's phrases (`rewards.REFUSAL_PATTERN`) is a refusal.
    - `first-sentence`: our wordings, in the first sentence
      (`rewards.FIRST_SENTENCE_REFUSAL_PATTERN`).
    - `refusals`: a sentence anywhere that declines, in any spelling (`rewards.judge_refusal`).
    - `guard=MODEL`: P(unsafe) of a guard model (`evaluation.guard`).
    - `rubric=MODEL`: StrongREJECT's score by a local model (`evaluation.rubric`).
    - `FILE.py:FUNCTION`: a function of your own, `(requests, answers) -> [n]` bools or numbers in
      [0, 1]. Its attribute `measures` may be "harm"; without it, it measures refusal.

    A model computes in `dtype` (auto, bfloat16 or float32), and `progress` is told after each of
    its batches how many answers of those it was given are judged, and of how many.

    Raises:
      InputError: an unknown specification, a batch size below 1, a model that cannot be loaded, or
        a file that has no such function. The score raises it where a function fails, or returns
        something else than asked for, and where an answer is too long for a model.
    """
    check_sizes(batch_size=batch_size)
    if spec in _REFUSES:

        def refused(requests: Sequence[str], answers: Sequence[str]) -> np.ndarray:
            return np.array(list(map(_REFUSES[spec], answers)), np.float32)

        return Judge(spec, "refusal", _checked(refused))
    kind, found, model_name = spec.partition("=")
    if found and kind in _FORMS:
        if not model_name:
            raise InputError(f"judge {spec!r}: no model; write {kind}=MODEL")
        lm = LanguageModel.load(model_name, dtype, template_date=JUDGING_DATE)
        form = _FORMS[kind](lm.tokenizer)
        judge = functools.partial(form_scores, lm, form, batch_size=batch_size, progress=progress)
        return Judge(kind, "harm", _checked(judge))
    if names_function(spec):
        function = load_function(spec, "--judge")
        path, _, name = spec.rpartition(":")
        measures: Any = getattr(function, "measures", "refusal")
        if measures not in ("refusal", "harm"):
            raise InputError(
                f"{path}: {name}.measures is {measures!r}; set it to 'refusal' or 'harm', or leave "
                "it"
            )
        return Judge(name, measures, _checked(scoring_texts(function, f"--judge {spec}", 0, 1)))
    raise InputError(f"judge {spec!r} is not known; use {SPECS}")


def _finds(pattern: str, answer: str) -> bool:
    return re.search(pattern, answer, re.DOTALL) is not None


def _checked(score: Score) -> Score:
    """Takes the answers out of their tags; nothing to judge is no work."""

    def checked(requests: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        if len(requests) != len(answers):
            raise ValueError(f"{len(requests)} requests for {len(answers)} answers")
        if not answers:
            return np.zeros(0, np.float32)
        return score(requests, [split(answer).answer for answer in answers])

    return checked
