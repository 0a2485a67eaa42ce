"""Automata against Python's `in` and `re`, as text, as bytes and as token ids."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from automata import between, matches
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from jaxalign.rewards import compile_pattern, compile_phrases, token_bytes

# Few different characters, so that matches are common; and all of Unicode.
PIECES = [
    "a",
    "b",
    "ab",
    "\n",
    " ",
    "1",
    "<",
    ">",
    "/",
    "’",
    "’s",
    "é",
    "🙂",
    "\ufffd",
    "K",
    "\u212a",
]
texts = st.lists(st.sampled_from(PIECES) | st.characters(codec="utf-8"), max_size=10).map("".join)
byte_texts = st.lists(
    st.sampled_from([piece.encode() for piece in PIECES]) | st.binary(min_size=1, max_size=3),
    max_size=10,
).map(b"".join)


# ---- phrases


def test_any_phrase_counts():
    automaton = compile_phrases(["I cannot", "can't"])
    assert matches(automaton, "Well, I cannot.")
    assert matches(automaton, "can't")
    assert not matches(automaton, "i cannot, I can not, I can")


def test_the_empty_phrase_is_everywhere_and_no_phrase_is_nowhere():
    assert matches(compile_phrases([""]), "")
    assert not matches(compile_phrases([]), "anything")


@settings(deadline=None)
@given(st.lists(texts, max_size=3), texts)
def test_phrases_equal_in(phrases, text):
    assert matches(compile_phrases(phrases), text) == any(phrase in text for phrase in phrases)


@pytest.mark.parametrize("text", ["KISS", "kiss", "\u212aiſs", "Kiſſ"])
def test_ignoring_case_covers_all_of_unicode(text):
    assert matches(compile_phrases(["kiss"], ignore_case=True), text)
    assert not matches(compile_phrases(["kiss"]), text.upper())


CASED = "kK\u212asSſiIİıßẞǅǆµμΜΣσςÅåΩωΩﬅﬆͅιΙι’'1-"


@settings(deadline=None)
@given(st.text(CASED, min_size=1, max_size=3), st.text(CASED, max_size=8))
def test_ignoring_case_equals_re(phrase, text):
    expected = re.search(re.escape(phrase), text, re.IGNORECASE) is not None
    assert matches(compile_phrases([phrase], ignore_case=True), text) == expected


def test_a_single_string_is_not_a_list_of_phrases():
    with pytest.raises(ValueError, match=r"\['sorry'\]"):
        compile_phrases("sorry")


# ---- patterns

PATTERNS = [
    r"a.b",
    r"a+?b{2}|1$",
    r"^a*$",
    r"\A\s*<[^<]*[^<\s][^<]*>\s*\Z",
    r"a$\n|^\Z",
    r"$b|a$.",
    r"(a|b)*1{1,2}(?P<name>é|’)",
    r"(?:)|a",
    r"[^a-c]{3}",
    r"[^\s\d]\S\W",
    r"\w\d\D",
    r"(?s:a.)b",
    r"[\]\-a]+/",
    r"\x61\u2019",
    r"(^a|b)+$",
    r"\ufffd",
    r"[\U0001F600-\U0001F64F][^é]",
    r"(?:a?){3}b*?$",
]


@pytest.mark.parametrize("regex", PATTERNS)
def test_patterns_equal_re(regex):
    automaton = compile_pattern(regex)

    @settings(deadline=None)
    @given(texts)
    @example("a\n")
    @example("\n")
    @example("a\n\n")
    def check(text):
        assert matches(automaton, text) == (re.search(regex, text, re.DOTALL) is not None)

    check()


atoms = st.sampled_from(
    ["a", "b", r"\n", "’", ".", "[ab]", "[^a]", r"[^\w<]", r"\s", r"\w", r"\D", "^", "$", r"\Z", ""]
)
quantifiers = st.sampled_from(["?", "*", "+", "{2}", "{0,2}", "{1,}", "*?", "+?", "{1,3}?", "??"])
regexes = st.recursive(
    atoms,
    lambda inner: (
        st.tuples(inner, inner).map("".join)
        | st.tuples(inner, inner).map(lambda pair: "(?:{}|{})".format(*pair))
        | st.tuples(inner, quantifiers).map(lambda pair: "(?:{}){}".format(*pair))
    ),
    max_leaves=8,
)


@settings(deadline=None, max_examples=200)
@given(regexes, st.lists(st.text("ab\n’<é", max_size=7), min_size=5, max_size=5))
def test_random_patterns_equal_re(regex, several):
    automaton = compile_pattern(regex)
    for text in several:
        assert matches(automaton, text) == (re.search(regex, text, re.DOTALL) is not None)


@pytest.mark.parametrize(
    ("regex", "named"),
    [
        (r"(?=a)", "lookahead"),
        (r"(?<!a)b", "lookbehind"),
        (r"(a)\1", "backreference"),
        (r"\ba", r"\\b"),
        (r"a*+", "possessive"),
        (r"(?>a)", "atomic"),
        (r"(a)(?(1)b)", "conditional"),
        (r"(?i)a", "inline flags"),
        (r"(?i:a)", "inline flags"),
        (r"(a", "not a regular expression"),
    ],
)
def test_what_is_not_supported_is_named(regex, named):
    with pytest.raises(ValueError, match=named):
        compile_pattern(regex)


@pytest.mark.parametrize("regex", [r"a.{20}b", r"a{30000}", r"\w.{12}[^é]"])
def test_patterns_that_explode_are_refused(regex):
    with pytest.raises(ValueError, match="20000 states"):
        compile_pattern(regex)


# ---- bytes


@pytest.mark.parametrize("regex", [r"a.$", r"a\ufffd{3}", r"[^\ufffd]{2}\Z", r"^\W*$", "’\ufffd"])
def test_malformed_bytes_count_as_the_replacement_character(regex):
    automaton = compile_pattern(regex)

    @settings(deadline=None, max_examples=200)
    @given(byte_texts)
    @example(b"a\xe2\x80")  # breaks off inside a typographic quote
    @example(b"a\xed\xa0\x80")  # a surrogate
    @example(b"a\xf0\x9f\x99")
    @example(b"a\xc0\xaf\xf4\x90\x80\x80")  # too long an encoding; beyond Unicode
    def check(data):
        text = data.decode("utf-8", errors="replace")
        assert matches(automaton, data) == (re.search(regex, text, re.DOTALL) is not None)

    check()


def test_automata_are_minimal():
    """Texts with "aab" in them need one state per byte seen and one for the match."""
    assert len(compile_phrases(["aab"]).transitions) == 4
    assert len(compile_phrases(["aab", "xaaby", "aab"]).transitions) == 4


# ---- spans


@pytest.mark.parametrize("tags", [("<a>", "</a>"), ("aa", "aab"), ("ab", "abab"), ("<", "<")])
@pytest.mark.parametrize("regex", [r"ab", r"^b|a$", r"</|\n$", r"\ufffd.?\Z", r"\A\Z"])
def test_within_equals_re_on_the_span(tags, regex):
    automaton = compile_pattern(regex).within(*tags)
    pieces = st.sampled_from([*tags, "a", "b", "<", "</", "\n", "’"]).map(str.encode)

    @settings(deadline=None, max_examples=200)
    @given(st.lists(pieces | st.just(b"\xe2\x80"), max_size=10).map(b"".join))
    def check(data):
        span = between(data.decode(errors="replace"), *tags)
        assert matches(automaton, data) == (re.search(regex, span, re.DOTALL) is not None)

    check()


@pytest.mark.parametrize("tags", [("", "</a>"), ("<a>", "’")])
def test_tags_must_be_ascii(tags):
    with pytest.raises(ValueError, match="tag must be ASCII"):
        compile_phrases(["x"]).within(*tags)


# ---- tokens


def decode(tokenizer, tokens):
    return tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def test_a_phrase_split_over_tokens_is_found(small_tokenizer):
    matcher = compile_phrases(["I’m"]).bind(small_tokenizer)
    letters = [small_tokenizer.encode(c)[0] for c in "Im"]
    quote = small_tokenizer.convert_tokens_to_ids(["â", "Ģ", "Ļ"])  # GPT-2's names of E2 80 99
    end = small_tokenizer.eos_token_id
    rows = jnp.array(
        [
            [letters[0], end, quote[0], quote[1], quote[2], letters[1]],
            [letters[0], end, quote[0], quote[1], quote[0], letters[1]],
            [letters[0], end, quote[0], quote[1], quote[2], letters[1]],
        ]
    )
    mask = jnp.ones_like(rows, bool).at[2, 3].set(False)
    np.testing.assert_array_equal(matcher(rows, mask), [True, False, False])


def test_token_bytes(small_tokenizer):
    table, lengths = token_bytes(small_tokenizer)
    assert table.dtype == np.uint8
    assert lengths[small_tokenizer.eos_token_id] == 0

    def of(token):
        index = small_tokenizer.convert_tokens_to_ids(token)
        return table[index, : lengths[index]].tobytes()

    assert of("Ġ") == b" "
    assert of("Ċ") == b"\n"
    assert of("<answer>I am not ready") == b"<answer>I am not ready"  # added, with spaces: plain
    assert of("née") == b"n\xe9e"  # added, without: decoding takes it for byte-level


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_bytes_of_tokens_make_up_the_decoded_text(small_tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, len(small_tokenizer) - 1), max_size=20))
    table, lengths = token_bytes(small_tokenizer)
    read = b"".join(table[i, : lengths[i]].tobytes() for i in ids)
    assert read.decode("utf-8", errors="replace") == decode(small_tokenizer, ids)


def test_no_bytes_for_unknown_ids_masked_tokens_and_empty_rows(small_tokenizer):
    matcher = compile_pattern(r"\A\Z").bind(small_tokenizer)
    letter = small_tokenizer.encode("a")[0]
    tokens = jnp.array([[10**6, -100], [letter, 10**6], [letter, letter]])
    mask = jnp.array([[True, True], [True, True], [False, False]])
    np.testing.assert_array_equal(matcher(tokens, mask), [True, False, True])


def test_a_matcher_is_a_pytree_and_compiles_once(small_tokenizer):
    traces = []

    @jax.jit
    def run(matcher, tokens, mask):
        traces.append(None)
        return matcher(tokens, mask)

    one, other = (compile_phrases([p]).bind(small_tokenizer) for p in ("yes", "sey"))
    tokens = jnp.array([small_tokenizer.encode(w)[:1] + small_tokenizer.encode("es") for w in "yn"])
    mask = jnp.ones_like(tokens, bool)
    np.testing.assert_array_equal(run(one, tokens, mask), [True, False])
    np.testing.assert_array_equal(run(other, tokens, mask), [False, False])
    assert len(traces) == 1
    np.testing.assert_array_equal(jax.jit(one)(tokens, mask), [True, False])  # closed over


@pytest.fixture(scope="module")
def jitted(small_tokenizer):
    """A jitted matcher for each of several regexes, and where it looks."""
    spans = [None, ("<answer>", "</answer>")]
    return {
        (regex, span): jax.jit(compile_pattern(regex).bind(small_tokenizer, span=span))
        for regex in (r"I('|’)m.*not|sorry$", r"\ufffd\Z", r"^\S+\s", r"answer|</")
        for span in spans
    }


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_matchers_equal_re_on_decoded_tokens(small_tokenizer, jitted, data):
    """Random rows: pieces of text, cut into tokens in any way, and any tokens at all."""
    pieces = [
        small_tokenizer.encode(text)
        for text in ("<answer>", "</answer>", "I’m", "I'm", " not", "sorry", "\n", "🙂", "é")
    ] + [small_tokenizer.convert_tokens_to_ids(list(s)) for s in ("<answer>", "</ans", "âĢ", "I'm")]
    anything = st.integers(-1, len(small_tokenizer) + 5).map(lambda token: [token])
    rows, keep = [], []
    for _ in range(4):
        row = sum(data.draw(st.lists(st.sampled_from(pieces) | anything, max_size=16)), [])[:32]
        rows.append(row + [1] * (32 - len(row)))
        holes = data.draw(st.sets(st.integers(0, 31), max_size=3))
        keep.append([i < len(row) and i not in holes for i in range(32)])
    known = [
        [t for t, k in zip(*pair, strict=True) if k and 0 <= t < len(small_tokenizer)]
        for pair in zip(rows, keep, strict=True)
    ]
    decoded = [decode(small_tokenizer, row) for row in known]
    for (regex, span), matcher in jitted.items():
        looked_at = [between(text, *span) if span else text for text in decoded]
        expected = [re.search(regex, text, re.DOTALL) is not None for text in looked_at]
        found = matcher(jnp.array(rows), jnp.array(keep))
        np.testing.assert_array_equal(found, expected, err_msg=f"{regex} {span} {decoded}")


def test_long_tokens_and_long_texts():
    """One token of 128 spaces beside short ones: rows end at different bytes, far apart."""
    backend = Tokenizer(models.BPE(vocab={"Ġ" * 128: 0, "a": 1, "b": 2}, merges=[]))
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    matcher = compile_pattern(r"a\s{256}b\Z").bind(tokenizer)
    tokens = jnp.array([[1, 0, 0, 2], [1, 0, 1, 2], [1, 0, 2, 2], [2, 1, 1, 2]])
    np.testing.assert_array_equal(
        matcher(tokens, jnp.ones_like(tokens, bool)), [True, False, False, False]
    )


# ---- other tokenizers


@pytest.fixture(scope="module")
def sentencepiece_tokenizer():
    """Of Llama 2's type: ▁ is a space, <0x..> a byte, and decoding drops one leading space."""
    words = ["<unk>", "<s>", "▁I", "▁cannot", "▁", "can", "not", "’"]
    vocab = {word: index for index, word in enumerate(words)}
    vocab |= {f"<0x{byte:02X}>": len(words) + byte for byte in range(256)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens(["<s>"])
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>")


@pytest.mark.parametrize("regex", [r"^I cannot", r"^ I", "’not", r"^\n", r"^$", r"^ $"])
def test_sentencepiece_vocabularies(sentencepiece_tokenizer, regex):
    texts = [
        "<s> ▁I ▁cannot",
        "▁ ▁I",
        "▁",
        "<0x20> ▁I",
        "<0xE2> <0x80> <0x99> not",
        "’ not",
        "<0x0A>",
        "▁ ▁",
    ]
    rows = [sentencepiece_tokenizer.convert_tokens_to_ids(text.split(" ")) for text in texts]
    expected = [
        re.search(regex, decode(sentencepiece_tokenizer, row), re.DOTALL) is not None
        for row in rows
    ]
    tokens = jnp.array([row + [-1] * (4 - len(row)) for row in rows])
    matcher = compile_pattern(regex).bind(sentencepiece_tokenizer)
    np.testing.assert_array_equal(matcher(tokens, tokens >= 0), expected)
    assert any(expected)


def test_other_decoders_and_slow_tokenizers_are_refused():
    backend = Tokenizer(models.WordPiece({"a": 0, "##b": 1}, unk_token="a"))
    backend.decoder = decoders.WordPiece()
    with pytest.raises(ValueError, match="its decoder is WordPiece"):
        compile_phrases(["a"]).bind(PreTrainedTokenizerFast(tokenizer_object=backend))
    with pytest.raises(ValueError, match="needs a fast tokenizer"):
        compile_phrases(["a"]).bind("gpt2")
