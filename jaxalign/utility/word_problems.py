"""Sums in words (GSM8K): whether a model's answer comes to the right number."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path

from jaxalign.answers.asking import Asking, LanguageModel, Progress, answers
from jaxalign.data.tables import read_json_lines
from jaxalign.host.errors import InputError
from jaxalign.rewards import split

# A hyphen behind a letter or a digit, as in 10-12, is no minus.
_NUMBER = re.compile(r"(?:(?<![\w.])-)?\d[\d,]*(?:\.\d+)?")
_SOLUTION = re.compile(rf"####\s*({_NUMBER.pattern})\s*\Z")


@dataclasses.dataclass(frozen=True)
class WordProblem:
    """A question whose answer is a number."""

    question: str
    answer: float


def load_word_problems(path: str | Path) -> list[WordProblem]:
    """Reads GSM8K's form: JSON lines with `question`, and `answer` that ends in `#### NUMBER`.

    Raises:
      InputError: no such file, no rows, or a row of another form (names the line).
    """
    problems = []
    for number, row in read_json_lines(path):
        question, answer = row.get("question"), row.get("answer")
        solution = _SOLUTION.search(answer) if isinstance(answer, str) else None
        if not isinstance(question, str) or not question.strip() or solution is None:
            raise InputError(
                f"{path} line {number}: needs a question, and an answer that ends in #### NUMBER"
            )
        problems.append(WordProblem(question, float(solution[1].replace(",", ""))))
    if not problems:
        raise InputError(f"{path}: no rows; give a file with questions")
    return problems


def last_number(text: str) -> float | None:
    """The last number in an answer, which is what it comes to; None where there is none.

    Of a completion with answer tags only the span between them counts.
    """
    found = _NUMBER.findall(split(text).answer)
    return float(found[-1].replace(",", "")) if found else None


def solve(
    lm: LanguageModel,
    problems: Sequence[WordProblem],
    asking: Asking,
    *,
    progress: Progress = lambda done, total: None,
) -> float:
    """Share of problems whose last number is the right one, one sample of each.

    Arguments, and what is raised, are otherwise those of `answers`.
    """
    questions = [problem.question for problem in problems]
    made = answers(lm, questions, asking, progress=progress)
    said = [lm.text(answer.written, answer.ending) for answer in made]
    right = [last_number(text) == p.answer for text, p in zip(said, problems, strict=True)]
    return sum(right) / len(right)
