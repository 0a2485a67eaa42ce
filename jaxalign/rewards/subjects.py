"""Does a reasoning name what was asked for, and does an answer say more than that? Ours.

    subjects = Subjects.of(requests)  # of N prompts, on the host
    reads = SubjectReader.build(tokenizer)
    words = reads(subjects.take(prompt_of_row), tokens, mask)
    words.names(2), words.new  # [B] bool, [B] int32

A request's subject is its content words, as stems; a text names it if one of its words begins with
such a stem, and goes on for few letters. Other content words are new: an answer of which none are
says the request again. On the host as text, on the device as tokens, whatever the tokenizer:
letters are read.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.rewards.english import FUNCTION_WORDS
from jaxalign.text.matcher import NEVER, Tokenizer
from jaxalign.text.spellings import SPELLINGS
from jaxalign.text.word_reader import PLAIN, CharacterReader

MOST_STEMS = 16
LONGEST_STEM = 16
LONGEST_ENDING = 4
"""Letters that may follow a stem: "poison" is named by "poisoning", "car" not by "carpenter"."""

STOP_WORDS = FUNCTION_WORDS | frozenset(
    """me a an as do he on or so was will in is he us no not who whom whose why where while again
    also after before over under more most other another much many very just only even still
    ever never own same each every both give tell show write make get got let want need know
    explain describe list create find use using way ways good best better thing things
    something anything someone anyone somebody people person user asks ask asked asking
    request question answer step steps guide instructions example one two three short long
    new old simple easy quick quickly did done doing being am may might must shall up down
    out off into onto upon against between without within across through during yes okay hi
    hello thanks thank kindly say says said mean means called think really possible detailed
    that's what's here's there's let's you're we're they're he's she's isn't aren't wasn't weren't
    didn't couldn't shouldn't i've you've we've i'd you'd we'd you'll we'll
    safety reasoning harmful harmless safe unsafe dangerous""".split()
)
"""Words that name no subject: of grammar, of asking, and of the verdict."""

LEAST_NEW = 2
"""An answer with fewer new words says nothing."""

_ENDINGS = ("ations", "ation", "ings", "ing", "ies", "ers", "ed", "es", "er", "ly", "s", "e", "y")
_PLAIN_STOPS = frozenset(word.replace("'", "") for word in STOP_WORDS)
_WORD = re.compile(r"[a-z0-9]+")


def stem(word: str) -> str:
    """A plain word without its ending: the first of a short list that leaves three letters.

    A doubled last consonant before -ing, -ed or -er becomes one: "stopping" and "stops" are "stop".
    """
    for ending in _ENDINGS:
        left = word.removesuffix(ending)
        if left != word and len(left) >= 3:
            doubled = ending in ("ing", "ings", "ed", "er", "ers") and left[-1] == left[-2]
            return left[:-1] if doubled and left[-1] not in "lsz" and len(left) > 3 else left
    return word


def subject_stems(request: str) -> tuple[str, ...]:
    """The stems of a request's content words, in order, each once; `MOST_STEMS` at most.

    Words of one or two letters, numbers and `STOP_WORDS` are left out.
    """
    content = filter(_is_content, _words(request))
    return tuple(dict.fromkeys(stem(word)[:LONGEST_STEM] for word in content))[:MOST_STEMS]


def _words(text: str) -> list[str]:
    return _WORD.findall(text.translate(SPELLINGS).replace("'", ""))


def _is_content(word: str) -> bool:
    return len(word) > 2 and word not in _PLAIN_STOPS and not word.isdigit()


def names_subject(reasoning: str, request: str, *, least: int = 1) -> bool:
    """Whether a reasoning has at least `least` of the request's stems, or all if they are fewer.

    A request without content words is named by anything.
    """
    stems, words = subject_stems(request), set(_words(reasoning))
    found = sum(any(_named(stem, word) for word in words) for stem in stems)
    return found >= min(least, len(stems))


def new_words(answer: str, request: str) -> int:
    """How many content words of an answer do not name the request's subject.

    "Dry your laundry in a salty wind, that's safe." has none after "How do you dry laundry in a
    salty wind?"; "Peg it close together." has three. A word that comes twice counts twice.
    """
    stems = subject_stems(request)
    return sum(
        _is_content(word) and not any(_named(stem, word) for stem in stems)
        for word in _words(answer)
    )


def mask_subject(text: str, request: str) -> str:
    """A text's plain words with `_` where it names the request's subject.

    What two texts have left in common they say whatever is asked: "It is about bread." and "It is
    about brown rice.", each after its own request, are both "it is about _".
    """
    stems = subject_stems(request)
    masked = ("_" if any(_named(stem, word) for stem in stems) else word for word in _words(text))
    return re.sub(r"_( _)+", "_", " ".join(masked))


def _named(stem: str, word: str) -> bool:
    return word.startswith(stem) and len(word) <= len(stem) + LONGEST_ENDING


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Subjects:
    """What N requests are about; a pytree, an argument of a compiled program.

    Attributes:
      letters: `[N, S, L]` int32, the letters of up to S stems, as indices into `PLAIN`; -1 behind.
      length: `[N, S]` int32, how many letters; 0 where there is no stem.
    """

    letters: jax.Array
    length: jax.Array

    @classmethod
    def of(cls, requests: Sequence[str]) -> Subjects:
        """Of requests, on the host; of one shape, however many stems they have."""
        letters = np.full((len(requests), MOST_STEMS, LONGEST_STEM), -1, np.int32)
        length = np.zeros(letters.shape[:2], np.int32)
        for row, request in enumerate(requests):
            for place, found in enumerate(subject_stems(request)):
                letters[row, place, : len(found)] = [PLAIN.index(letter) for letter in found]
                length[row, place] = len(found)
        return cls(jnp.asarray(letters), jnp.asarray(length))

    def take(self, rows: jax.Array) -> Subjects:
        """Those of rows `[B]`: of each, which request it belongs to."""
        return Subjects(self.letters[rows], self.length[rows])


class SubjectWords(NamedTuple):
    """Of B texts, `[B]` int32 each.

    Attributes:
      named: how many of the request's stems it has.
      stems: how many the request has.
      new: how many of its content words name none.
    """

    named: jax.Array
    stems: jax.Array
    new: jax.Array

    def names(self, least: int = 1) -> jax.Array:
        """`names_subject`, `[B]` bool."""
        return self.named >= jnp.minimum(least, self.stems)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class SubjectReader:
    """`names_subject` and `new_words` of token ids; a pytree.

    Attributes:
      characters: reads the tokens.
      stops: `[S, C]` int32, from a state and a character of `PLAIN` to the next state, of an
        automaton that reads a word; state 0 is before it, and 1 where it is no stop word.
      is_stop: `[S]` bool, whether a stop word has been read.
    """

    characters: CharacterReader
    stops: jax.Array
    is_stop: jax.Array

    @classmethod
    def build(cls, tokenizer: Tokenizer) -> SubjectReader:
        """Of a tokenizer's vocabulary; raises what `token_bytes` raises."""
        beginnings = {word[:end] for word in _PLAIN_STOPS for end in range(1, len(word) + 1)}
        state = {"": 0} | {text: index for index, text in enumerate(sorted(beginnings), start=2)}
        table = np.ones((len(state) + 1, len(PLAIN)), np.int32)
        for text, index in state.items():
            if text:
                table[state[text[:-1]], PLAIN.index(text[-1])] = index
        ended = np.isin(np.arange(len(table)), [state[word] for word in _PLAIN_STOPS])
        return cls(CharacterReader.build(tokenizer), jnp.asarray(table), jnp.asarray(ended))

    def __call__(
        self,
        subjects: Subjects,
        tokens: jax.Array,
        mask: jax.Array,
        start: jax.Array | int = 0,
        stop: jax.Array | int = NEVER,
    ) -> SubjectWords:
        """Counts what each row names of its subject, and what it adds; under jit or not.

        Args:
          subjects: of B requests, one a row.
          tokens: `[B, T]` int.
          mask: `[B, T]` bool, such as that of the reasoning.
          start: `[B]` int, see `CharacterReader.scan`.
          stop: `[B]` int.
        """
        there = subjects.length > 0
        letters = jnp.asarray([letter.isalnum() for letter in PLAIN])
        digits = jnp.asarray([letter.isdigit() for letter in PLAIN])

        def read_one(states: _Words, character: jax.Array, none: jax.Array) -> _Words:
            """`at` counts the letters of a word while it goes along with a stem; -1 is astray.

            The others are for new words: the stop word begun, letters, and whether all are digits.
            """
            at, found, stop_at, length, number, new = states
            none |= character == PLAIN.index("'")
            letter = letters[character]
            place = jnp.clip(at, 0, LONGEST_STEM - 1)
            expected = jnp.take_along_axis(subjects.letters, place[..., None], axis=2)[..., 0]
            behind = at >= subjects.length
            along = (at >= 0) & (behind | (expected == character[:, None]))
            along &= at < subjects.length + LONGEST_ENDING
            ended = there & behind & (at >= 0)
            after = jnp.where(letter[:, None], jnp.where(along, at + 1, -1), 0)
            ended &= ~(letter | none)[:, None]
            content = (length > 2) & ~self.is_stop[stop_at] & ~number & ~letter & ~none
            new = new + (content & ~ended.any(axis=1))
            keep = lambda following, present: jnp.where(none, present, following)  # noqa: E731
            return (
                jnp.where(none[:, None], at, after),
                found | ended,
                keep(jnp.where(letter, self.stops[stop_at, character], 0), stop_at),
                keep(jnp.where(letter, length + 1, 0), length),
                keep(~letter | (number & digits[character]), number),
                new,
            )

        def read(states: _Words, character: jax.Array) -> _Words:
            for part in self.characters.spelled[character].T:
                states = read_one(states, part, part < 0)
            return states

        zeros = jnp.zeros(len(tokens), jnp.int32)
        at, found = jnp.zeros_like(subjects.length), jnp.zeros_like(there)
        first = (at, found, zeros, zeros, zeros == 0, zeros)
        _, found, *_, new = self.characters.scan(read, first, tokens, mask, start=start, stop=stop)
        return SubjectWords(jnp.sum(found, axis=1), jnp.sum(there, axis=1), new)


_Words = tuple[jax.Array, ...]
