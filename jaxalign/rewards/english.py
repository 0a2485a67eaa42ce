"""Whether a text is English, which is what the judges of words can read. Ours."""

import re

from jaxalign.text.spellings import SPELLINGS

FUNCTION_WORDS = frozenset(
    """the of to and that it for with this but not are be by at from have you your i'm i'll can
    can't cannot could would should won't don't does it's is if they their there which what
    when how we our she his her has had were been than then because about into please sorry
    here my i such anyone never must while who where them its these those use like any some
    help""".split()
)
"""Words that are common in English, and in no other language: not "was", "will", "so", "on"."""

LEAST_SHARE = 0.15
LEAST_WORDS = 4


def reads_english(text: str) -> bool:
    """Whether a judge of English can read a text; where not, what it says counts as unknown.

    It can where at least 15 % of the words are `FUNCTION_WORDS`. A text of fewer than four words
    has too few to tell: it can be read if it is written in ASCII.
    """
    plain = text.translate(SPELLINGS)
    words = re.findall(r"[^\W\d_]+(?:'[^\W\d_]+)*", plain)
    share = sum(word in FUNCTION_WORDS for word in words) / max(1, len(words))
    if len(words) < LEAST_WORDS:
        return share > 0 or plain.isascii()
    return share >= LEAST_SHARE
