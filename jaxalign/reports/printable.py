"""What a reader is shown of text and numbers that come from a model or a file."""

import re

KINDS = {"harmful": "Harmful", "benign": "Benign", "lookalike": "Look-alike"}

_OPENING = re.compile(r"<(\w*reasoning)>")
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


def _join(*parts: str) -> str:
    return "\n".join(part.strip() for part in parts if part.strip())
