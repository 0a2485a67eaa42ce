"""The two verifiers of AlphaAlign (arXiv 2507.14987), on the device: format and refusal."""

from __future__ import annotations

import dataclasses
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxalign.rewards.parts import ANSWER_TAGS, CALL_TAGS, REASONING_TAGS, split
from jaxalign.rewards.refusals import REFUSAL_PATTERN
from jaxalign.text.automaton import Automaton, compile_pattern, compile_phrases
from jaxalign.text.matcher import NEVER, Reader, Reading, Tokenizer

FORMAT_PATTERN = ".*".join(REASONING_TAGS + ANSWER_TAGS)
"""AlphaAlign's format, searched for anywhere in the output; the dot matches a newline."""

_SPANS = (r"\s*[^<\s][^<]*".join(tags) for tags in (REASONING_TAGS, ANSWER_TAGS))
STRICT_FORMAT_PATTERN = r"\s*".join((r"\A", *_SPANS, r"\Z"))
"""Ours: the whole output is one reasoning span and one answer span, neither of them blank or with
a `<` in it, and only whitespace around them. The loose format rewards text outside the tags."""

CONSULTING_FORMAT_PATTERN = STRICT_FORMAT_PATTERN.replace(
    r"\A\s*", rf"\A\s*(?:{'[^<]*'.join(CALL_TAGS)}\s*)*", 1
)
"""Ours, for ASCL: any number of consultations, then the strict format. It is searched for in what
the model generated; a tool's answers are left out."""


def verdict_of(text: str, pattern: str = STRICT_FORMAT_PATTERN) -> tuple[bool, bool]:
    """On the host, what `Verdict` has on the device: whether it is well-formed, and refuses."""
    formed = re.search(pattern, text, re.DOTALL) is not None
    return formed, re.search(REFUSAL_PATTERN, split(text).answer) is not None


class Verdict(NamedTuple):
    """What the verifiers say about B completions of T tokens.

    Attributes:
      well_formed: `[B]` bool, V_f of the whole output.
      refused: `[B]` bool, V_r of the answer.
      answer: `[B, T]` bool, the tokens with all their bytes inside `split`'s answer; one that also
        holds a byte of a tag is outside, and so is one without bytes (masked out, special).
    """

    well_formed: jax.Array
    refused: jax.Array
    answer: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Verifiers:
    """Both verifiers in one pass over the tokens; made by `safety_verifiers`. A pytree."""

    reader: Reader  # of: format, refusal, opening tag, opening tag … closing tag
    closing_bytes: int = dataclasses.field(metadata={"static": True})

    def __call__(self, tokens: jax.Array, mask: jax.Array) -> Verdict:
        """Judges each row's masked-in tokens, under jit or not.

        Args:
          tokens: `[B, T]` int.
          mask: `[B, T]` bool; it may have holes.
        """
        reading = self.reader.read(tokens, mask)
        return Verdict(
            well_formed=reading.accepted[:, 0],
            refused=reading.accepted[:, 1],
            answer=_inside(reading, self.closing_bytes),
        )


def safety_verifiers(
    tokenizer: Tokenizer,
    *,
    pattern: str = STRICT_FORMAT_PATTERN,
    refusal: str = REFUSAL_PATTERN,
) -> Verifiers:
    """AlphaAlign's format verifier V_f and refusal verifier V_r, and the mask of the answer.

    V_f searches the output for one pattern; V_r searches `split`'s answer for another. Both equal
    `re.search` with DOTALL on the decoded text; `compile_pattern` has what is supported.
    Source: AlphaAlign (arXiv 2507.14987).

    Args:
      tokenizer: a fast Hugging Face tokenizer: see `token_bytes`.
      pattern: `STRICT_FORMAT_PATTERN`, which is ours; `FORMAT_PATTERN`, the paper's, which is
        loose; `CONSULTING_FORMAT_PATTERN`; or one of your own.
      refusal: `REFUSAL_PATTERN`, the paper's phrases; `FIRST_SENTENCE_REFUSAL_PATTERN`, which is
        ours and measured in `docs/refusals.md`; or one of your own, as `wording_pattern` makes.

    Raises:
      ValueError: the tokenizer decodes in a way that is not supported, or a pattern does not
        compile.
    """
    automata = [
        compile_pattern(pattern),
        compile_pattern(refusal).within(*ANSWER_TAGS),
        *_span_automata(ANSWER_TAGS),
    ]
    return Verifiers(Reader.build(automata, tokenizer), len(ANSWER_TAGS[1]))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Span:
    """The tokens between two tags, as `Verdict.answer` has those of the answer. A pytree.

    Without the opening tag all tokens are inside, without the closing one all that follow; so in
    malformed text it is not `split`'s reasoning, which is before the answer.
    """

    reader: Reader  # of: opening tag, opening tag … closing tag
    closing_bytes: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def of(cls, tokenizer: Tokenizer, tags: tuple[str, str]) -> Span:
        """Of two tags, such as `REASONING_TAGS`; raises what `token_bytes` raises."""
        return cls(Reader.build(_span_automata(tags), tokenizer), len(tags[1].encode()))

    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """`[B, T]` bool of tokens and a mask of this shape, under jit or not."""
        return _inside(self.reader.read(tokens, mask), self.closing_bytes)

    def bounds(self, tokens: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The bytes at which each row's span begins, and before which it ends: `[B]` each."""
        start, stop = _bounds(self.reader.read(tokens, mask), self.closing_bytes)
        return start[:, 0], stop[:, 0]


def _span_automata(tags: tuple[str, str]) -> list[Automaton]:
    """They first accept where the opening tag ends, and where the closing one does."""
    opening, closing = tags
    return [
        compile_phrases([opening]),
        compile_pattern(f"{re.escape(opening)}.*{re.escape(closing)}"),
    ]


def _bounds(reading: Reading, closing_bytes: int) -> tuple[jax.Array, jax.Array]:
    opened, closed = reading.first[:, -2:-1], reading.first[:, -1:]
    start = jnp.where(opened == NEVER, 0, opened)
    return start, jnp.where(closed == NEVER, NEVER, closed - closing_bytes)


def _inside(reading: Reading, closing_bytes: int) -> jax.Array:
    """`[B, T]` bool, the tokens in the span whose automata are the last two of the reading."""
    start, stop = _bounds(reading, closing_bytes)
    has_bytes = reading.end > reading.begin
    return has_bytes & (reading.begin >= start) & (reading.end <= stop)
