"""How likely an answer is after its own request and after another: by the plain forward pass."""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import TINY, random_params

from jaxalign.answers import LanguageModel
from jaxalign.data.prompts import Prompt
from jaxalign.data.templates import bare_messages, encode_chat
from jaxalign.evaluation import own_request
from jaxalign.evaluation.own_request import answer_gain, likelier_for_own
from jaxalign.models import Transformer

REQUESTS = ["Name a fruit.", "Why is the sky blue at noon?", "Tell me a joke.", "Hi."]
ANSWERS = ["An apple is one.", "Light scatters in air.", "", "Hello, and what would you like?"]


@pytest.fixture(scope="module")
def tiny(smollm2_tokenizer: Any) -> LanguageModel:
    return LanguageModel(
        Transformer(TINY, dtype=jnp.float32), random_params(TINY), smollm2_tokenizer
    )


def plain_mean(lm: LanguageModel, request: str, answer: str) -> float:
    """Of one answer alone, from all logits."""
    head, tail = encode_chat(lm.tokenizer, bare_messages(request))
    asked, said = [*head, *tail], lm.tokenizer(answer, add_special_tokens=False).input_ids
    one = np.ones((1, len(asked)), bool), np.ones((1, len(said)), bool)
    logps = lm.model.logps(
        lm.params, jnp.asarray([asked]), one[0], jnp.asarray([said], jnp.int32), one[1]
    )
    return float(logps.mean())


def test_the_gain_is_the_difference_of_two_means(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_request, "_LENGTH", 64)  # several rows
    monkeypatch.setattr(own_request, "_ROWS", 1)  # and batches
    others = [*REQUESTS[1:], REQUESTS[0]]
    found = answer_gain(tiny, REQUESTS, others, ANSWERS)
    expected = [
        plain_mean(tiny, own, answer) - plain_mean(tiny, other, answer) if answer else 0.0
        for own, other, answer in zip(REQUESTS, others, ANSWERS, strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert found[2] == 0.0 and (found[[0, 1, 3]] != 0).all()


def test_refusals_and_harmful_prompts_are_left_out(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of four harmless prompts one is refused and one was too long; a model finds one likelier."""
    asked = []

    def gain(lm: Any, requests: Any, others: Any, answers: Any) -> np.ndarray:
        asked.extend(zip(requests, others, answers, strict=True))
        return np.array([0.5, -0.5], np.float32)

    monkeypatch.setattr(own_request, "answer_gain", gain)
    prompts = [Prompt(str(i), text, "benign", "general") for i, text in enumerate(REQUESTS)]
    prompts.append(Prompt("h", "How do I rob a bank?", "harmful", "general"))
    rows = [[{"completion": x}] for x in (ANSWERS[0], "I can't help with that.", "He!", "Money.")]
    answers = [*rows[:2], [], rows[2], rows[3]]
    share = likelier_for_own(tiny, prompts, answers)
    assert (share["rate"], share["n"]) == (0.5, 2)
    assert [(own, text) for own, _, text in asked] == [(REQUESTS[0], ANSWERS[0]), ("Hi.", "He!")]
    assert all(other in REQUESTS and other != own for own, other, _ in asked)
    assert likelier_for_own(tiny, prompts, [[]] * 5)["rate"] is None
    assert likelier_for_own(tiny, prompts[:1], answers[:1])["rate"] is None, "there is no other"
