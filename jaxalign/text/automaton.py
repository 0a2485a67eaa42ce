"""Phrases and patterns as automata over the bytes of UTF-8, for verifiers inside a jitted step.

    refusal = compile_phrases(["I cannot", "I can't"]).bind(tokenizer)
    refused = refusal(tokens, mask)  # [B] bool, under jit

The answers equal Python's `in` and `re.search` on the decoded text. Ours.
"""

import dataclasses
from collections.abc import Iterable

import numpy as np

from jaxalign.text.matcher import Matcher, Reader, Tokenizer
from jaxalign.text.regex import MAX_STATES, pattern_dfa, phrases_pattern
from jaxalign.text.spellings import Spellings, spelled
from jaxalign.text.utf8 import ByteDfa, byte_dfa


@dataclasses.dataclass(frozen=True, eq=False)
class Automaton(ByteDfa):
    """A minimal automaton (`transitions`, `accepting`, `start`) of the texts that hold a match.

    Bytes that are not UTF-8 count as U+FFFD, as in `bytes.decode("utf-8", errors="replace")`.
    """

    def within(self, opening: str, closing: str) -> "Automaton":
        """The automaton that looks only at the text between two tags, both ASCII.

        That is the text from the first opening tag to the next closing tag, or to the end where
        none follows; without an opening tag it is the whole text (ours: a malformed refusal is
        still a refusal).

        Raises:
          ValueError: a tag is empty or not ASCII, or the result needs too many states.
        """
        for tag in (opening, closing):
            if not (tag and tag.isascii()):
                raise ValueError(f"a tag must be ASCII and not empty, got {tag!r}")
        return _within(self, opening.encode(), closing.encode())

    def bind(self, tokenizer: Tokenizer, *, span: tuple[str, str] | None = None) -> Matcher:
        """A jit-able `Matcher` over ids of a fast Hugging Face tokenizer (see `token_bytes`).

        With a span, an opening and a closing tag, it looks between them: see `within`.

        Raises:
          ValueError: the tokenizer decodes in a way that is not supported, or as `within`.
        """
        automaton = self if span is None else self.within(*span)
        return Matcher(Reader.build([automaton], tokenizer))


def compile_phrases(phrases: Iterable[str], *, ignore_case: bool = False) -> Automaton:
    """The automaton that equals `any(phrase in text for phrase in phrases)`; of none, never.

    To ignore case is to match as `re.search(re.escape(phrase), text, re.IGNORECASE)` does, for all
    of Unicode: the Kelvin sign is a k.

    Raises:
      ValueError: `phrases` is a single string, or they need more than 20,000 states.
    """
    if isinstance(phrases, str):
        raise ValueError(f"phrases must be several strings; write [{phrases!r}] for one")
    return compile_pattern(phrases_pattern(phrases, ignore_case=ignore_case))


def compile_pattern(regex: str, *, spellings: Spellings | None = None) -> Automaton:
    r"""The automaton that equals `re.search(regex, text, re.DOTALL) is not None`.

    With spellings it equals that of `text.translate(spellings)`.

    Supported: literals and escapes, `.`, classes (ranges, negated), `\s \d \w \S \D \W` as Unicode
    has them, groups (named, capturing or not), alternation, `? * + {m,n}` greedy or lazy, and the
    anchors `\A ^ $ \Z` without MULTILINE. Not supported: lookaround, backreferences, `\b`,
    conditional and atomic groups, possessive quantifiers, inline flags.

    The expression is in Python's syntax. Spellings say what other characters are read as, such as
    `SPELLINGS`, for which the expression is written in small ASCII letters.

    Raises:
      ValueError: the expression is malformed, uses something that is not supported (the message
        names it), or needs more than 20,000 states.
    """
    dfa = pattern_dfa(regex)
    return _minimal(byte_dfa(dfa if spellings is None else spelled(dfa, spellings)))


def _minimal(dfa: ByteDfa) -> Automaton:
    """Moore's algorithm: split states that differ in acceptance, then in where they lead."""
    reached = np.zeros(len(dfa.transitions), bool)
    frontier = np.array([dfa.start])
    while frontier.size:
        reached[frontier] = True
        frontier = np.unique(dfa.transitions[frontier])
        frontier = frontier[~reached[frontier]]
    kept = np.flatnonzero(reached)
    transitions = np.searchsorted(kept, dfa.transitions[kept])
    accepting = dfa.accepting[kept]
    columns = np.unique(transitions, axis=1).T
    count, block = 0, accepting.astype(np.int64)
    while int(block.max()) + 1 > count:
        count = int(block.max()) + 1
        refined = block
        for column in columns:
            refined = np.unique(refined * count + block[column], return_inverse=True)[1]
        block = refined
    first = np.unique(block, return_index=True)[1]
    if len(first) > MAX_STATES:
        raise ValueError(f"more than {MAX_STATES} states are needed; make it simpler")
    return Automaton(
        transitions=block[transitions[first]].astype(np.int32),
        accepting=accepting[first],
        start=int(block[np.searchsorted(kept, dfa.start)]),
    )


def _within(inner: Automaton, opening: bytes, closing: bytes) -> Automaton:
    """The product of `inner` with the search for the tags; see `Automaton.within`.

    States: (bytes of the opening tag seen, inner state over the whole text); then (bytes of the
    closing tag seen, inner state before them); then the verdict, which stays.
    """
    num_inner, step = len(inner.transitions), inner.transitions
    inside = len(opening) * num_inner
    verdict = inside + len(closing) * num_inner
    transitions = np.empty((verdict + 2, 256), np.int64)
    accepting = np.empty(verdict + 2, bool)
    transitions[verdict:] = [[verdict], [verdict + 1]]
    accepting[verdict:] = [False, True]

    for seen in range(len(opening)):
        rows = slice(seen * num_inner, (seen + 1) * num_inner)
        accepting[rows] = inner.accepting
        transitions[rows] = step
        for byte in set(opening):
            now = _tag_progress(opening, seen, byte)
            found = now == len(opening)
            transitions[rows, byte] = (
                inside + inner.start if found else now * num_inner + step[:, byte]
            )

    for seen in range(len(closing)):
        rows = slice(inside + seen * num_inner, inside + (seen + 1) * num_inner)
        held = _run(inner, closing[:seen])
        accepting[rows] = inner.accepting[held]
        transitions[rows] = inside + step[held]
        for byte in set(closing):
            now = _tag_progress(closing, seen, byte)
            if now == len(closing):
                transitions[rows, byte] = verdict + inner.accepting
            else:  # what is no longer part of the tag belonged to the span
                released = (closing[:seen] + bytes([byte]))[: seen + 1 - now]
                transitions[rows, byte] = inside + now * num_inner + _run(inner, released)
    return _minimal(ByteDfa(transitions, accepting, inner.start))


def _tag_progress(tag: bytes, seen: int, byte: int) -> int:
    """How many bytes of the tag have been read after `byte`, when it was `seen` before."""
    read = tag[:seen] + bytes([byte])
    return next(k for k in range(len(read), -1, -1) if read.endswith(tag[:k]))


def _run(automaton: Automaton, text: bytes) -> np.ndarray:
    """The state that each state `[Q]` reaches over the text."""
    states = np.arange(len(automaton.transitions))
    for byte in text:
        states = automaton.transitions[states, byte]
    return states
