"""Regular expressions and phrases as deterministic automata over code points.

Python's own parser reads the expression, so syntax means here what it means in `re`. The parse
becomes a nondeterministic automaton, and the subset construction makes it deterministic.
"""

import dataclasses
import functools
import itertools
import re
import sys
from collections.abc import Iterable
from re import _parser  # type: ignore[attr-defined]
from typing import Any

import numpy as np

MAX_STATES = 20_000

CodePoints = tuple[tuple[int, int], ...]  # sorted, disjoint ranges, both ends included

_SIZE = sys.maxunicode + 1
_EVERYTHING: CodePoints = ((0, sys.maxunicode),)
_NEWLINE: CodePoints = ((10, 10),)

# What a thread has promised about the text that is left: `$` and `\Z` are promises.
_FREE, _ONLY_NEWLINE, _NOTHING = range(3)

_GUARDS = {
    "AT_BEGINNING": "begin",
    "AT_BEGINNING_STRING": "begin",
    "AT_END": "end or last newline",
    "AT_END_STRING": "end",
}
_CATEGORIES = {
    "CATEGORY_SPACE": r"\s",
    "CATEGORY_NOT_SPACE": r"\S",
    "CATEGORY_DIGIT": r"\d",
    "CATEGORY_NOT_DIGIT": r"\D",
    "CATEGORY_WORD": r"\w",
    "CATEGORY_NOT_WORD": r"\W",
}
_REFUSED = {
    "ASSERT": "lookahead or lookbehind",
    "ASSERT_NOT": "negative lookahead or lookbehind",
    "ATOMIC_GROUP": "an atomic group",
    "AT_BOUNDARY": r"the word boundary \b",
    "AT_NON_BOUNDARY": r"the word boundary \B",
    "GROUPREF": "a backreference",
    "GROUPREF_EXISTS": "a conditional group",
    "POSSESSIVE_REPEAT": "a possessive quantifier",
}


@dataclasses.dataclass(frozen=True, eq=False)
class CodePointDfa:
    """A deterministic automaton over classes of code points; state 0 is the start.

    Attributes:
      transitions: `[S, C]` int64, the next state for a state and a class.
      accepting: `[S]` bool, whether a text that ends in this state matches.
      class_of: `[0x110000]` int32, the class of each code point.
    """

    transitions: np.ndarray
    accepting: np.ndarray
    class_of: np.ndarray


def pattern_dfa(regex: str) -> CodePointDfa:
    """The automaton of the texts in which `re.search(regex, text, re.DOTALL)` finds a match.

    Raises:
      ValueError: the expression is malformed, uses a construct that is not supported (the message
        names it), or needs more than `MAX_STATES` states.
    """
    try:
        parsed = _parser.parse(regex, re.DOTALL)
    except re.error as error:
        raise ValueError(f"not a regular expression: {regex!r}: {error}") from error
    if parsed.state.flags != re.DOTALL | re.UNICODE:
        raise ValueError(f"unsupported in {regex!r}: inline flags (DOTALL alone is on, always)")
    nfa = _Nfa()
    try:
        return _determinise(nfa, _add_sequence(nfa, nfa.start, parsed))
    except _Refusal as refusal:
        raise ValueError(f"cannot compile {regex!r:.200}: {refusal}") from None


def phrases_pattern(phrases: Iterable[str], *, ignore_case: bool) -> str:
    """The expression of the texts in which at least one of the phrases occurs."""
    spell = _any_case if ignore_case else re.escape
    alternatives = ["".join(map(spell, phrase)) for phrase in phrases]
    return "|".join(alternatives) if alternatives else r"[^\s\S]"


class _Refusal(Exception):
    """Why an expression cannot be compiled."""


class _Nfa:
    """States, the edges that read one code point, and the (guarded) edges that read none."""

    def __init__(self) -> None:
        self.reads: list[list[tuple[CodePoints, int]]] = []
        self.jumps: list[list[tuple[str, int]]] = []
        self.start = self.add_state()

    def add_state(self) -> int:
        if len(self.reads) >= MAX_STATES:
            raise _Refusal(f"it needs more than {MAX_STATES} states; make it simpler")
        self.reads.append([])
        self.jumps.append([])
        return len(self.reads) - 1

    def add_read(self, entry: int, points: CodePoints) -> int:
        self.reads[entry].append((points, self.add_state()))
        return len(self.reads) - 1

    def add_jump(self, entry: int, guard: str = "") -> int:
        self.jumps[entry].append((guard, self.add_state()))
        return len(self.reads) - 1


def _add_sequence(nfa: _Nfa, entry: int, parsed: Iterable[tuple[Any, Any]]) -> int:
    """Adds what the parse reads one after the other, from `entry` on; returns the exit state."""
    for operation, argument in parsed:
        entry = _add_element(nfa, entry, operation.name, argument)
    return entry


def _add_element(nfa: _Nfa, entry: int, name: str, argument: Any) -> int:
    match name:
        case "LITERAL" | "NOT_LITERAL" | "ANY" | "IN":
            return nfa.add_read(entry, _members(name, argument))
        case "BRANCH":
            exit_ = nfa.add_state()
            for alternative in argument[1]:
                nfa.jumps[_add_sequence(nfa, entry, alternative)].append(("", exit_))
            return exit_
        case "SUBPATTERN":
            _, added, removed, body = argument
            if removed or added & ~re.DOTALL:
                raise _Refusal("inline flags are not supported (DOTALL alone is on, always)")
            return _add_sequence(nfa, entry, body)
        case "MAX_REPEAT" | "MIN_REPEAT":
            return _add_repeat(nfa, entry, *argument)
        case "AT" if argument.name in _GUARDS:
            return nfa.add_jump(entry, _GUARDS[argument.name])
    refused = argument.name if name == "AT" else name
    raise _Refusal(f"{_REFUSED.get(refused, refused)} is not supported")


def _add_repeat(nfa: _Nfa, entry: int, least: int, most: int, body: Any) -> int:
    for _ in range(least):
        entry = _add_sequence(nfa, nfa.add_jump(entry), body)
    if most == _parser.MAXREPEAT:
        loop = nfa.add_jump(entry)
        nfa.jumps[_add_sequence(nfa, loop, body)].append(("", loop))
        return loop
    exit_ = nfa.add_state()
    for _ in range(most - least):
        nfa.jumps[entry].append(("", exit_))
        entry = _add_sequence(nfa, nfa.add_jump(entry), body)
    nfa.jumps[entry].append(("", exit_))
    return exit_


def _members(name: str, argument: Any) -> CodePoints:
    """The code points that one element of a parsed expression reads."""
    match name:
        case "LITERAL":
            return ((argument, argument),)
        case "NOT_LITERAL":
            return _complement(((argument, argument),))
        case "ANY":
            return _EVERYTHING
        case "RANGE":
            return (argument,)
        case "CATEGORY":
            return _found_by(_CATEGORIES[argument.name], 0)
    items = [(operation.name, value) for operation, value in argument]
    union = _union(_members(*item) for item in items if item[0] != "NEGATE")
    return _complement(union) if items[0][0] == "NEGATE" else union


def _any_case(character: str) -> str:
    """The class of the characters that `re.IGNORECASE` takes for one."""
    points = _found_by(re.escape(character), re.IGNORECASE)
    ranges = (f"{re.escape(chr(low))}-{re.escape(chr(high))}" for low, high in points)
    return f"[{''.join(ranges)}]"


@functools.cache
def _found_by(regex: str, flags: int) -> CodePoints:
    """The code points that `re` itself finds, so that its tables need not be repeated here."""
    found = re.finditer(f"(?:{regex})+", _every_character(), flags)
    return tuple((match.start(), match.end() - 1) for match in found)


@functools.cache
def _every_character() -> str:
    return "".join(map(chr, range(_SIZE)))


def _union(sets: Iterable[CodePoints]) -> CodePoints:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(itertools.chain.from_iterable(sets)):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], high))
        else:
            merged.append((low, high))
    return tuple(merged)


def _complement(points: CodePoints) -> CodePoints:
    starts = [0] + [high + 1 for _, high in points]
    ends = [low - 1 for low, _ in points] + [sys.maxunicode]
    return tuple((low, high) for low, high in zip(starts, ends, strict=True) if low <= high)


def _classify(sets: list[CodePoints]) -> tuple[np.ndarray, dict[CodePoints, list[int]]]:
    """Code points that no set tells apart share a class: `[0x110000]` ids, and each set's ids."""
    cuts = np.unique(
        [0, _SIZE] + [cut for low, high in itertools.chain(*sets) for cut in (low, high + 1)]
    )
    member = np.zeros((len(cuts) - 1, len(sets)), bool)
    for column, points in enumerate(sets):
        for low, high in points:
            first, last = np.searchsorted(cuts, [low, high + 1])
            member[first:last, column] = True
    rows, ids = np.unique(member, axis=0, return_inverse=True)
    class_of = np.repeat(ids.reshape(-1).astype(np.int32), np.diff(cuts))
    return class_of, {s: np.flatnonzero(rows[:, i]).tolist() for i, s in enumerate(sets)}


def _determinise(nfa: _Nfa, final: int) -> CodePointDfa:
    """The subset construction, for a search: the expression may begin at any position.

    A thread is a state and a promise about the rest of the text. A set of threads that holds
    (final, free) has found its match whatever follows, and is replaced by that one thread.
    """
    sets = {points for reads in nfa.reads for points, _ in reads} | {_NEWLINE}
    class_of, classes = _classify(sorted(sets))
    width = int(class_of.max()) + 1
    newline = classes[_NEWLINE]
    won = frozenset([(final, _FREE)])

    def closure(state: int, promise: int, *, begin: bool) -> frozenset[tuple[int, int]]:
        seen, stack = {(state, promise)}, [(state, promise)]
        while stack:
            state, promise = stack.pop()
            for guard, target in nfa.jumps[state]:
                for kept in _keep(guard, promise, begin):
                    if (target, kept) not in seen:
                        seen.add((target, kept))
                        stack.append((target, kept))
        return frozenset(thread for thread in seen if thread[0] == final or nfa.reads[thread[0]])

    inside = functools.cache(functools.partial(closure, begin=False))

    @functools.cache
    def moves(thread: tuple[int, int]) -> list[tuple[int, frozenset[tuple[int, int]]]]:
        state, promise = thread
        if promise == _NOTHING:
            return []
        promised = _NOTHING if promise == _ONLY_NEWLINE else _FREE
        reads = nfa.reads[state]
        if state == final and promise == _ONLY_NEWLINE:
            reads = [*reads, (_NEWLINE, final)]
        return [
            (class_, inside(target, promised))
            for points, target in reads
            for class_ in classes[points]
            if promise == _FREE or class_ in newline
        ]

    restart = inside(nfa.start, _FREE)
    first = closure(nfa.start, _FREE, begin=True)
    subsets = [won if won <= first else first]
    number = {subsets[0]: 0}
    rows = []
    for subset in subsets:  # grows while it is read
        if subset == won:
            rows.append([number[won]] * width)
            continue
        reached: list[set[tuple[int, int]]] = [set(restart) for _ in range(width)]
        for thread in subset:
            for class_, threads in moves(thread):
                reached[class_] |= threads
        row = []
        for ahead in reached:
            target = won if won <= ahead else frozenset(ahead)
            if target not in number:
                if len(subsets) >= MAX_STATES:
                    raise _Refusal(f"it needs more than {MAX_STATES} states; make it simpler")
                number[target] = len(subsets)
                subsets.append(target)
            row.append(number[target])
        rows.append(row)
    accepts = [(final, _FREE) in s or (final, _NOTHING) in s for s in subsets]
    return CodePointDfa(np.array(rows, np.int64), np.array(accepts), class_of)


def _keep(guard: str, promise: int, begin: bool) -> tuple[int, ...]:
    """The promises with which a thread may pass a guard."""
    match guard:
        case "":
            return (promise,)
        case "begin":
            return (promise,) if begin else ()
        case "end":
            return () if promise == _ONLY_NEWLINE else (_NOTHING,)
        case _:
            return (_ONLY_NEWLINE, _NOTHING) if promise == _FREE else (promise,)
