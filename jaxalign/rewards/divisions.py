"""Which tokens of a completion name what is asked for, judge, decide, and answer. Ours."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp

from jaxalign.rewards.parts import ANSWER_TAGS, REASONING_TAGS
from jaxalign.rewards.verdicts import VERDICT_WORDS
from jaxalign.text.automaton import compile_pattern, compile_phrases
from jaxalign.text.matcher import NEVER, Reader, Tokenizer

NAMES, JUDGES, DECIDES, ANSWERS = range(4)
_FIRST_SENTENCE = re.escape(REASONING_TAGS[0]) + "[^.!?<]*[.!?]"
_AND_MORE = f"{_FIRST_SENTENCE}[^<]*[a-zA-Z]"
_WORDS = "|".join(f"{word}|{word.capitalize()}|{word.upper()}" for word in VERDICT_WORDS)
_A_VERDICT = f"{_FIRST_SENTENCE}[^<]*[^a-zA-Z<]({_WORDS})[^a-zA-Z]"
_NOT = "n't"
_IS_NOT = f"{_FIRST_SENTENCE}[^<]*[^a-zA-Z<](is|are|was|were){_NOT}[^a-zA-Z]"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Division:
    r"""Divides completions; a pytree.

        <safety_reasoning>The user asks about X.| That is| not    | safe.</safety_reasoning>…|…
        NAMES                                   | JUDGES | DECIDES| JUDGES                | ANSWERS

    A sentence ends at the first full stop, question or exclamation mark, that of "3.5" too. A
    reasoning of one sentence judges with all of it. One token decides: the one in which, behind the
    first sentence, the first word of `VERDICT_WORDS` ends, or the "isn" of "isn't", for then the
    verdict is out, or its negation; there may be none. Of a word of several tokens it is the last,
    which is seldom needed: SmolLM2 writes all of these words but four with one. Without the
    answer's tag all is answer, as `split` has it.
    """

    reader: Reader

    @classmethod
    def build(cls, tokenizer: Tokenizer) -> Division:
        """Of a tokenizer's vocabulary; raises what `token_bytes` raises."""
        patterns = map(compile_pattern, (_FIRST_SENTENCE, _AND_MORE, _A_VERDICT, _IS_NOT))
        return cls(Reader.build([*patterns, compile_phrases([ANSWER_TAGS[0]])], tokenizer))

    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """The part of each token, `[B, T]` int32, of tokens and a mask of this shape.

        A token that ends the first sentence and goes on judges.
        """
        reading = self.reader.read(tokens, mask)
        named, judged, decided, is_not, answered = reading.first.T[:, :, None]
        # The byte behind a word only says that it has ended; of "n't" the first letter decides.
        decided = jnp.minimum(decided - 1, is_not - len(_NOT))
        named = jnp.where((judged < answered) & (judged != NEVER), named, 0)
        answered = jnp.where(answered == NEVER, 0, answered)
        before = jnp.where(reading.end <= named, NAMES, JUDGES)
        before = jnp.where((reading.begin < decided) & (decided <= reading.end), DECIDES, before)
        return jnp.where(reading.begin >= answered, ANSWERS, before)
