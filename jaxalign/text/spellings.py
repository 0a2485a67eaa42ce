"""Text as people and models spell it, read as plain small ASCII; for patterns of English. Ours.

compile_pattern("i can't", spellings=SPELLINGS)  # finds "I CAN’T", "**I** can`t", "Ｉ can＇t"
"""

import functools
import unicodedata
from collections.abc import Mapping

import numpy as np

from jaxalign.text.regex import CodePointDfa

Spellings = Mapping[int, str | None]
"""What `str.translate` takes: code points, and what each is read as; None leaves it out."""

_APOSTROPHES = "\u2018\u2019\u201a\u201b\u02bc\u02b9\u2032\u2039\u203a`\u00b4"
_QUOTES = "\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033\u301d\u301e"
_HYPHENS = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
_SPACES = "\t\x0b\x0c"
_BREAKS = "\x85\u2028\u2029"
_LEFT_OUT = (
    "*_\r\u00ad\u034f\u061c\u180e\ufeff\ufffd"  # marks of bold and italics, soft hyphen …
    + "".join(map(chr, [*range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x2070)]))
    + "".join(map(chr, [*range(0x300, 0x370), *range(0xFE00, 0xFE10)]))  # accents, variants
)


def _of_unicode() -> dict[int, str | None]:
    """Characters whose compatible form is ASCII but for accents, in small letters."""
    table: dict[int, str | None] = {}
    for point in (*range(0x41, 0x5B), *range(0xA0, 0x10000), *range(0x1D400, 0x1FC00)):
        decomposed = unicodedata.normalize("NFKD", chr(point)).lower()
        plain = "".join(c for c in decomposed if not unicodedata.combining(c))
        ligature = 0xFB00 <= point <= 0xFB06
        if plain.isascii() and (ligature or len(plain) == 1):
            table[point] = plain
    return table


SPELLINGS: Spellings = (
    _of_unicode()
    | dict.fromkeys(map(ord, _APOSTROPHES), "'")
    | dict.fromkeys(map(ord, _QUOTES), '"')
    | dict.fromkeys(map(ord, _HYPHENS), "-")
    | dict.fromkeys(map(ord, _SPACES), " ")
    | dict.fromkeys(map(ord, _BREAKS), "\n")
    | {ord("\u2026"): "."}
    | dict.fromkeys(map(ord, _LEFT_OUT))
)
"""Capitals as small letters; typographic, reversed and full-width apostrophes, backtick, acute and
prime as `'`; curly and angle quotes as `"`; dashes as `-`; any space as a space, line separators as
a line break; an ellipsis as a full stop; compatible forms (full-width, mathematical, ligatures) and
accented letters as ASCII. `*`, `_`, carriage returns, soft hyphens, accents on their own,
characters without width and U+FFFD, which stands for bytes that are no text, are left out."""


def spelled(dfa: CodePointDfa, spellings: Spellings) -> CodePointDfa:
    """The automaton that reads a text as `dfa` reads `text.translate(spellings)`.

    Code points read as the same text share a class; one that is left out leaves the state as it is.
    """
    columns = list(dfa.transitions.T)
    class_of = dfa.class_of.copy()

    @functools.cache
    def class_for(replacement: str) -> int:
        if len(replacement) == 1:
            return int(dfa.class_of[ord(replacement)])
        states = np.arange(len(dfa.transitions))
        for character in replacement:
            states = dfa.transitions[states, dfa.class_of[ord(character)]]
        columns.append(states)
        return len(columns) - 1

    for point, replacement in spellings.items():
        class_of[point] = class_for(replacement or "")
    return CodePointDfa(np.stack(columns, axis=1), dfa.accepting, class_of)
