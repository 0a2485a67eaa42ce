"""Stand-in until the judges' own file is merged."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from jaxalign.errors import InputError
from jaxalign.rewards import FIRST_SENTENCE_REFUSAL_PATTERN, REFUSAL_PATTERN, answer_span


@dataclasses.dataclass(frozen=True)
class Judge:
    """One judge."""

    name: str
    measures: Literal["refusal", "harm"]
    score: Callable[[Sequence[str], Sequence[str]], np.ndarray]


def make_judge(spec: str, *, dtype: str = "auto", batch_size: int = 16) -> Judge:
    """A judge by its spec."""
    patterns = {"phrases": REFUSAL_PATTERN, "first-sentence": FIRST_SENTENCE_REFUSAL_PATTERN}
    if spec not in patterns:
        raise InputError(f"--judge: unknown {spec!r}; use {', '.join(patterns)}")
    pattern = re.compile(patterns[spec])

    def score(requests: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        found = [bool(pattern.search(answer_span(answer))) for answer in answers]
        return np.asarray(found, np.float32)

    return Judge(spec, "refusal", score)
