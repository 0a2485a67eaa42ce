"""SentencePiece's byte tokens on the device against the text that `tokenizers` decodes."""

import itertools
import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from jaxalign.rewards import (
    ANSWER_TAGS,
    REFUSAL_PATTERN,
    STRICT_FORMAT_PATTERN,
    compile_pattern,
    safety_verifiers,
    split,
)
from jaxalign.sampling import consultation
from jaxalign.sampling.host_tools import HostTool, _argument
from jaxalign.sampling.tools import Turns
from jaxalign.text.matcher import Reader
from jaxalign.text.utf8 import well_formed

SPECIAL = ["<s>", "</s>"]
TAGS = ["<safety_reasoning>", "</safety_reasoning>", *ANSWER_TAGS]
WORDS = ["<unk>", "▁", "▁I", "I", "▁cannot", "▁can", "’", "t", "<", "answer>", "/", "é", "\ufffd"]
WORDS += ["<0xe2>", "<0x+9>", "<0x9>", "<0xZZ>", *"[]a()No.", *TAGS]
ADDED = [AddedToken("<tool>"), AddedToken("x▁y")]  # not special: they stay in the text
UNKNOWN = 10**6  # an id beyond the vocabulary decodes to nothing


@pytest.fixture(scope="module")
def tokenizer():
    """Of Llama 2's type; the byte tokens stand between other ones."""
    vocab = dict.fromkeys([*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS])
    vocab = {word: index for index, word in enumerate(vocab)}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True, unk_token="<unk>"))
    steps = decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    backend.add_special_tokens(SPECIAL)
    backend.add_tokens(ADDED)
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


@jax.jit
def read(reader, rows):
    return reader.read(rows, rows >= 0).accepted


def decode(tokenizer, rows):
    """The texts of rows of ids, in which those below 0 are holes."""
    kept = [row[row >= 0].tolist() for row in rows]
    return tokenizer.backend_tokenizer.decode_batch(kept, skip_special_tokens=True)


WHOLE = [text.encode() for text in "’ é 🙂 \ufffd \ud7ff a [ ] <".split()] + [b" ", b"\n"]
MALFORMED = [
    *(b"\xe2\x80", b"\xe2", b"\xf0\x9f\x99", b"\xf0\x9f", b"\x99", b"\x80"),
    *(b"\xc0\xaf", b"\xe0\x80\x80", b"\xf0\x80\x80\x80"),  # too long
    *(b"\xed\xa0\x80", b"\xf4\x90\x80\x80"),  # a surrogate, beyond Unicode
    *(bytes([byte]) for byte in range(256)),
]


def byte_names(text):
    return [f"<0x{byte:02X}>" for byte in text]


def random_rows(tokenizer, count, seed=0, frame=TAGS):
    """`[count, 32]` ids of bytes, words, special and unknown tokens, with holes of −1.

    In some rows the four tokens of `frame` stand before, between and behind the others.
    """
    rng = np.random.default_rng(seed)
    others = [[], [], *([word] for word in (*WORDS, *SPECIAL, "<tool>", "x▁y"))]
    others += [[*byte_names(b"<"), "answer>"], ["▁I", "▁can", "’", "t"]]
    kinds = [[*map(byte_names, WHOLE)], others, [*map(byte_names, MALFORMED)]]
    ends = np.cumsum([0, *map(len, kinds)])
    units = np.full((ends[-1], 4), -1)
    for row, names in zip(units, sum(kinds, []), strict=True):
        row[: len(names)] = tokenizer.convert_tokens_to_ids(names)
    units[ends[1], 0] = UNKNOWN
    drawn = rng.random((count, 8))
    malformed = 0.3 * rng.random((count, 1)) ** 2
    kind = np.where(drawn < malformed, 2, (drawn > 0.6).astype(int))
    rows = units[rng.integers(ends[kind], ends[kind + 1])]
    framed = rng.random(count) < 0.4
    for place, name in zip((0, 2, 4, 7), frame, strict=True):
        rows[framed, place] = [tokenizer.convert_tokens_to_ids(name), -1, -1, -1]
    return rows.reshape(count, 32)


# What tokens decode to: a run of byte tokens as a whole, or U+FFFD for each of its bytes.
DECODED = {
    "<0xE2> <0x80> <0x99> t": "’t",
    "<0xE2> <0x80> t": "\ufffd\ufffdt",
    "<0xE2> <0x80> <0x99> <0x41> <0xC3>": "\ufffd" * 5,
    "<0xE2> <s> <0x80> <0x99>": "’",  # what is skipped ends no run
    "<0xE2> <tool> <0x80>": "\ufffd<tool>\ufffd",
    "<0xC3> <0xA9> I <0xA9>": "éI\ufffd",
    "<0xED> <0xA0> <0x80>": "\ufffd\ufffd\ufffd",
    "<0xEF> <0xBF> <0xBD>": "\ufffd",  # its own bytes
    "<0x20> <0x41>": "A",  # the first space is dropped,
    "<0x20> <0xFF>": "\ufffd\ufffd",  # but not what stands for it
    "<0xe2> <0x+9> <0x9> <0xZZ>": "\ufffd\ufffd<0x9><0xZZ>",
}


def test_a_run_of_bytes_is_whole_or_all_replaced(tokenizer):
    rows = np.full((len(DECODED), 5), -1)
    for row, names in zip(rows, DECODED, strict=True):
        ids = tokenizer.convert_tokens_to_ids(names.split())
        row[: len(ids)] = ids
    assert decode(tokenizer, rows) == list(DECODED.values())
    exactly = [compile_pattern(rf"\A{re.escape(text)}\Z") for text in DECODED.values()]
    found = read(Reader.build(exactly, tokenizer), rows)
    same = np.array([[one == other for other in DECODED.values()] for one in DECODED.values()])
    np.testing.assert_array_equal(found, same)


def test_well_formed_is_what_decodes():
    """Every boundary of table 3-7 of the Unicode Standard, up to four bytes."""
    edges = bytes.fromhex("00 7f 80 8f 90 9f a0 bf c0 c1 c2 df e0 e1 ec ed ee ef f0 f1 f3 f4 f5 ff")
    automaton = well_formed()
    for length in range(1, 5):
        texts = list(itertools.product(edges, repeat=length))
        states = np.zeros(len(texts), int)
        for column in np.array(texts).T:
            states = automaton.transitions[states, column]
        decodes = ["\ufffd" not in bytes(text).decode(errors="replace") for text in texts]
        np.testing.assert_array_equal(automaton.accepting[states], decodes)


PATTERNS = [
    STRICT_FORMAT_PATTERN,
    r"\A(?:I|\ufffd)",
    r"(?:\A|[^\ufffd])\ufffd{3}(?:[^\ufffd]|\Z)",
    r"[’é🙂\ud7ff]\s*\Z",
    r"<answer>[^\ufffd]*\Z",
]


@pytest.mark.parametrize(
    "count", [10_000, pytest.param(1_000_000, marks=pytest.mark.slow)], ids=["10k", "1M"]
)
def test_verdicts_are_those_on_the_decoded_text(tokenizer, count):
    automata = [compile_pattern(pattern) for pattern in PATTERNS]
    automata.append(compile_pattern(REFUSAL_PATTERN).within(*ANSWER_TAGS))
    reader = Reader.build(automata, tokenizer)
    searches = [re.compile(pattern, re.DOTALL).search for pattern in PATTERNS]
    refuses = re.compile(REFUSAL_PATTERN, re.DOTALL).search
    for seed in range(count // 10_000):
        rows = random_rows(tokenizer, 10_000, seed)
        texts = decode(tokenizer, rows)
        expected = [
            [*(search(text) is not None for search in searches), bool(refuses(split(text).answer))]
            for text in texts
        ]
        found = np.asarray(read(reader, rows))
        wrong = np.flatnonzero((found != expected).any(axis=1))
        assert not wrong.size, [(texts[row], found[row]) for row in wrong[:5]]
        assert (found.mean(axis=0) > 0.01).all() and (found.mean(axis=0) < 0.9).all()


def test_the_answers_tokens_spell_the_answer(tokenizer):
    rows = random_rows(tokenizer, 2000)
    inside = jax.jit(safety_verifiers(tokenizer))(rows, rows >= 0).answer
    spelled = decode(tokenizer, np.where(inside, rows, -1))
    expected = [split(text).answer for text in decode(tokenizer, rows)]
    # Decoding drops a space that the text begins with, and would drop the answer's.
    assert [text.lstrip(" ") for text in spelled] == [text.lstrip(" ") for text in expected]


# None depends on a space that the text begins with: decoding drops it, `advance` does not.
PREFIX_PATTERNS = [r"’\Z", r"(?:\A|[^\ufffd])\ufffd{3}\Z", r"[^\ufffd ]{4}\Z", r"a[^\ufffd]*]"]


def test_token_by_token_every_beginning_is_read_as_it_decodes(tokenizer):
    rows = random_rows(tokenizer, 500)
    reader = Reader.build([compile_pattern(pattern) for pattern in PREFIX_PATTERNS], tokenizer)

    def step(states, column):
        states = reader.advance(states, column, column >= 0)
        return states, reader.accepted(states)

    _, accepted = jax.jit(lambda x: jax.lax.scan(step, reader.start(len(x)), x.T))(rows)
    for length, found in enumerate(np.asarray(accepted), 1):
        texts = decode(tokenizer, rows[:, :length])
        expected = [[bool(re.search(p, x, re.DOTALL)) for p in PREFIX_PATTERNS] for x in texts]
        np.testing.assert_array_equal(found, expected, err_msg=repr(texts))


def test_a_tool_is_called_when_the_decoded_text_has_a_call(tokenizer):
    rules = {"a": "No.", "aa": "N"}
    tool = consultation(rules, tokenizer, call_tags=("[", "]"), answer_tags=("(", ")"))
    rows = random_rows(tokenizer, 1000, frame=("[", "a", "]", "]"))

    def step(turns, column):
        later = turns.advance(tool, column, (column >= 0) & (turns.calls == 0))
        return later, jnp.where(later.calls > turns.calls, later.answer, -1)

    _, answers = jax.jit(lambda x: jax.lax.scan(step, Turns.start(tool, len(x)), x.T))(rows)
    expected = np.full((rows.shape[1], len(rows)), -1)
    for length, answer in enumerate(expected, 1):
        for row, text in enumerate(decode(tokenizer, rows[:, :length])):
            call = re.search(r"\[.*?\]", text, re.DOTALL)
            if call and (expected[: length - 1, row] < 0).all():
                category = call[0].rpartition("[")[2][:-1].strip()
                answer[row] = [*rules, category].index(category)
    np.testing.assert_array_equal(answers, expected)
    assert set(expected.flat) == {-1, 0, 1, 2}


@pytest.mark.parametrize(
    ("written", "opening", "asked"),
    [("[ <0x41> <0xE2> a ]", "[", "\ufffd\ufffda"), ("▁ [ a ]", " [", "a")],
)
def test_a_host_tool_is_asked_for_the_decoded_text(tokenizer, written, opening, asked):
    tokens = np.array([tokenizer.convert_tokens_to_ids(written.split())])
    seen = SimpleNamespace(tokens=tokens, mask=tokens >= 0)
    tool = HostTool(str, call_tags=(opening, "]"))
    assert _argument(tool, tokenizer, seen, 0) == asked
