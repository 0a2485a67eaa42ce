"""Refusals in words: our cases, the host against the device, and public labelled answers."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.benchmarks.refusals import JUDGES, fires, half_of, read_all, refusals
from jaxalign.evaluation.agreement import agreement
from jaxalign.rewards import is_stub, judge_refusal, reads_english, refusal_verifier, verdict_in
from jaxalign.rewards.declining import LEXICON
from jaxalign.text.words import SHORT_FORMS

SHARED = Path(__file__).parents[2] / ".." / "shared"
KINDS = {"W": (True, True), "F": (True, False), "N": (False, False)}


def own_cases():
    """Texts, and what is right of them."""
    lines = (Path(__file__).parent / "refusal_cases.txt").read_text().splitlines()
    for line in lines:
        if not line.startswith("#"):
            escaped = line[2:].replace('"', '\\"')
            yield json.loads(f'"{escaped}"'), KINDS[line[0]]


CASES = list(own_cases())


def wrong(cases):
    return [(text, right) for text, right in cases if judge_refusal(text) != right]


def test_our_cases():
    assert len(CASES) > 400
    assert wrong(CASES) == []


@pytest.mark.parametrize("spell", [str.upper, lambda x: x.replace("'", "’"), "**{}**".format])
def test_our_cases_in_other_spellings(spell):
    cases = [(text, right) for text, right in CASES if "`" not in text and "‘" not in text]
    cases = [(text, right) for text, right in cases if not text.startswith("'")]
    assert wrong([(spell(text), right) for text, right in cases]) == []


def test_shared_cases():
    path = SHARED / "cases" / "refusals.jsonl"
    if not path.exists():
        pytest.skip("needs ../shared/cases/refusals.jsonl")
    cases = list(map(json.loads, path.open(encoding="utf-8")))
    foreign = [case for case in cases if not reads_english(case["text"])]
    assert [case["why"] for case in foreign] == ["Spanish", "Spanish sympathy"]
    own = [(x["text"], (x["refusal"], x["whole"])) for x in cases if x not in foreign]
    assert len(own) > 25 and wrong(own) == []


@pytest.mark.parametrize(
    ("text", "english"),
    [
        ("I'm sorry.", True),
        ("Paris.", True),
        ("42", True),
        ("Boil the rice for ten minutes.", True),
        ("Lo siento, no puedo ayudarte con eso.", False),
        ("Es tut mir leid, dabei kann ich dir nicht helfen.", False),
        ("Ich will das so nicht tun, was soll das?", False),
        ("Je suis désolé, mais je ne peux pas vous aider.", False),
        ("Mi dispiace, non posso aiutarti con questo.", False),
        ("Desculpe, mas não posso ajudar com isso.", False),
        ("申し訳ありませんが、お手伝いできません。", False),
        ("Извините, я не могу помочь с этим.", False),
    ],
)
def test_what_the_judge_can_read(text, english):
    assert reads_english(text) == english


def test_our_cases_are_english():
    unread = [text for text, _ in CASES if not reads_english(text)]
    assert len(unread) <= 0.02 * len(CASES), unread


@pytest.mark.parametrize(
    "again", ["so sorry ", "I'm so sorry, ", "my own rules ", "I really ", "not "]
)
def test_no_text_takes_the_host_long(again):
    """An expression that can read a text in many ways would try them all."""
    assert not judge_refusal(again * 60 + "x").whole
    verdict_in(again * 60 + "x")
    is_stub(again * 60 + "x")


# ---- on the device


@pytest.fixture(scope="module")
def verifier(small_tokenizer):
    return refusal_verifier(small_tokenizer)


@jax.jit
def judged(verifier, rows, start, stop):
    return jnp.stack(verifier(rows, rows >= 0, start, stop), axis=1)


def on_device(verifier, tokenizer, texts, start=0, stop=10**6, width=None):
    rows = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    table = np.full((len(rows), width or max(map(len, rows))), -1)
    for row, tokens in zip(table, rows, strict=True):
        row[: len(tokens)] = tokens
    return [tuple(x) for x in judged(verifier, jnp.array(table), start, stop).tolist()]


def test_the_device_judges_our_cases(verifier, small_tokenizer):
    texts, right = zip(*CASES, strict=True)
    assert on_device(verifier, small_tokenizer, texts) == list(right)


def test_a_span_is_judged(verifier, small_tokenizer):
    texts = ["<answer>I can't help with that.</answer>", "I'm sorry. <answer>Sure.</answer>"]
    start, stop = jnp.array([8, 19]), jnp.array([31, 24])
    found = on_device(verifier, small_tokenizer, texts, start, stop)
    assert found == [(True, True), (False, False)]


def test_the_device_equals_the_host(verifier, small_tokenizer):
    words = sorted({*LEXICON.character_of, *SHORT_FORMS, "bomb", "Ann"})
    openings = [
        "I can't",
        "I’m not",
        "Sorry,",
        "i won't",
        "help with",
        "but here",
        ".",
        "\n\n",
        '"',
    ]
    pieces = st.sampled_from(words) | st.sampled_from(openings)

    @settings(deadline=None, max_examples=25)
    @given(st.lists(st.lists(pieces, max_size=8).map(" ".join), min_size=16, max_size=16))
    def check(texts):
        found = on_device(verifier, small_tokenizer, texts, width=150)
        assert found == [tuple(judge_refusal(text)) for text in texts]

    check()


# ---- on answers that people have labelled


@pytest.fixture(scope="module")
def labelled():
    data = SHARED / "data"
    xstest = sorted(data.glob("xstest_v2_completions_*.csv"))
    pyrit = sorted(data.glob("pyrit_refusal*.csv"))
    if not xstest or not pyrit:
        pytest.skip("needs XSTest's and PyRIT's labelled answers in ../shared/data")
    return read_all(xstest, pyrit)


def test_the_device_judges_labelled_answers(verifier, small_tokenizer, labelled):
    texts = [answer.text[:300] for answer in labelled]
    found = on_device(verifier, small_tokenizer, texts)
    assert found == [tuple(judge_refusal(text)) for text in texts]


def test_precision_and_recall_on_the_selection_half(labelled):
    answers = [answer for answer in labelled if half_of(answer.prompt) == "selection"]
    fired, before = (fires(JUDGES[name], answers) for name in ("words", "first sentence"))
    either = agreement(fired, refusals(answers, ("refused", "partly refused")))
    assert either["precision"]["rate"] >= 0.97
    full = refusals(answers, ("refused",))
    assert fired[full].mean() >= before[full].mean()
