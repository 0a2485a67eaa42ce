"""Files of answers that are written batch by batch, and what they depend on beside them."""

import collections
import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxalign.answers.asking import Answer, Asking, LanguageModel, Questions, answer_batches
from jaxalign.host.errors import InputError
from jaxalign.host.json_files import read_json, write_json
from jaxalign.host.processes import is_first, least
from jaxalign.host.step_lines import StepLines, read_lines
from jaxalign.sampling import Stage


def facts_path(path: Path) -> Path:
    """Where it is said what the answers in a file depend on."""
    return path.with_suffix(".facts.json")


def part_path(path: Path) -> Path:
    """Where the answers are until there are all of them.

    Raises:
      InputError: the path does not end in .jsonl.
    """
    if path.suffix != ".jsonl":
        raise InputError(f"{path}: answers are JSON lines; give a name that ends in .jsonl")
    return path.with_suffix(".part.jsonl")


def keep_facts(
    path: Path, facts: Mapping[str, Any], *, kept: Path, more: Mapping[str, Any] | None = None
) -> None:
    """Writes the JSON facts beside a new or empty file; refuses one that was made under others.

    `more` is written, too, and not compared.

    Raises:
      InputError: the file was made under other facts, or it is not known under which.
    """
    if not path.exists() or not path.stat().st_size:
        if is_first():
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_json(kept, dict(facts) | dict(more or {}))
        return
    if not kept.exists():
        raise InputError(
            f"{path}: {kept.name}, which says how it was made, is not beside it; give another file"
        )
    theirs = read_json(kept)
    for name in [*facts, *sorted(theirs.keys() - facts.keys() - (more or {}).keys())]:
        value = facts.get(name)
        if theirs.get(name) != value:
            raise InputError(
                f"{path}: made with another {name}{_difference(theirs.get(name), value)}; give the "
                f"one it was made with (see {kept.name}), or another file"
            )


def resume(
    lm: LanguageModel,
    questions: Questions,
    asking: Asking,
    stage: Stage,
    path: Path,
    *,
    describe: Callable[[Answer, int], dict[str, Any]],
) -> tuple[int, Iterator[list[dict[str, Any]]]]:
    """Goes on with a file of answers, each a line with its batch as `step`, as `answer_batches`.

    Returns:
      how many answers are kept, those of whole batches; and of each further batch the rows that
      `describe` makes of an answer and its number among its request's, in the file by then.

    Raises:
      InputError: a line other than a torn last one is malformed.
    """
    lines = read_lines(path) if path.exists() else []
    counts = collections.Counter(row["step"] for _, row in lines)
    sizes = [len(batch) * asking.samples for batch in questions.batches]
    torn = (number for number, size in enumerate(sizes) if counts[number] != size)
    first = least(next(torn, len(sizes)))  # also before the first process changes the file

    def append() -> Iterator[list[dict[str, Any]]]:
        with StepLines(path, first) if is_first() else contextlib.nullcontext() as lines:
            batches = answer_batches(lm, questions, asking, stage, first=first)
            for number, batch in enumerate(batches, start=first):
                rows = [describe(answer, at % asking.samples) for at, answer in enumerate(batch)]
                if lines is not None:
                    for row in rows:
                        lines.append({"step": number} | row)
                yield rows

    return sum(sizes[:first]), append()


def _difference(theirs: Any, ours: Any) -> str:
    """What the two are, where they are short enough for a line."""
    if any(isinstance(value, list | dict) or len(str(value)) > 60 for value in (theirs, ours)):
        return ""
    return f" ({theirs}, not {ours})"
