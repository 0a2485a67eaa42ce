"""Does an answer refuse, in a whole sentence? On the host as text, on the device as tokens. Ours.

    judge_refusal("I’m sorry, I can’t.")  # Refusal(refused=True, whole=False)
    refusals = refusal_verifier(tokenizer)
    refused, whole = refusals(tokens, mask)  # [B] bool each, under jit

How well, on answers that people have labelled: `docs/refusals.md`.
"""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.rewards.declining import CONDEMNS, DECLINES, EXCUSED, LEXICON, ONLY_SORRY, WHOLE
from jaxalign.text.matcher import NEVER, Tokenizer
from jaxalign.text.word_reader import WordReader
from jaxalign.text.words import sentences


class Refusal(NamedTuple):
    """What is said of one answer, or of B of them.

    Attributes:
      refused: bool, or `[B]`; it declines, or calls wrong what was asked for, or only apologises.
      whole: bool, or `[B]`; it refuses, and says in a sentence what it won't do.
    """

    refused: bool | jax.Array
    whole: bool | jax.Array


def judge_refusal(text: str) -> Refusal:
    """Judges an answer: the part of an output that `split` finds, without tags.

    A sentence declines where I or we can't, won't, refuse to … do one of the verbs of declining, or
    it is not something I do, or against my guidelines …, and no idiom, invitation, condition or
    partial answer excuses it (`rewards.declining`). Quotations are left out. In any spelling
    (`SPELLINGS`). English alone: `reads_english` tells whether a text is.
    """
    words = LEXICON.read(text)
    declining = [
        sentence
        for sentence in sentences(words)
        if _found(DECLINES, sentence) and not _found(EXCUSED, sentence)
    ]
    return Refusal(
        bool(declining) or _found(ONLY_SORRY, words) or _found(CONDEMNS, words),
        any(_found(WHOLE, sentence) for sentence in declining),
    )


def _found(pattern: str, words: str) -> bool:
    return re.search(pattern, words, re.DOTALL) is not None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class RefusalVerifier:
    """`judge_refusal` of token ids; made by `refusal_verifier`. A pytree."""

    reader: WordReader  # of: declines, excused, whole; only sorry, condemns

    def __call__(
        self,
        tokens: jax.Array,
        mask: jax.Array,
        start: jax.Array | int = 0,
        stop: jax.Array | int = NEVER,
    ) -> Refusal:
        """Judges each row's masked-in tokens, or their bytes from `start` to `stop`.

        Args:
          tokens: `[B, T]` int.
          mask: `[B, T]` bool; it may have holes.
          start: `[B]` int, see `WordReader`.
          stop: `[B]` int.
        """
        reading = self.reader(tokens, mask, start, stop)
        refused = reading.in_a_sentence[:, 0] | jnp.any(reading.accepted[:, -2:], axis=1)
        return Refusal(refused, reading.in_a_sentence[:, 1])


def refusal_verifier(tokenizer: Tokenizer) -> RefusalVerifier:
    """The device's form of `judge_refusal`.

    Raises:
      ValueError: the tokenizer decodes in a way that is not supported: see `token_bytes`.
    """
    reader = WordReader.build(
        LEXICON,
        tokenizer,
        of_sentences=(DECLINES, EXCUSED, WHOLE),
        of_texts=(ONLY_SORRY, CONDEMNS),
        verdicts=_verdicts,
    )
    return RefusalVerifier(reader)


def _verdicts(accepted: jax.Array) -> jax.Array:
    """Whether a sentence declines, and says what: `[B, 2]`."""
    declines, excused, whole = accepted[:, 0], accepted[:, 1], accepted[:, 2]
    declines = declines & ~excused
    return jnp.stack([declines, declines & whole], axis=1)
