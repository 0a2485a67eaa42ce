"""A reasoning's verdict in words: harmful or harmless. On the host and on the device. Ours."""

from __future__ import annotations

import dataclasses
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.text.matcher import NEVER, Tokenizer
from jaxalign.text.word_reader import WordReader
from jaxalign.text.words import Lexicon, sentences

_BAD = """(harmful|dangerous|unsafe|illegal|unethical|inappropriate|hazardous|malicious|abusive|
    criminal|immoral|unlawful|wrong|hateful|violent|cruel|threatening|fraudulent|risky|offensive|
    problematic|unacceptable|irresponsible|deadly|exploitative|discriminatory|disallowed|
    against the (law|rules))"""
_GOOD = """(harmless|safe|fine|okay|ok|benign|innocent|legal|ethical|appropriate|acceptable|
    innocuous|lawful|legitimate|allowed|unproblematic|permissible|reasonable)"""
_DEGREE = """(a|an|the|very|really|quite|truly|clearly|perfectly|entirely|completely|totally|highly|
    extremely|potentially|inherently|generally|usually|probably|both|all|just|also|simply|in any way
    |at all|so|too|particularly|morally|legally|any|seriously|plainly|obviously|therefore)*"""
_IS = """(is|are|was|were|be|been|being|seem|seems|look|looks|appear|appears|sound|sounds|
    considered|deemed|judged|called|seen as|regarded as|verdict|request|to be)"""
_NO = "(not|never|hardly|neither|nor|no|without|nothing)"
VERDICT_WORDS = tuple(
    word
    for word in re.findall(r"[a-z]+", _NO + _BAD + _GOOD)
    if word not in ("against", "the", "law", "rules")
)
"""Words that give a verdict, or take it back, in small letters."""
_AFFIRMED = """(^|[^ not never hardly neither nor no without nothing is are was were be been being
    seem seems look looks appear appears sound sounds considered deemed judged called seen as
    regarded verdict request to a an the very really quite truly clearly perfectly entirely
    completely totally highly extremely potentially generally probably just also simply so too all
    any]) (the|this|a|so|just|also|clearly|probably)*"""
"""What may stand before "is harmful": no negation."""
_DENIES = """(nothing|nobody|(not|never|hardly) (think|believe|see|find|consider|say|mean)|
    (not|hardly) anything) .*"""

VERDICTS = Lexicon()
HARMFUL = VERDICTS.pattern(f"""
    {_AFFIRMED} ({_IS} {_DEGREE})+ {_BAD} | ^ {_DEGREE} {_BAD} (request)? $
    | (not|never|hardly|nor|neither) {_DEGREE} {_GOOD}
    | (could|would|can|might|may|will|that|and) ({_DEGREE} (harm|hurt)|
      (cause|causes|do|does|lead to|bring) {_DEGREE} (great|real|serious|physical)* (harm|danger))
    | (causes|does|is|are|poses) {_DEGREE} (great|real|serious|physical)* (harm|danger|threat|crime)
    | (breaks|break|violates|violate) the (law|rules)
""")
"""A sentence calls something harmful."""
HARMLESS = VERDICTS.pattern(f"""
    {_AFFIRMED} ({_IS} {_DEGREE})+ {_GOOD} | ^ {_DEGREE} {_GOOD} (request)? $
    | {_NO} ({_IS}|{_DEGREE[:-1]})* {_BAD}
    | (no|not|without|nothing) (a|any|real|serious|obvious)* (harm|danger|risk|threat|crime|problem)
    | (will|would|can|could|do|does) not {_DEGREE} (harm|hurt|(cause|do|pose) {_DEGREE} (harm|risk))
""")
"""A sentence calls something harmless."""
DENIES_HARM = VERDICTS.pattern(f"{_DENIES} {_BAD}")
DENIES_SAFETY = VERDICTS.pattern(f"{_DENIES} {_GOOD}")
"""A sentence says of nothing, or does not think of something, that it is so."""
UNDECIDED = VERDICTS.pattern(
    "! | (if|whether|unless) (it|this|that|they|the .|the request) (is|are|be|was|would|could|can)"
)
"""A sentence asks, or supposes."""


class ReasonedVerdict(NamedTuple):
    """What a reasoning calls the request; neither where it says nothing, both where it wavers.

    Attributes:
      harmful: bool, or `[B]`.
      harmless: bool, or `[B]`.
    """

    harmful: bool | jax.Array
    harmless: bool | jax.Array


def verdict_in(reasoning: str) -> ReasonedVerdict:
    """The verdict in a reasoning: in words that models use, and with negation read right.

    "That is dangerous", "isn't safe" and "is against the law" are harmful; "is fine", "is not
    harmful", "nothing illegal about it" and "no harm" are harmless. A question gives no verdict.
    """
    verdicts = [
        _decided(*(np.bool_(re.search(pattern, sentence) is not None) for pattern in _PATTERNS))
        for sentence in sentences(VERDICTS.read(reasoning))
    ]
    return ReasonedVerdict(*(bool(any(said)) for said in zip(*verdicts, strict=True)))


_PATTERNS = (HARMFUL, HARMLESS, DENIES_HARM, DENIES_SAFETY, UNDECIDED)


def _decided(harmful: Any, harmless: Any, no_harm: Any, no_safety: Any, open_: Any) -> Any:
    """Of one sentence, or of B: what is denied is not said, but its opposite; bools or arrays."""
    bad, good = (harmful & ~no_harm) | no_safety, (harmless & ~no_safety) | no_harm
    return bad & ~open_, good & ~open_


def _verdicts(accepted: jax.Array) -> jax.Array:
    return jnp.stack(_decided(*accepted.T), axis=1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class VerdictReader:
    """`verdict_in` of token ids; made by `verdict_reader`. A pytree."""

    reader: WordReader

    def __call__(
        self,
        tokens: jax.Array,
        mask: jax.Array,
        start: jax.Array | int = 0,
        stop: jax.Array | int = NEVER,
    ) -> ReasonedVerdict:
        """Reads each row's masked-in tokens, or their bytes from `start` to `stop`.

        Args:
          tokens: `[B, T]` int.
          mask: `[B, T]` bool, such as that of `Span.of(tokenizer, REASONING_TAGS)`.
          start: `[B]` int, see `WordReader`.
          stop: `[B]` int.
        """
        found = self.reader(tokens, mask, start, stop).in_a_sentence
        return ReasonedVerdict(found[:, 0], found[:, 1])


def verdict_reader(tokenizer: Tokenizer) -> VerdictReader:
    """The device's form of `verdict_in`; raises what `token_bytes` raises."""
    reader = WordReader.build(VERDICTS, tokenizer, of_sentences=_PATTERNS, verdicts=_verdicts)
    return VerdictReader(reader)
