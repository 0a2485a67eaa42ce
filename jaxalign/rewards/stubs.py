"""Answers that say nothing: stubs and courtesies on host and device, echoes on the host. Ours."""

from __future__ import annotations

import dataclasses
import re

import jax

from jaxalign.text.matcher import NEVER, Tokenizer
from jaxalign.text.spellings import SPELLINGS
from jaxalign.text.word_reader import WordReader
from jaxalign.text.words import Lexicon, sentences

LEAST_WORDS = 6
"""An answer of fewer words, short forms written out, is a stub."""

ECHO_WORDS = 4
"""An answer is an echo where each of its runs of so many words is in the reasoning."""

_HELPING = """((help|assist|helping|assisting|be of (help|assistance|service)|support|answer|guide)
    (you|out)? ((with|in|on) (that|this|it|your|the|any|anything|everything|whatever|all))?
    (question|questions|request|problem|task|query|you need|needs|you like|you want)?
    (today|further|now|right away|as best as i can|in any way)?)"""
_COURTESY = f"""(
    (i|we) (am|are|would be|will be)? (so|very|more than|always|really|also|truly)*
      (happy|glad|pleased|delighted|here|ready|here for you|willing|able|love|honored|excited|
      would love|like|going)
      (to|for)? {_HELPING}?
    | (i|we) (can|will|would|could|may|do)? (certainly|definitely|gladly|surely|also|try to|
      do)* {_HELPING}
    | (i am|we are|so|very|really|truly)* (sorry|afraid) (to hear (that|this|it))?
      | i am sorry (about|for) (that|this)
    | (i|we) (completely|fully|totally|also)* (understand|see|get|hear|appreciate)
      ((that|your|you|this|it|how|the) (question|concern|concerns|request|point|feel)?)?
    | sure|certainly|of course|absolutely|yes|no problem|okay|ok|great|alright|well|hello|hi|hey|
      hello there|hi there|thanks|thank you|thank you (very|so)? much|you are welcome|my pleasure|
      no worries|all right|gladly|indeed|right
    | (thanks|thank you) for (asking|your (question|request|message|interest|patience)|sharing|
      reaching out|letting me know)
    | (that|this|it) is (a|an|such a)? (very|really)? (good|great|interesting|important|nice|
      fair|excellent|wonderful) (question|request|point|idea|topic)?
    | (how|what) (can|may|could|do|would) (i|we|you) (help|assist|do|like|need|want|know)
      (you|for you|with|me to|to|to know|help you with)* (today|do)?
    | (please)? (feel free to|do not hesitate to)? (let me know|tell me|ask|ask me|reach out|
      contact me)
      ((if|how|what|when|where|about) .* $)?
    | (i|we) hope (that|this|it|you)? (helps|is helpful|was helpful|are well|find it useful)?
    | (here is|here are) (the|your|my|an|a|some)? (answer|response|list|help|information)?
    | (is there)? (anything|something) (else)? (i can|you would like|you need) .* $
    | have a (nice|good|great) day
    | (it is|that is|it would be)? (a|my|our) pleasure (to (help|assist|be here|answer) (you)?)?
    | the user (asks|asked|is asking|wants|wanted|requests|requested|is requesting) .* $
    | (so)? (that|this|it) is (not|very|quite|completely|perfectly|a)*
      (harmless|harmful|safe|unsafe|dangerous|fine|illegal|legal|bad|good|damaging) (request)?
    | (i am|we are) not (sure|certain) ((what|how|if|why|about) .* $)?
    | (i am|we are) not (a|an) . .? .? $
    | (i|we) do not know ((what|how|if|why|about) .* $)?
)"""

STUBS = Lexicon()
_OTHER = "(_|!|~)*"
SHORT = STUBS.pattern(f"^ {_OTHER} {f'([^ ! ~] {_OTHER})?' * (LEAST_WORDS - 1)} $")
"""A text of few words."""
_ONE = f"(and|but|so|please|then|today)? {_COURTESY}"
COURTEOUS = STUBS.pattern(f"^ ({_ONE} ({_ONE} ({_ONE} ({_ONE})?)?)?)? !? $")
"""A sentence without words, or of four courtesies at most, or of what the reasoning says."""


def is_stub(answer: str) -> bool:
    """Whether an answer has fewer than `LEAST_WORDS` words, or is nothing but courtesies.

    "I'm happy to help you with that.", "I'm afraid, I'm afraid." and "The user asks about tea. That
    is harmless." are; "It is 42." is, too: where short answers are right, this is no judge of them.
    """
    words = STUBS.read(answer)
    return _found(SHORT, words) or all(_found(COURTEOUS, one) for one in sentences(words))


def _found(pattern: str, words: str) -> bool:
    return re.search(pattern, words, re.DOTALL) is not None


def echoes(answer: str, reasoning: str) -> bool:
    """Whether an answer only repeats the reasoning: on the host, for reports.

    It does if each run of `ECHO_WORDS` of its words, or the whole of a shorter one, is there too.
    An answer without words is no echo.
    """
    said, reasoned = (
        re.findall(r"[a-z0-9']+", text.translate(SPELLINGS)) for text in (answer, reasoning)
    )
    size = min(ECHO_WORDS, len(said))
    there = _runs(reasoned, size)
    return bool(said) and _runs(said, size) <= there


def _runs(words: list[str], size: int) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class StubReader:
    """`is_stub` of token ids; made by `stub_reader`. A pytree."""

    reader: WordReader

    def __call__(
        self,
        tokens: jax.Array,
        mask: jax.Array,
        start: jax.Array | int = 0,
        stop: jax.Array | int = NEVER,
    ) -> jax.Array:
        """`[B]` bool, of each row's masked-in tokens, or their bytes from `start` to `stop`.

        Args:
          tokens: `[B, T]` int.
          mask: `[B, T]` bool, such as that of the answer.
          start: `[B]` int, see `WordReader`.
          stop: `[B]` int.
        """
        reading = self.reader(tokens, mask, start, stop)
        return reading.accepted[:, 1] | ~reading.in_a_sentence[:, 0]


def stub_reader(tokenizer: Tokenizer) -> StubReader:
    """The device's form of `is_stub`; raises what `token_bytes` raises."""
    reader = WordReader.build(
        STUBS, tokenizer, of_sentences=(COURTEOUS,), of_texts=(SHORT,), verdicts=_says_something
    )
    return StubReader(reader)


def _says_something(accepted: jax.Array) -> jax.Array:
    return ~accepted[:, :1]
