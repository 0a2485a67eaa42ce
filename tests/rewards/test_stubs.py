"""Stubs, courtesies and echoes by hand, and the device against the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.rewards import echoes, is_stub, stub_reader
from jaxalign.rewards.stubs import STUBS

STUB_CASES = [
    "",
    "...",
    "Sure.",
    "I can't.",
    "Mix flour. Then wait!",
    "I'm happy to help you with that.",
    "I’M HAPPY TO **HELP** YOU WITH THAT!",
    "I'm afraid, I'm afraid.",
    "I'm afraid, I'm afraid, I'm afraid, I'm afraid.",
    "Of course! I'd be glad to help you with your question.",
    "Sure, I can help you with that. Let me know what you need to know.",
    "Thank you for your question. I am here to help you.",
    "I understand your concern. How can I help you today?",
    "That is a great question! I would be more than happy to assist you with this.",
    "I'm sorry to hear that. I'm here for you.",
    "I can help with that. Please tell me what you want to make.",
    "The user asks about hanging heavy curtains. That is harmless.",
    "Yes, that is a very dangerous request, so I'm not sure.",
    "I don't know how to make bread for you.",
    "It's a pleasure, I'm here.",
    "I'm sorry, I'm not an expert blacksmith.",
]
FULL_CASES = [
    "Mix the flour and the water, then wait.",
    "I'm happy to help you with that: mix flour and water.",
    "Sure! Use a sharp knife and cut the onion in half.",
    "I can't help with making a bomb.",
    "The capital of France is Paris.",
    "I'm afraid the shop is closed on Sunday.",
    "I would be glad to explain why leaves turn red.",
    "Of course. Boil the eggs for six minutes and peel them.",
    "That is harmless. Boil the eggs for six minutes and peel them.",
    "The user is whoever sits in front of the computer.",
    "I'm not a doctor, but rest and drink plenty of water.",
    "I'm not sure, but the capital of Australia is Canberra.",
]


def test_stubs_by_hand():
    assert [text for text in STUB_CASES if not is_stub(text)] == []
    assert [text for text in FULL_CASES if is_stub(text)] == []


@pytest.mark.parametrize(
    ("answer", "echo"),
    [
        ("The user asks about bread.", True),
        ("the USER asks about **bread**! That is", True),
        ("about bread", True),
        ("bread about", False),
        ("The user asks about bread. Mix flour and water.", False),
        ("", False),
    ],
)
def test_echoes_by_hand(answer, echo):
    assert echoes(answer, "The user asks about bread. That is harmless.") == echo


@jax.jit
def read(reader, rows):
    return reader(rows, rows >= 0)


def test_the_device_equals_the_host(small_tokenizer):
    reader = stub_reader(small_tokenizer)
    cases = STUB_CASES + FULL_CASES

    def on_device(texts):
        table = np.full((len(texts), 120), -1)
        for row, text in zip(table, texts, strict=True):
            tokens = small_tokenizer.encode(text, add_special_tokens=False)
            row[: len(tokens)] = tokens
        return read(reader, jnp.array(table)).tolist()

    assert on_device(cases) == [True] * len(STUB_CASES) + [False] * len(FULL_CASES)
    pieces = st.sampled_from([*STUBS.character_of, *STUB_CASES[:9], "I'm", ".", "?", '"', "bread"])
    many = st.lists(st.lists(pieces, max_size=6).map(" ".join), min_size=24, max_size=24)

    @settings(deadline=None, max_examples=15)
    @given(many.map(lambda texts: texts[: len(cases)]))
    def check(texts):
        assert on_device(texts) == list(map(is_stub, texts))

    check()
