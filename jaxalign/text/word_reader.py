"""Grammars over words that read token ids on the device: the form of `Lexicon.read` there. Ours.

Three automata run one behind the other, byte by byte: UTF-8 becomes plain characters, characters
become words, and each grammar reads the words. So their tables add up, where those of one automaton
over bytes would multiply.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.text.matcher import CHUNK, NEVER, NO_BYTE, Reader, Tokenizer
from jaxalign.text.regex import CodePointDfa, pattern_dfa
from jaxalign.text.spellings import SPELLINGS
from jaxalign.text.utf8 import byte_dfa
from jaxalign.text.words import ASKED, QUOTED, STOP, Lexicon

_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
PLAIN = f"{_LETTERS}'\".?\n "
"""What is told apart of plain text: `!` is read as `.`, and any other character as a space."""
_OUTSIDE, _LINE, _IN_DOUBLE, _IN_SINGLE, _TICKED, _BEHIND_TICK, _IN_WORD = range(7)
_NOTHING = ""
_MARKS = (_NOTHING, STOP, QUOTED)
_States = tuple[jax.Array, ...]  # of UTF-8, of words, of grammars; and what sentences have held


@dataclasses.dataclass(frozen=True, eq=False)
class _Lexer:
    """From plain characters to words.

    Attributes:
      transitions: `[S, C]` int, C the characters of `PLAIN` and ligatures; the last leaves the
        state, but tells nothing again.
      word: the characters of the word that ends on entering each state, S strings.
      mark: which of `_MARKS` follows it, S numbers.
    """

    transitions: np.ndarray
    word: list[str]
    mark: list[int]


def _lexer(lexicon: Lexicon, texts: Sequence[str]) -> _Lexer:
    """Of a lexicon; `texts` are the plain texts that one character may become."""
    known = lexicon.known_words()
    prefixes = {word[:end] for word in known for end in range(1, len(word) + 1)}
    number: dict[_Place, int] = {}
    states: list[_Place] = []

    def index(place: _Place) -> int:
        if place not in number:
            number[place] = len(states)
            states.append(place)
        return number[place]

    def enter(place: _Place, character: str) -> _Place:
        mode, begun, _, _ = place
        if mode in (_IN_DOUBLE, _IN_SINGLE) and character == "\n":
            return _Place(_LINE)
        if mode == _IN_DOUBLE:
            return _Place(_OUTSIDE if character == '"' else _IN_DOUBLE)
        if mode == _IN_SINGLE:
            return _Place(_TICKED if character == "'" else _IN_SINGLE)
        if mode == _TICKED and character in _LETTERS:
            return _Place(_IN_SINGLE)
        if mode == _IN_WORD and character in _LETTERS + "'":
            longer = begun and begun + character
            return _Place(_IN_WORD, longer if longer in prefixes else "")
        if character in _LETTERS:
            return _Place(_IN_WORD, character if character in prefixes else "")
        word = lexicon.characters(begun) if mode == _IN_WORD else _NOTHING
        match character:
            case '"':
                return _Place(_IN_DOUBLE, word=word, mark=QUOTED)
            case "'" if mode in (_TICKED, _BEHIND_TICK):
                return _Place(_BEHIND_TICK)
            case "'":
                return _Place(_IN_SINGLE, mark=QUOTED)
            case "?":
                return _Place(_OUTSIDE, word=word + ASKED, mark=STOP)
            case ".":
                return _Place(_OUTSIDE, word=word, mark=STOP)
            case "\n":
                return _Place(_LINE, word=word, mark=STOP if mode == _LINE else _NOTHING)
        return _Place(_OUTSIDE, word=word)

    index(_Place(_OUTSIDE))
    rows = []
    for place in states:  # grows while it is read
        after = [functools.reduce(enter, text, place) for text in (*PLAIN, *texts)]
        rows.append([*map(index, after), index(_Place(place.mode, place.begun))])
    marks = [_MARKS.index(place.mark) for place in states]
    return _Lexer(np.array(rows), [place.word for place in states], marks)


class _Place(NamedTuple):
    """Where the lexer is, and what it tells on entering."""

    mode: int
    begun: str = ""  # the beginning of a known word
    word: str = _NOTHING
    mark: str = _NOTHING


def _characters() -> tuple[CodePointDfa, list[str]]:
    """An automaton whose state is the class of the character read last; and the longer classes."""
    texts = sorted({text for text in SPELLINGS.values() if text and len(text) > 1})
    left_out = len(PLAIN) + len(texts)
    class_of = np.full(0x110000, PLAIN.index(" "), np.int32)
    for number, character in enumerate(PLAIN):
        class_of[ord(character)] = number
    class_of[ord("!")] = PLAIN.index(".")
    plain = class_of.copy()
    for point, text in SPELLINGS.items():
        if not text:
            class_of[point] = left_out
        elif len(text) > 1:
            class_of[point] = len(PLAIN) + texts.index(text)
        else:
            class_of[point] = plain[ord(text)]
    count = left_out + 1
    table = np.tile(np.arange(count) + 1, (count + 1, 1))  # the start has a state of its own
    return CodePointDfa(table, np.zeros(count + 1, bool), class_of), texts


class Reading(NamedTuple):
    """What K grammars found in the words of B texts.

    Attributes:
      in_a_sentence: `[B, J]` bool, whether the J verdicts on a sentence held for at least one.
      accepted: `[B, K]` bool, whether the grammar accepts the text; of a grammar over sentences
        whether it accepts the last one.
    """

    in_a_sentence: jax.Array
    accepted: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class CharacterReader:
    """Reads tokens as plain characters, one byte at a time; a pytree.

    Attributes:
      reader: of one automaton, over bytes; its state tells the character that has been read.
      character: `[Q]` int32, which one: an index into `PLAIN`, beyond it a ligature, the last of
        all for none.
      spelled: `[C, 3]` int32, the characters of `PLAIN` that each stands for; -1 behind them.
    """

    reader: Reader
    character: jax.Array
    spelled: jax.Array

    @classmethod
    def build(cls, tokenizer: Tokenizer) -> CharacterReader:
        """Of a tokenizer's vocabulary; raises what `token_bytes` raises."""
        dfa, texts = _characters()
        reader = Reader.build([byte_dfa(dfa)], tokenizer)
        none = len(PLAIN) + len(texts)
        character = np.full(len(reader.transitions), none)
        first = int(reader.initial[0]) + 1
        character[first : first + none + 1] = np.arange(none + 1)
        spelled = np.full((none + 1, 3), -1)
        for row, text in enumerate((*PLAIN, *texts)):
            spelled[row, : len(text)] = [PLAIN.index(letter) for letter in text]
        return cls(reader, jnp.asarray(character, jnp.int32), jnp.asarray(spelled, jnp.int32))

    def scan(
        self,
        read: Callable[[_States, jax.Array], _States],
        states: _States,
        tokens: jax.Array,
        mask: jax.Array,
        *,
        start: jax.Array | int,
        stop: jax.Array | int,
    ) -> _States:
        """Reads each row's masked-in tokens, and last a space, which ends a word.

        Args:
          read: from states and a character of each row, `[B]`, to the next states.
          states: the first ones, a tuple of arrays.
          tokens: `[B, T]` int.
          mask: `[B, T]` bool; it may have holes.
          start: `[B]` int, the byte of the text at which to begin, as `matcher.Reading` counts.
          stop: `[B]` int, the byte before which to end.
        """
        chex.assert_rank([tokens, mask], 2)
        chex.assert_equal_shape([tokens, mask])
        begin, length = self.reader.laid_out(tokens, mask)
        chunk_at = self.reader.vocabulary.chunks(begin, length)
        bounds = [jnp.broadcast_to(jnp.asarray(x), len(tokens))[:, None] for x in (start, stop)]
        none = jnp.max(self.character)

        def step(carry: _States, byte: jax.Array) -> tuple[_States, None]:
            at, *states = carry
            at = self.reader.transitions[at, byte]
            character = jnp.where(byte == NO_BYTE, none, self.character[at])
            return (at, *read(tuple(states), character)), None

        def chunk(carry: tuple[jax.Array, _States]) -> tuple[jax.Array, _States]:
            position, states = carry
            places = position + jnp.arange(CHUNK, dtype=jnp.int32)
            inside = (places >= bounds[0]) & (places < bounds[1])
            data = jnp.where(inside, chunk_at(position), NO_BYTE)
            return position + CHUNK, jax.lax.scan(step, states, data.T)[0]

        batch = len(tokens)
        first = (jnp.broadcast_to(self.reader.initial, batch), *states)
        longest = jnp.max(jnp.sum(length, axis=1), initial=0)
        _, (_, *last) = jax.lax.while_loop(
            lambda carry: carry[0] < longest, chunk, (jnp.int32(0), first)
        )
        return read(tuple(last), jnp.full(batch, PLAIN.index(" ")))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class WordReader:
    """K grammars over words that read the same tokens; a pytree.

    Attributes:
      characters: reads the tokens.
      words: `[S, C]` int32, the next state for a state and a character.
      word: `[S]` int32, the word that is told on entering a state; 0 is none.
      mark: `[S]` int32, the mark behind it: 0 is none.
      grammar: `[G, W]` int32, the next state for a state of a grammar and a word or mark.
      accepting: `[G]` bool.
      initial: `[K]` int32.
      marks: `[3]` int32, the columns of `grammar` of no mark, the end of a sentence, a quotation.
      over_sentences: `[K]` bool, the grammars that begin anew with each sentence.
      verdicts: from what K grammars accept, `[B, K]` bool, to J verdicts on a sentence, `[B, J]`.
    """

    characters: CharacterReader
    words: jax.Array
    word: jax.Array
    mark: jax.Array
    grammar: jax.Array
    accepting: jax.Array
    initial: jax.Array
    marks: jax.Array
    over_sentences: jax.Array
    verdicts: Callable[[jax.Array], jax.Array] = dataclasses.field(metadata={"static": True})

    @classmethod
    def build(
        cls,
        lexicon: Lexicon,
        tokenizer: Tokenizer,
        *,
        of_sentences: Sequence[str],
        of_texts: Sequence[str] = (),
        verdicts: Callable[[jax.Array], jax.Array],
    ) -> WordReader:
        """Of patterns that `lexicon.pattern` has made.

        Args:
          lexicon: with the words of all of them.
          tokenizer: a fast Hugging Face tokenizer: see `token_bytes`.
          of_sentences: are searched for in each sentence by itself.
          of_texts: are searched for in the text; they are the last of the K.
          verdicts: see above; a function of the module, for it is compared when jit looks for a
            compiled program.

        Raises:
          ValueError: the tokenizer decodes in a way that is not supported, or a pattern needs more
            than 20,000 states.
        """
        lexer = _lexer(lexicon, _characters()[1])
        told = sorted({_NOTHING, STOP, QUOTED, *lexer.word})
        number = {text: index for index, text in enumerate(told)}
        dfas = [pattern_dfa(pattern) for pattern in (*of_sentences, *of_texts)]
        starts = np.cumsum([0, *(len(dfa.transitions) for dfa in dfas)])
        table = np.concatenate(
            [_columns(dfa, told) + start for dfa, start in zip(dfas, starts, strict=False)]
        )
        distinct: dict[bytes, int] = {}  # most words are read alike
        columns = np.ascontiguousarray(table.T)
        column = np.array([distinct.setdefault(x.tobytes(), len(distinct)) for x in columns])
        kept = table[:, np.unique(column, return_index=True)[1]]
        return cls(
            characters=CharacterReader.build(tokenizer),
            words=jnp.asarray(lexer.transitions, jnp.int32),
            word=jnp.asarray(column[[number[text] for text in lexer.word]], jnp.int32),
            mark=jnp.asarray(lexer.mark, jnp.int32),
            grammar=jnp.asarray(kept, jnp.int32),
            accepting=jnp.asarray(np.concatenate([dfa.accepting for dfa in dfas])),
            initial=jnp.asarray(starts[:-1], jnp.int32),
            marks=jnp.asarray(column[[number[text] for text in _MARKS]], jnp.int32),
            over_sentences=jnp.asarray(np.arange(len(dfas)) < len(of_sentences)),
            verdicts=verdicts,
        )

    def __call__(
        self,
        tokens: jax.Array,
        mask: jax.Array,
        start: jax.Array | int = 0,
        stop: jax.Array | int = NEVER,
    ) -> Reading:
        """Reads the words of each row's masked-in tokens, under jit or not.

        Args:
          tokens: `[B, T]` int.
          mask: `[B, T]` bool; it may have holes.
          start: `[B]` int, the byte of the text at which to begin, as `matcher.Reading` counts.
          stop: `[B]` int, the byte before which to end.
        """

        def read(states: _States, character: jax.Array) -> _States:
            word, grammars, found = states
            word = self.words[word, character]
            grammars = self.grammar[grammars, self.word[word][:, None]]
            mark = self.mark[word][:, None]
            ended = mark == _MARKS.index(STOP)
            found |= ended & self.verdicts(self.accepting[grammars])
            marked = self.grammar[grammars, self.marks[mark]]
            return word, jnp.where(ended & self.over_sentences, self.initial, marked), found

        batch = len(tokens)
        grammars = jnp.broadcast_to(self.initial, (batch, len(self.initial)))
        found = jnp.zeros_like(self.verdicts(self.accepting[grammars]))
        states = (jnp.zeros(batch, jnp.int32), grammars, found)
        _, grammars, found = self.characters.scan(
            read, states, tokens, mask, start=start, stop=stop
        )
        accepted = self.accepting[grammars]
        return Reading(found | self.verdicts(accepted), accepted)


def _columns(dfa: CodePointDfa, told: Sequence[str]) -> np.ndarray:
    """`[S, W]`, where each state goes over each of W strings."""
    columns = []
    for text in told:
        states = np.arange(len(dfa.transitions))
        for character in text:
            states = dfa.transitions[states, dfa.class_of[ord(character)]]
        columns.append(states)
    return np.stack(columns, axis=1)
