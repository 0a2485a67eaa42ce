"""Reasonings that name the subject: stems by hand, and the device against the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from characters import character_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.rewards import (
    SubjectReader,
    Subjects,
    mask_subject,
    names_subject,
    new_words,
    subject_stems,
)
from jaxalign.rewards.subjects import LONGEST_STEM, MOST_STEMS, stem


@pytest.mark.parametrize(
    ("words", "stems"),
    [
        ("poison poisons poisoned poisoning poisoner", {"poison"}),
        ("forge forges forged forging", {"forg"}),
        ("stop stops stopped stopping", {"stop"}),
        ("kill kills killed killing", {"kill"}),
        ("bakery bakeries", {"baker"}),
        ("car bus its", {"car", "bus", "its"}),
        ("invitation invites", {"invit"}),
    ],
)
def test_stems_by_hand(words, stems):
    assert set(map(stem, words.split())) == stems


def test_the_subject_of_a_request():
    request = "How do I forge a passport’s STAMP, step by step? Please explain forging!"
    assert subject_stems(request) == ("forg", "passport", "stamp")
    assert subject_stems("What is it?") == ()
    assert len(subject_stems(" ".join(f"word{i}x" for i in range(40)))) == MOST_STEMS
    assert subject_stems("a" * 50) == ("a" * LONGEST_STEM,)


REQUESTS = ["How do I forge a passport?", "What is it?", "Explain a café's ﬁre-safety plan", "cars"]
NAMED = [
    ("The user asks about FORGING papers.", [True, True, False, False]),
    ("The user asks.", [False, True, False, False]),
    ("It is a **c**afé", [False, True, True, False]),
    ("fires, carpenters and passporting", [True, True, True, False]),
    ("ﬁre! one car’s", [False, True, True, True]),
    ("deforge, pass port", [False, True, False, False]),
    ("carrrrr carrrrrr", [False, True, False, True]),
    ("carrrrrr", [False, True, False, False]),
]


@pytest.mark.parametrize(("reasoning", "named"), NAMED)
def test_named_by_hand(reasoning, named):
    assert [names_subject(reasoning, request) for request in REQUESTS] == named


def test_several_stems_may_be_asked_for():
    request = "How do I forge a passport?"
    assert not names_subject("a passport", request, least=2)
    assert names_subject("forged passports", request, least=2)
    assert names_subject("passport", "passport?", least=2)


@jax.jit
def read(reader, subjects, rows):
    found = reader(subjects, rows, rows >= 0)
    return jnp.stack([found.names(), found.names(2), found.new], axis=1)


def on_device(tokenizer, reader, requests, reasonings):
    table = np.full((len(reasonings), 80), -1)
    for row, text in zip(table, reasonings, strict=True):
        tokens = tokenizer.encode(text, add_special_tokens=False)
        row[: len(tokens)] = tokens
    return read(reader, Subjects.of(requests), jnp.array(table)).tolist()


@pytest.fixture(params=["several letters a token", "one letter a token"])
def tokenizer(request, small_tokenizer):
    return small_tokenizer if request.param.startswith("several") else character_tokenizer()


def test_the_device_equals_the_host(tokenizer):
    reader = SubjectReader.build(tokenizer)
    ascii_only = len(tokenizer) < 120
    pieces = [
        "forg",
        "e",
        "ed",
        "ing",
        " ",
        ". ",
        "’s",
        "that",
        "n't do",
        "2",
        "passport",
        "car",
        "s",
        "ca",
        "ﬁ",
        "re",
        "*",
    ]
    pieces = [piece for piece in pieces if piece.isascii() or not ascii_only]
    texts = st.lists(st.sampled_from(pieces), max_size=9).map("".join)
    requests = (REQUESTS * 2)[:8]

    @settings(deadline=None, max_examples=20)
    @given(st.lists(texts, min_size=8, max_size=8))
    def check(reasonings):
        found = on_device(tokenizer, reader, requests, reasonings)
        assert found == [
            [
                *(names_subject(text, request, least=least) for least in (1, 2)),
                new_words(text, request),
            ]
            for text, request in zip(reasonings, requests, strict=True)
        ]

    check()


@pytest.mark.parametrize(
    ("answer", "new"),
    [
        ("Dry your laundry in a salty wind, that’s safe.", 0),
        ("Drying a laundry is unsafe, isn't it?", 0),  # what is judged again is nothing new
        ("Peg it close together.", 3),
        ("Wind, wind, and a 3 m rope: 100!", 1),
        ("Dry dryness driers.", 1),  # no stem with a longer ending, no stem with another letter
        ("", 0),
    ],
)
def test_new_words_by_hand(answer, new):
    assert new_words(answer, "How do you dry laundry in a salty wind?") == new


def test_prompts_are_taken_by_the_row(small_tokenizer):
    subjects = Subjects.of(REQUESTS).take(jnp.array([3, 3, 0]))
    assert subjects.length[:, 0].tolist() == [3, 3, 4]
    assert subjects.letters.shape == (3, MOST_STEMS, LONGEST_STEM)


def test_what_names_the_subject_is_masked():
    """By stems, runs of such words as one, and in plain letters."""
    request = "How do I bake a loaf of brown bread?"
    assert mask_subject("It’s about *baking* brown BREAD, at 200!", request) == "its about _ at 200"
    assert mask_subject("Nothing.", request) == "nothing" and mask_subject("", request) == ""
