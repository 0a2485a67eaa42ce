"""Which tokens of a completion name what is asked for, which judge, and which answer. Ours."""

from __future__ import annotations

import dataclasses
import re

import jax
import jax.numpy as jnp

from jaxalign.rewards.parts import ANSWER_TAGS, REASONING_TAGS
from jaxalign.text.automaton import compile_pattern, compile_phrases
from jaxalign.text.matcher import NEVER, Reader, Tokenizer

NAMES, JUDGES, ANSWERS = range(3)
_FIRST_SENTENCE = re.escape(REASONING_TAGS[0]) + "[^.!?<]*[.!?]"
_AND_MORE = f"{_FIRST_SENTENCE}[^<]*[a-zA-Z]"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Division:
    r"""Divides completions; a pytree.

        <safety_reasoning>The user asks about X.| That is safe.</safety_reasoning>\n<answer>|…
        NAMES                                   | JUDGES                                   | ANSWERS

    A sentence ends at the first full stop, question or exclamation mark, that of "3.5" too. A
    reasoning of one sentence judges with all of it. Without the answer's tag all is answer, as
    `split` has it.
    """

    reader: Reader

    @classmethod
    def build(cls, tokenizer: Tokenizer) -> Division:
        """Of a tokenizer's vocabulary; raises what `token_bytes` raises."""
        patterns = map(compile_pattern, (_FIRST_SENTENCE, _AND_MORE))
        return cls(Reader.build([*patterns, compile_phrases([ANSWER_TAGS[0]])], tokenizer))

    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """The part of each token, `[B, T]` int32, of tokens and a mask of this shape.

        A token that ends the first sentence and goes on judges.
        """
        reading = self.reader.read(tokens, mask)
        named, judged, answered = reading.first.T[:, :, None]
        named = jnp.where((judged < answered) & (judged != NEVER), named, 0)
        answered = jnp.where(answered == NEVER, 0, answered)
        before = jnp.where(reading.end <= named, NAMES, JUDGES)
        return jnp.where(reading.begin >= answered, ANSWERS, before)
