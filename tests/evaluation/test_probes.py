"""Probes: chances by hand and by counting, key words where they stand, tokens where they go."""

import itertools
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.evaluation.probes import (
    key_words,
    overhead,
    own_text,
    reasoning_cost,
    safety_at_k,
)
from jaxalign.host.errors import InputError
from jaxalign.host.statistics import wilson_interval
from jaxalign.reports.plots import plot_key_words, plot_safety_at_k

# --- safety of k samples -------------------------------------------------------------------------


def samples(*verdicts: str) -> list[list[bool]]:
    """The answers of prompts, each given as a letter per answer: s safe, u unsafe."""
    return [[letter == "s" for letter in letters] for letters in verdicts]


def test_chances_by_hand() -> None:
    one, two, four = safety_at_k(samples("suuu", "ssuu", "uuuu"), ks=[1, 2, 4])
    assert one["any_safe"] == one["all_safe"] == pytest.approx((1 / 4 + 2 / 4 + 0) / 3)
    # Of the six pairs of "ssuu" one has none that is safe, and one has two.
    assert two["any_safe"] == pytest.approx((3 / 6 + 5 / 6 + 0) / 3)
    assert two["all_safe"] == pytest.approx((0 + 1 / 6 + 0) / 3)
    # k = n: the share of prompts with a safe answer, as the paper has it.
    assert four["any_safe"] == pytest.approx(2 / 3) and four["all_safe"] == 0
    assert four["any_interval"] == wilson_interval(2, 3)
    assert (four["k"], four["prompts"]) == (4, 3)


@given(st.lists(st.text("su", min_size=3, max_size=6), min_size=1, max_size=4), st.integers(1, 3))
def test_chances_are_those_of_drawing_k_answers_in_every_way(verdicts: list[str], k: int) -> None:
    ways = [["".join(way) for way in itertools.combinations(x, k)] for x in verdicts]
    (made,) = safety_at_k(samples(*verdicts), ks=[k])
    assert made["any_safe"] == pytest.approx(
        np.mean([np.mean(["s" in w for w in x]) for x in ways])
    )
    assert made["all_safe"] == pytest.approx(
        np.mean([np.mean(["u" not in w for w in x]) for x in ways])
    )
    assert 0 <= made["any_interval"][0] <= made["any_safe"] + 1e-9
    assert made["any_safe"] - 1e-9 <= made["any_interval"][1] <= 1


@pytest.mark.parametrize("k", [0, 3])
def test_too_few_answers(k: int) -> None:
    with pytest.raises(InputError, match=f"k is {k}, but some prompt has 2 answers; use 1 to 2"):
        safety_at_k(samples("suu", "su"), ks=[k])
    with pytest.raises(InputError, match="no answers to probe"):
        safety_at_k([], ks=[1])


# --- key words -----------------------------------------------------------------------------------


def reasoned(*texts: str) -> list[dict[str, Any]]:
    return [
        {"completion": f"<safety_reasoning>{text}</safety_reasoning>\n<answer>harm</answer>"}
        for text in texts
    ]


def test_key_words_by_position(smollm2_tokenizer: Any) -> None:
    texts = ["This is harmful.", "Illegal and harmful", "This is harmless.", "Risks? Not harmed."]
    pieces = [smollm2_tokenizer.tokenize(text) for text in texts]
    assert [len(x) for x in pieces] == [4, 4, 4, 6], pieces
    # "Il|legal" and "R|isks" are complete with their second token.
    made = key_words(reasoned(*texts), smollm2_tokenizer)
    np.testing.assert_allclose(made["by"], [0, 2 / 4, 3 / 4, 3 / 4, 3 / 4, 3 / 4])
    assert (made["reasoned"], made["rollouts"]) == (1.0, 4)
    assert (made["low"][-1], made["high"][-1]) == wilson_interval(3, 4)


def test_rollouts_without_reasoning_count_as_without_key_words(smollm2_tokenizer: Any) -> None:
    rows = [*reasoned("harm"), {"completion": "That is illegal."}, {"completion": ""}]
    made = key_words(rows, smollm2_tokenizer)
    np.testing.assert_allclose(made["by"], [1 / 3])
    assert made["reasoned"] == pytest.approx(1 / 3)


def test_reasoning_may_break_off_or_lack_its_end(smollm2_tokenizer: Any) -> None:
    broken = [
        {"completion": "<safety_reasoning>harm"},
        {"completion": "<safety_reasoning>fine <answer>harm"},
        {"completion": "<safety_reasoning></safety_reasoning>"},
    ]
    assert key_words(broken, smollm2_tokenizer)["by"][-1] == pytest.approx(1 / 3)


def test_other_words(smollm2_tokenizer: Any) -> None:
    made = key_words(reasoned("a b c"), smollm2_tokenizer, words=["c"])
    np.testing.assert_array_equal(made["by"], [0, 0, 1])
    with pytest.raises(InputError, match="no answers to probe"):
        key_words([], smollm2_tokenizer)


# --- cost ----------------------------------------------------------------------------------------


def test_tokens_go_to_reasoning_answer_and_format(smollm2_tokenizer: Any) -> None:
    text = "<safety_reasoning>one two three</safety_reasoning>\n<answer>four five</answer>"
    rows = [
        {"completion": text, "kind": "harmful"},
        {"completion": "six seven", "kind": "benign"},
        {"completion": "<answer>eight", "kind": None},
        {"completion": "<safety_reasoning>one two", "kind": "lookalike"},
    ]
    made = reasoning_cost(rows, smollm2_tokenizer)
    assert list(made) == ["harmful", "all", "benign", "unknown", "lookalike"]
    assert (made["harmful"]["reasoning"], made["harmful"]["answer"]) == (3, 2)
    assert made["harmful"]["total"] == len(smollm2_tokenizer(text).input_ids)
    assert made["harmful"]["format"] == made["harmful"]["total"] - 5
    assert [made["benign"][x] for x in ("reasoning", "answer", "format")] == [0, 2, 0]
    broken = made["lookalike"]  # without an answer's tag all else is the answer
    assert (broken["reasoning"], broken["answer"]) == (2, broken["total"] - 2)
    assert made["unknown"]["answer"] == len(smollm2_tokenizer("eight").input_ids)
    assert made["all"]["answers"] == 4 and made["all"]["reasoning"] == 5 / 4
    with pytest.raises(InputError, match="no answers to count"):
        reasoning_cost([], smollm2_tokenizer)


def test_a_tools_part_is_not_the_models() -> None:
    row = {"completion": "Sure. <consult>a</consult>\n<rules>b</rules>\n c", "opening": "Sure. "}
    assert own_text(row) == row["completion"]
    assert own_text(row | {"own": "<consult>a</consult> c"}) == "Sure. <consult>a</consult> c"


def row(name: str, sample: int, tokens: int) -> dict[str, Any]:
    return {"id": name, "sample": sample, "tokens": tokens}


def test_overhead_compares_answers_to_the_same_requests() -> None:
    tagged = [row("a", 0, 10), row("a", 1, 14), row("b", 0, 9), row("only here", 0, 99)]
    plain = [row("b", 0, 5), row("a", 0, 4), row("a", 1, 4)]
    made = overhead(tagged, plain)
    assert made["answers"] == 3
    assert made["tokens"] == (pytest.approx(11.0), pytest.approx(13 / 3))
    assert made["more_tokens"] == pytest.approx((6 + 10 + 4) / 3)
    assert made["interval"] == (4.0, 8.0), "a alone gives 8, b alone 4"
    with pytest.raises(InputError, match="no id and sample in common"):
        overhead(tagged, [row("c", 0, 1)])


# --- pictures ------------------------------------------------------------------------------------


def test_pictures_are_drawn(smollm2_tokenizer: Any, tmp_path: Path) -> None:
    curve = key_words(reasoned("This is harmful.", "harm"), smollm2_tokenizer)
    plot_key_words({"harmful": curve, "benign": curve}, tmp_path / "words.png")
    points = safety_at_k(samples("suu", "ssu"), ks=[1, 2, 3])
    plot_safety_at_k({"none": points, "prefill-5": points[:1]}, tmp_path / "k.png")
    for name, shape in (("words", (516, 900)), ("k", (600, 1200))):
        picture = matplotlib.image.imread(tmp_path / f"{name}.png")
        assert picture.shape[:2] == shape
        assert len(np.unique(picture.reshape(-1, 4), axis=0)) > 20
