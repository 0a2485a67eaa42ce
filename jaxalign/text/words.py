"""Text as a string with one character a word, for grammars of English. Ours.

A regular expression over such strings reads words where one over text reads letters: "I CAN’T help
with that." and "I cannot, just cannot help with that" have few words and no spelling.

    lexicon = Lexicon()
    declines = lexicon.pattern("i can not (help|assist)")
    re.search(declines, lexicon.read("I can’t help with that."))
"""

import dataclasses
import re

from jaxalign.text.spellings import SPELLINGS

STOP, ASKED, QUOTED, UNKNOWN = ".", "?", '"', "#"
"""What stands for the end of a sentence, a question mark in front of it, a quotation, and a word
that no pattern has."""

_FIRST = 0xE000  # private characters stand for words
_WORD = re.compile(r"""[a-z0-9][a-z0-9']*|[.!?"]|(?<=\n)\n""")
_QUOTATION = re.compile(
    r"""
    "[^"\n]*"?                                        # to the next mark, or the end of the line
    | (?<![a-z0-9'])'(?:[^'\n]|'(?=[a-z0-9]))*'?      # an apostrophe inside a word ends nothing
    """,
    re.VERBOSE,
)

SHORT_FORMS = {
    "cannot": "can not",
    "can't": "can not",
    "cant": "can not",
    "won't": "will not",
    "wont": "will not",
    "shan't": "shall not",
    "ain't": "am not",
    "dont": "do not",
    "gonna": "going to",
    "wanna": "want to",
    "im": "i am",
    "let's": "let us",
    **{
        f"{word}n't": f"{word} not"
        for word in (
            "do does did is are was were would should could must might need has have had".split()
        )
    },
    **{
        f"{who}'{short}": f"{who} {full}"
        for who in "i we you he she it they that there here this what who".split()
        for short, full in (
            ("m", "am"),
            ("re", "are"),
            ("s", "is"),
            ("ll", "will"),
            ("d", "would"),
            ("ve", "have"),
        )
    },
}
"""Short forms and what they are read as."""


def unquoted(text: str) -> str:
    """Plain text without what stands in quotation marks; one `"` is left of each quotation.

    A quotation ends with its line. A `'` opens one where it is not behind a letter, a digit or
    another, and closes it where it is not before a letter or a digit.
    """
    return _QUOTATION.sub('"', text)


@dataclasses.dataclass(frozen=True)
class Lexicon:
    """The words that patterns know, each with its character.

    Attributes:
      character_of: grows as patterns are made.
    """

    character_of: dict[str, str] = dataclasses.field(default_factory=dict)

    def pattern(self, words: str) -> str:
        """The regular expression over strings of words.

        Args:
          words: an expression in which each run of letters, digits and apostrophes is a word, in
            its full form, and white space means nothing. `.` is any word, `_` the end of a
            sentence, `!` a question mark in front of it, `~` a quotation. Groups, `|`, `?`, `*`,
            `+`, `[…]` and `[^…]` of words, `^` and `$` are as in `re`.
        """
        spelled = re.sub(r"[a-z0-9']+", lambda found: self._character(found[0]), words)
        spelled = re.sub(r"\s+", "", spelled)
        special = {
            "(": "(?:",
            ".": f"[^{STOP}]",
            "_": re.escape(STOP),
            "~": QUOTED,
            "!": re.escape(ASKED),
            "^": r"\A",
            "$": r"\Z",
        }
        spelled = spelled.replace("[^", "\0")
        return "".join(special.get(c, c) for c in spelled).replace("\0", f"[^{STOP}")

    def _character(self, word: str) -> str:
        return self.character_of.setdefault(word, chr(_FIRST + len(self.character_of)))

    def characters(self, word: str) -> str:
        """What stands for a word of a text, several characters for a short form."""
        full = SHORT_FORMS.get(word, word)
        return "".join(self.character_of.get(part, UNKNOWN) for part in full.split(" "))

    def known_words(self) -> set[str]:
        """The words of texts that `characters` does not take for unknown, and some it does."""
        return {*self.character_of, *SHORT_FORMS}

    def read(self, text: str) -> str:
        """The string of a text's words; blank lines end sentences, quotations are left out."""
        plain = unquoted(text.translate(SPELLINGS))
        return "".join(map(self._token, _WORD.findall(plain)))

    def _token(self, token: str) -> str:
        if token == QUOTED:
            return QUOTED
        if token == "?":
            return ASKED + STOP
        return self.characters(token) if token[0].isalnum() else STOP


def sentences(words: str) -> list[str]:
    """The sentences of a string of words."""
    return words.split(STOP)
