"""Patterns over plain English find it as people and models spell it; words on host and device."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from automata import matches
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxalign.rewards import SPELLINGS, compile_pattern
from jaxalign.text.word_reader import WordReader
from jaxalign.text.words import Lexicon, sentences, unquoted

PIECES = list("?aict'\"`*_. \n!") + (
    "’ ‘ ʼ ＇ ´ “ ” « … – é Ａ ＣＡＮ ﬁ ﬃ İ ſ K ß 🙂 𝐈 I can't can cannot help that ..".split()
    + [
        "\u00ad",
        "\u200b",
        "\ufeff",
        "\u00a0",
        "\u3000",
        "\u2028",
        "\r\n",
        "\n\n",
        "\ufffd",
        "\u0301",
    ]
)
texts = st.lists(st.sampled_from(PIECES) | st.characters(codec="utf-8"), max_size=12).map("".join)
byte_texts = st.lists(
    st.sampled_from(PIECES).map(str.encode) | st.binary(min_size=1, max_size=3), max_size=12
).map(b"".join)


@pytest.mark.parametrize(
    "spelling",
    [
        "I CAN’T help",
        "i can‘t  help",
        "Ican't help",
        "**I** can`t _help_",
        "Ｉ ｃａｎ＇ｔ ｈｅｌｐ",
        "𝐈 can´t help",
        "I\u00a0c\u00adan\u200bʼt\u3000help\ufeff",
        "Í cán't hēlp",
    ],
)
def test_spellings_of_a_phrase(spelling):
    found = matches(compile_pattern(r"i ?can't +help", spellings=SPELLINGS), spelling)
    assert found and not matches(compile_pattern(r"i ?can't +help"), spelling)


@pytest.mark.parametrize("regex", [r"can't", r"\Ai\s", r"[^a-z']$", r"\A[\w ]*\Z", r"fi.?c|\"\n"])
def test_patterns_equal_re_on_the_translated_text(regex):
    automaton = compile_pattern(regex, spellings=SPELLINGS)

    @settings(deadline=None, max_examples=150)
    @given(texts | byte_texts)
    def check(data):
        text = data if isinstance(data, str) else data.decode(errors="replace")
        found = re.search(regex, text.translate(SPELLINGS), re.DOTALL) is not None
        assert matches(automaton, data) == found

    check()


def test_spellings_of_ones_own():
    """One character may stand for several, or for none."""
    automaton = compile_pattern(r"\Astrasse\Z", spellings={ord("ß"): "ss", ord("-"): ""})
    assert matches(automaton, "straße") and matches(automaton, "-stra-ss-e")
    assert not matches(automaton, "strase")


def test_plain_characters_are_read_as_themselves():
    plain = "".join(map(chr, range(32, 127)))
    assert plain.translate(SPELLINGS) == re.sub("[*_]", "", plain).lower().replace("`", "'")
    assert all(point > 31 or chr(point) in "\t\r\x0b\x0c" for point in SPELLINGS)


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("he said 'i can't do that' twice", 'he said " twice'),
        ('a "b\nc" d', 'a "\nc"'),
        ("the users' and dogs' food", "the users' and dogs' food"),
        ("don't say 'no'. 'tis", 'don\'t say ". "'),
        ("'a' 'b", '" "'),
        ('"x', '"'),
    ],
)
def test_quotations_are_left_out(text, left):
    assert unquoted(text) == left


def test_words_by_hand():
    lexicon = Lexicon()
    pattern = lexicon.pattern("i can not (help|assist)* with . _")
    i, can, no = (lexicon.character_of[word] for word in ("i", "can", "not"))
    assert lexicon.read("I CAN’T.\n\nBut, i") == f"{i}{can}{no}..#{i}"
    assert lexicon.read('"I" can, "i" can!') == f'"{can}"{can}.'
    found = [
        re.search(pattern, lexicon.read(text))
        for text in (
            "I can’t help, assist with it!",
            "I cannot with",
            "I can't help with 'it'.",
            "I can not with x y.",
        )
    ]
    assert [x is not None for x in found] == [True, False, True, False]
    assert sentences("a.b") == ["a", "b"]


# ---- on the device

LEXICON = Lexicon()
OF_SENTENCES = [LEXICON.pattern(p) for p in ("can not help", "i .* that $", "^ can ~? | ~")]
OF_TEXTS = [LEXICON.pattern(p) for p in ("^ i _", "not _* $", "help !")]


def verdicts(accepted):
    return jnp.stack([accepted[:, 0] & ~accepted[:, 1], accepted[:, 1] | accepted[:, 2]], axis=1)


def expected(text):
    words = LEXICON.read(text)
    found = [[re.search(p, s) is not None for p in OF_SENTENCES] for s in sentences(words)]
    texts = [re.search(p, words) is not None for p in OF_TEXTS]
    return [any(a and not b for a, b, c in found), any(b or c for a, b, c in found), *texts]


@jax.jit
def read(reader, rows, start, stop):
    reading = reader(rows, rows >= 0, start, stop)
    return jnp.hstack([reading.in_a_sentence, reading.accepted[:, 3:]])


@pytest.fixture(scope="module")
def reader(small_tokenizer):
    return WordReader.build(
        LEXICON, small_tokenizer, of_sentences=OF_SENTENCES, of_texts=OF_TEXTS, verdicts=verdicts
    )


def rows_of(data, names, width=96):
    """Rows of one token a byte, with holes."""
    rows = np.full((len(data), width), -1)
    for row, text in zip(rows, data, strict=True):
        row[np.arange(len(text)) + np.arange(len(text)) // 5] = [names[byte] for byte in text]
    return jnp.array(rows)


@pytest.fixture(scope="module")
def names(small_tokenizer):
    from jaxalign.text.matcher import token_bytes

    table, lengths = token_bytes(small_tokenizer)
    return {int(table[token, 0]): token for token in np.flatnonzero(lengths == 1)}


def test_the_device_reads_the_words_that_the_host_reads(reader, names):
    @settings(deadline=None, max_examples=60)
    @given(st.lists(byte_texts.map(lambda data: data[:70]), min_size=8, max_size=8))
    @example(
        [b"I can't help", b'"I" can', b"i.", "I can’t. Not\n\n".encode(), b"", b".", b"'i' i", b"x"]
    )
    @example(
        [
            b"''i can't help'",
            b"i''i",
            b"'a''i can",
            b'i"i',
            b"i\xe2\x80 can",
            b"\ni\n\n.",
            b"'",
            b'"\n"i',
        ]
    )
    def check(data):
        found = read(reader, rows_of(data, names), 0, 10**6)
        texts = [text.decode(errors="replace") for text in data]
        assert found.tolist() == list(map(expected, texts))

    check()


def test_a_part_of_the_text_is_read(reader, names):
    rows = rows_of([b"<a>I can't help</a> that", b"can't help"], names)
    found = read(reader, rows, jnp.array([3, 6]), jnp.array([15, 10**6]))
    assert found[:, 0].tolist() == [True, False]
    assert not read(reader, rows, 0, 8)[0, 0]
