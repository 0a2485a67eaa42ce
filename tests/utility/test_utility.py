"""What alignment may cost: sums in words, and the perplexity of the start model's own answers."""

import dataclasses
import json

import numpy as np
import pytest
from tiny_model import random_params

from jaxalign.answers import Asking, LanguageModel, answers
from jaxalign.data.templates import bare_messages, encode_chat
from jaxalign.host.errors import InputError
from jaxalign.utility.perplexity import perplexity, reference_answers
from jaxalign.utility.word_problems import (
    WordProblem,
    last_number,
    load_word_problems,
    solve,
)

REQUESTS = ["Name a fruit.", "Why is the sky blue at noon?", "Tell me a joke."]


@pytest.fixture(scope="module")
def tiny(tiny_model_folder):
    return LanguageModel.load(tiny_model_folder, "float32")


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("She has 3 + 4 = 7 apples.", 7),
        ("In all $1,250.50", 1250.5),
        ("It falls by -3 degrees", -3),
        ("<safety_reasoning>2 people</safety_reasoning><answer>It is 12.</answer> 5", 12),
        ("No number at all", None),
        ("between 10-12, as in step-3", 3),
        ("It is -3.", -3),
    ],
)
def test_an_answer_comes_to_its_last_number(text, number):
    assert last_number(text) == number


def test_word_problems_are_read_in_gsm8ks_form(tmp_path):
    path = tmp_path / "problems.jsonl"
    rows = [("A?", "Thus <<1+1=2>>2\n#### 1,002"), ("B?", "#### -3.5")]
    lines = [json.dumps({"question": q, "answer": a}) + "\n" for q, a in rows]
    path.write_text("\n".join(lines))  # a blank line between them
    assert load_word_problems(path) == [WordProblem("A?", 1002), WordProblem("B?", -3.5)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"question": "A?", "answer": "#### 2"}\n{"question": "B?"}\n', "line 2: needs a"),
        ('{"question": "A?", "answer": "two"}\n', "line 1: needs a question"),
        ('{"question": 3, "answer": "#### 2"}\n', "line 1: needs a question"),
        ('{"question": "A?", "answer": "#### nan"}\n', "line 1: needs a question"),
        ("[1]\n", "line 1: .* where an object with fields is expected"),
        ("", "no rows"),
    ],
)
def test_bad_word_problems_are_named(content, message, tmp_path):
    path = tmp_path / "problems.jsonl"
    path.write_text(content)
    with pytest.raises(InputError, match=message):
        load_word_problems(path)
    with pytest.raises(InputError, match="give the path of a readable file"):
        load_word_problems(tmp_path / "missing.jsonl")


def test_solved_problems_are_counted(tiny):
    """The problems are made of what the model says, so that it is right twice and wrong once."""
    asking = Asking(bare_messages, max_new_tokens=8, batch_size=2)
    numbers = [
        last_number(tiny.tokenizer.decode(answer.tokens, skip_special_tokens=True))
        for answer in answers(tiny, REQUESTS, asking)
    ]
    problems = [WordProblem(r, n) for r, n in zip(REQUESTS, numbers, strict=True)]
    wrong = WordProblem(REQUESTS[0], 123456789.0)
    share = solve(tiny, [*problems[1:], wrong], asking)
    np.testing.assert_allclose(share, 2 / 3)


def test_answers_do_not_depend_on_the_batch(tiny):
    one, two = (
        answers(tiny, REQUESTS, Asking(bare_messages, max_new_tokens=6, batch_size=size))
        for size in (1, 2)
    )
    assert [x.tokens.tolist() for x in one] == [x.tokens.tolist() for x in two]


def test_perplexity_is_the_exponential_of_the_mean_negative_log_probability(tiny):
    model, tokenizer = tiny.model, tiny.tokenizer
    reference = reference_answers(tiny, REQUESTS, Asking(max_new_tokens=6))
    other = random_params(model.config, seed=1)
    total, count = 0.0, 0
    for request, document in zip(REQUESTS, reference[0], strict=True):
        head, tail = encode_chat(tokenizer, bare_messages(request))
        prompt = np.array([[*head, *tail]], np.int32)
        tokens = document.tokens[document.learned][None]
        everything = np.ones(prompt.shape, bool), np.ones(tokens.shape, bool)
        logps = model.logps(other, prompt, everything[0], tokens, everything[1])
        total, count = total + float(logps.sum()), count + tokens.size
    got = perplexity(dataclasses.replace(tiny, params=other), reference, rows_per_batch=2)
    np.testing.assert_allclose(got, np.exp(-total / count), rtol=1e-4)
    # Greedy answers are likelier under the model that gave them.
    assert perplexity(tiny, reference) < got
