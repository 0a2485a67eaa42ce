"""What a reader is shown of text and numbers that come from a model or a file."""

import re

from jaxalign.rewards import ANSWER_TAGS, REASONING_TAGS, split

KINDS = {"harmful": "Harmful", "benign": "Benign", "lookalike": "Look-alike"}

# Control characters, lone surrogates, marks of direction, and what has no width or is a tag: they
# can hide or reorder shown text. Joiners stay: scripts and emoji need them.
_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u061c\u200b\u200e\u200f\u2028-\u202e"
    r"\u2060\u2066-\u2069\ufeff\U000e0000-\U000e007f]"
)


def printable(text: object) -> str:
    """Replaces characters that could hide or reorder the text around them by U+FFFD."""
    return _UNPRINTABLE.sub("\ufffd", str(text))


def percent(share: float | None) -> str:
    """A share in percent, or a dash where there is none."""
    return "–" if share is None else f"{share:.1%}"


def split_answer(completion: str) -> tuple[str | None, str]:
    """The two parts of a completion that is `closed`, each with the text around it; else only it.

    So nothing that the model wrote, or a tool, goes unseen.
    """
    reasoning, answer, closed, *_ = split(completion)
    if reasoning is None or not closed:
        return None, completion.strip()
    before, _, behind = completion.partition(answer.join(ANSWER_TAGS))
    head, _, between = before.partition(reasoning.join(REASONING_TAGS))
    return _join(head, reasoning, between), _join(answer, behind)


def _join(*parts: str) -> str:
    return "\n".join(part.strip() for part in parts if part.strip())
