"""From automata over code points to automata over the bytes of UTF-8.

The result reads bytes as `bytes.decode("utf-8", errors="replace")` does: each maximal malformed
part counts as one U+FFFD, also where the text breaks off inside a character.
"""

import dataclasses

import numpy as np

from jaxalign.text.regex import MAX_STATES, CodePointDfa

_REPLACEMENT = 0xFFFD  # what decoding writes for malformed bytes
_INVALID = -1  # also an index: tables below end with a row for it


@dataclasses.dataclass(frozen=True, eq=False)
class ByteDfa:
    """A deterministic automaton over bytes.

    Attributes:
      transitions: `[Q, 256]` int, the next state for a state and a byte.
      accepting: `[Q]` bool, whether a text that ends in this state matches.
      start: the state before the first byte.
    """

    transitions: np.ndarray
    accepting: np.ndarray
    start: int = 0


def byte_dfa(dfa: CodePointDfa) -> ByteDfa:
    """Composes an automaton over code points, whose start state is 0, with a decoder of UTF-8.

    A state of the result is a state of `dfa`, or such a state and the beginning of a character;
    beginnings with the same future are one state.

    Raises:
      ValueError: more than `MAX_STATES` states are needed.
    """
    leaf_rows, leaf_of, mid_rows, mid_of, top_rows = _continuations(dfa.class_of)
    num_whole = len(dfa.transitions)
    numbers: dict[tuple[bytes, int], int] = {}
    nodes: list[tuple[np.ndarray, int]] = []

    def begun(rows: np.ndarray, fallback: int) -> np.ndarray:
        """States for beginnings, given where each of their 64 continuation bytes leads."""
        found = []
        for row in rows:
            key = (row.tobytes(), fallback)
            if key not in numbers:
                if num_whole + len(nodes) >= MAX_STATES:
                    raise ValueError(f"more than {MAX_STATES} states are needed; make it simpler")
                numbers[key] = num_whole + len(nodes)
                nodes.append((row, fallback))
            found.append(numbers[key])
        return np.array([*found, _INVALID])

    whole = np.empty((num_whole, 256), np.int64)
    for state, targets in enumerate(dfa.transitions):
        fallback = int(targets[dfa.class_of[_REPLACEMENT]])
        leaves = begun(targets[leaf_rows], fallback)
        mids = begun(leaves[mid_rows], fallback)
        whole[state] = fallback
        whole[state, :0x80] = targets[dfa.class_of[:0x80]]
        whole[state, 0xC2:0xE0] = leaves[leaf_of[2:32]]
        whole[state, 0xE0:0xF0] = mids[mid_of[:16]]
        whole[state, 0xF0:0xF5] = begun(mids[top_rows], fallback)[:-1]

    # A byte that does not continue a character ends it as U+FFFD, and is then read afresh.
    fallbacks = np.array([fallback for _, fallback in nodes], np.int64)
    continued = np.array([row for row, _ in nodes])
    partial = whole[fallbacks]
    partial[:, 0x80:0xC0] = np.where(continued == _INVALID, partial[:, 0x80:0xC0], continued)
    return ByteDfa(
        np.concatenate([whole, partial]),
        np.concatenate([dfa.accepting, dfa.accepting[fallbacks]]),
    )


def well_formed() -> ByteDfa:
    """The automaton of the bytes that are UTF-8; where it accepts it is where it started.

    Source: The Unicode Standard, table 3-7. States 1 to 3 wait for as many continuation bytes, 4 to
    7 follow the lead bytes E0, ED, F0 and F4, which restrict the second byte; 8 stays.
    """
    transitions = np.full((9, 256), 8)
    transitions[0, :0x80] = 0
    for more, leads in enumerate([slice(0xC2, 0xE0), slice(0xE0, 0xF0), slice(0xF0, 0xF5)], 1):
        transitions[0, leads] = more
        transitions[more, 0x80:0xC0] = more - 1
    transitions[0, [0xE0, 0xED, 0xF0, 0xF4]] = [4, 5, 6, 7]
    transitions[4, 0xA0:0xC0] = transitions[5, 0x80:0xA0] = 1
    transitions[6, 0x90:0xC0] = transitions[7, 0x80:0x90] = 2
    return ByteDfa(transitions, np.arange(9) == 0)


def _continuations(class_of: np.ndarray) -> tuple[np.ndarray, ...]:
    """What 64 continuation bytes lead to, from the last byte of a character to its second.

    Returns:
      leaf_rows `[L, 64]`: classes after the last byte; leaf_of `[17408]`: the row of a code point
      without its last 6 bits. mid_rows `[M, 64]`: leaves after the last byte but one; mid_of
      `[272]`: the row of a code point without its last 12 bits (for the first 16: of the lead
      bytes E0 to EF). top_rows `[5, 64]`: mids after the lead bytes F0 to F4.
    """
    leaf_rows, leaf_of = _unique_rows(class_of.reshape(-1, 64))
    blocks = leaf_of.reshape(-1, 64).copy()
    blocks[0x0, :32] = _INVALID  # E0 80: would be shorter in two bytes
    blocks[0xD, 32:] = _INVALID  # ED A0: surrogates
    mid_rows, mid_of = _unique_rows(blocks)
    top_rows = np.full(5 * 64, _INVALID)
    top_rows[16 : len(mid_of)] = mid_of[16:]  # F0 80: shorter in three bytes; F4 90: beyond Unicode
    return leaf_rows, leaf_of, mid_rows, mid_of, top_rows.reshape(5, 64)


def _unique_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct rows, and which of them each row is."""
    numbers: dict[bytes, int] = {}  # on 17,408 rows far faster than the sort of np.unique
    index = np.array([numbers.setdefault(row.tobytes(), len(numbers)) for row in rows])
    first = np.unique(index, return_index=True)[1]
    return rows[first], index
