"""Files of answers that are written batch by batch, and what they depend on beside them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.host.errors import InputError
from jaxalign.host.json_files import read_json, write_json
from jaxalign.host.processes import is_first
from jaxalign.host.step_lines import read_lines


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
    """Writes the facts beside a new or empty file; refuses one that was made under others.

    Args:
      path: of the answers.
      facts: what they depend on, as JSON.
      kept: of the facts.
      more: what is also worth knowing, and is not compared.

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


def whole_batches(path: Path, sizes: Sequence[int]) -> int:
    """How many batches a file holds before the first one that is cut short.

    Args:
      path: of the answers, each a line with the number of its batch as `step`.
      sizes: how many answers each batch has.

    Raises:
      InputError: a line other than a torn last one is malformed.
    """
    if not path.exists():
        return 0
    counts = [0] * len(sizes)
    for _, row in read_lines(path):
        if 0 <= row["step"] < len(sizes):
            counts[row["step"]] += 1
    whole = [count == size for count, size in zip(counts, sizes, strict=True)]
    return whole.index(False) if False in whole else len(sizes)


def _difference(theirs: Any, ours: Any) -> str:
    """What the two are, where they are short enough for a line."""
    if any(isinstance(value, list | dict) or len(str(value)) > 60 for value in (theirs, ours)):
        return ""
    return f" ({theirs}, not {ours})"
