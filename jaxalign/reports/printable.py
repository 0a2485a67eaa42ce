"""What a reader is shown of text and numbers that come from a model or a file."""

import re
import unicodedata

from jaxalign.rewards import ANSWER_TAGS, REASONING_TAGS, split

KINDS = {"harmful": "Harmful", "benign": "Benign", "lookalike": "Look-alike"}

# Control characters, lone surrogates, marks of direction, and what has no width or is a tag: they
# can hide or reorder shown text. Joiners stay, and the first variation selectors: scripts and emoji
# need them.
_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e"
    r"\u2060-\u206f\u3164\ud800-\udfff\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff]"
)

# Accents, vowel signs and the like: no language writes nine of them on a letter.
_MARK = "".join(x for x in map(chr, range(0x300, 0xFFFF)) if unicodedata.category(x)[0] == "M")
_PILE = re.compile(f"(?<={8 * f'[{_MARK}]'})[{_MARK}]+")


def printable(text: object) -> str:
    """Replaces characters that could hide or reorder the text around them by U+FFFD.

    Of marks that pile up on a letter eight stay.
    """
    return _PILE.sub("\ufffd", _UNPRINTABLE.sub("\ufffd", str(text)))


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
