"""Words that end a row of the sampling loop, and which of its tokens spell them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxalign.host.errors import InputError
from jaxalign.host.user_functions import in_short
from jaxalign.text.automaton import compile_pattern
from jaxalign.text.matcher import NEVER, Reader, Tokenizer, Vocabulary


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Endings:
    """K texts that end a row, made by `build`. A pytree.

    They are looked for in what a stretch of the row's own tokens decodes to; a tool's answer ends
    a stretch.

    Attributes:
      reader: an automaton for each text.
      lengths: `[K]` int32, bytes of each.
    """

    reader: Reader
    lengths: jax.Array

    @classmethod
    def build(cls, texts: Sequence[str], tokenizer: Tokenizer) -> Endings | None:
        """Of texts that are not empty; None where there are none.

        Raises:
          InputError: the tokenizer's tokens can't be read, or a text is too long or no Unicode.
        """
        if not texts:
            return None
        try:
            vocabulary = Vocabulary.build(tokenizer)
            # Decoding may drop a first space, `advance` reads it: so it must not begin a match.
            first = {" ": "."} if vocabulary.strips_space else {}
            patterns = [first.get(text[0], "") + re.escape(text) for text in texts]
            whole = dataclasses.replace(vocabulary, strips_space=False)
            reader = Reader.of([compile_pattern(pattern) for pattern in patterns], whole)
            lengths = [len(text.encode()) for text in texts]
        except ValueError as error:
            raise InputError(
                f"answers can't end in the words {in_short(texts[0])}: {error}; leave out a stop "
                "that is no token's name, or take a chat template that ends turns in a token"
            ) from error
        return cls(reader, jnp.array(lengths, jnp.int32))

    def advance(
        self, states: jax.Array, tokens: jax.Array, drawn: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """`Reader.advance` of the drawn tokens `[B]`, and the rows that end, `[B]` bool.

        Rows that get a tool's tokens begin anew.
        """
        states = self.reader.advance(states, tokens, drawn)
        states = jnp.where(drawn[:, None, None], states, self.reader.start(len(tokens)))
        return states, jnp.any(self.reader.accepted(states), axis=1)

    def spelled(self, tokens: jax.Array, mask: jax.Array, present: jax.Array) -> jax.Array:
        """`[B, T]` bool, the tokens of a `Rollout` that begin within the text that ended the row.

        One that begins before it and reaches into it is not among them.
        """
        told = present & ~mask
        last = mask & (jnp.cumsum(told[:, ::-1], axis=1)[:, ::-1] == 0)
        reading = self.reader.read(tokens, last)
        begin = jnp.where(reading.first == NEVER, NEVER, reading.first - self.lengths)
        return last & (reading.begin >= jnp.min(begin, axis=1, keepdims=True))
