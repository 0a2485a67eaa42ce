"""How many answers begin alike: a template ("Use a …") that nothing else here sees. Ours."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxalign.text.matcher import Tokenizer, token_bytes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class OpeningReader:
    """Reads with what a text begins: its first token with a letter or a digit. A pytree.

    Of a word of several tokens that is the first of them.

    Attributes:
      number: `[V]` int32, equal for tokens that differ only in case and in the space around them;
        0 for a token without letters and digits.
    """

    number: jax.Array

    @classmethod
    def build(cls, tokenizer: Tokenizer) -> OpeningReader:
        """Of a tokenizer's vocabulary; raises what `token_bytes` raises."""
        numbers: dict[str, int] = {}
        read = []
        for row, length in zip(*token_bytes(tokenizer), strict=True):
            text = bytes(row[:length]).decode(errors="replace").strip().lower()
            says = any(letter.isalnum() for letter in text)
            read.append(numbers.setdefault(text, len(numbers) + 1) if says else 0)
        return cls(jnp.asarray(read, jnp.int32))

    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """`[B]` int32 numbers of what each row's masked-in tokens begin with; 0 for nothing."""
        numbers = jnp.where(mask, self.number[tokens], 0)
        first = jnp.argmax(numbers > 0, axis=1)[:, None]
        return jnp.take_along_axis(numbers, first, axis=1)[:, 0]


def begin_alike(opening: jax.Array, where: jax.Array, samples_per_prompt: int) -> jax.Array:
    """The share of the answers to other prompts that begin as an answer does.

    Args:
      opening: `[B]` int, as an `OpeningReader` has it.
      where: `[B]` bool, which rows are answers to look at.
      samples_per_prompt: G, the rows of a prompt, which follow each other.

    Returns:
      `[B]` float32 from 0 to 1; 0 where there are no others, and in rows that are no answers.
    """
    prompt = jnp.arange(len(opening)) // samples_per_prompt
    others = where & (prompt[:, None] != prompt)
    alike = others & (opening[:, None] == opening)
    return where * (alike.sum(axis=1) / jnp.maximum(others.sum(axis=1), 1))
