"""The page's length reward by hand, on completions of which each has its length and its verdict."""

import re
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_model import TINY, random_params

from experiments.short_reasoning import PRESETS, build, length_reward
from jaxalign.engine import GRPO, WholeBatch
from jaxalign.host.errors import InputError
from jaxalign.models import Transformer
from jaxalign.records import Batch, Prompts, Rollout
from jaxalign.rewards import PromptFacts
from jaxalign.runs.choices import change

ROOT = Path(__file__).parents[2]
REASONINGS = {  # tokens, without the tags
    "It asks for theft, a crime.": 8,
    "It asks for theft.": 5,
    "It is theft": 3,
    "It asks how to steal a car, and theft is a crime.": 14,
}
ANSWERS = ["I cannot help with theft.", "I cannot help.", "Break its window.", "I cannot help."]
# λ of 3 to 14 tokens; the third is wrong, so its λ of 1/2 becomes 0.
EXPECTED = [0.5 - 5 / 11, 0.5 - 2 / 11, 0.0, -0.5]


@pytest.fixture(scope="module")
def samples(smollm2_tokenizer):
    """Four completions of a harmful prompt."""
    texts = [
        f"<safety_reasoning>{reasoning}</safety_reasoning><answer>{answer}</answer>"
        for reasoning, answer in zip(REASONINGS, ANSWERS, strict=True)
    ]
    rows = smollm2_tokenizer(texts, padding=True, padding_side="right", return_tensors="np")
    tokens, mask = rows.input_ids, rows.attention_mask.astype(bool)
    nothing = np.zeros(4)
    return Rollout(tokens, mask, mask, 0.0 * tokens, nothing, nothing, nothing)


def test_a_group_of_one_length_gets_nothing_and_a_wrong_one_no_bonus():
    lengths = np.array([[4, 8, 6], [4, 8, 6], [5, 5, 5]])
    right = np.array([[True] * 3, [False] * 3, [True, False, True]])
    np.testing.assert_allclose(
        length_reward(lengths, right), [[0.5, -0.5, 0], [0, -0.5, 0], [0, 0, 0]]
    )


def test_one_completion_of_a_prompt_is_no_group():
    """The length reward would be nothing."""
    demo = PRESETS["demo"]
    one = change(demo, samples_per_prompt=1, objective=GRPO(advantages=WholeBatch()))
    with pytest.raises(InputError, match="samples_per_prompt=1: the length reward compares"):
        one.check()
    change(one, length_weight=0.0).check()


def test_it_is_added_to_alphaaligns_and_measures_the_reasoning(smollm2_tokenizer, samples):
    recipe = build(PRESETS["demo"], Transformer(TINY), smollm2_tokenizer, [])
    asked = np.ones((1, 3), np.int32)
    questions = np.zeros((0, 3), np.int32)  # of harmless prompts, which are none
    facts = PromptFacts(np.arange(1), questions, questions)
    batch = Batch(Prompts(asked, asked > 0), kind=np.zeros(1, np.int32), facts=facts)
    reward = recipe.reward(random_params(TINY))
    score = jax.jit(lambda reward, batch, samples: reward(batch, samples))(reward, batch, samples)
    np.testing.assert_allclose(score.terms["short"], [EXPECTED], atol=1e-6)
    total = score.terms["safety"] + 0.5 * score.terms["short"]
    np.testing.assert_allclose(score.rewards, total, atol=1e-6)
    assert score.outcome.tolist() == [[1, 1, 0, 1]]


def test_the_walk_through_quotes_the_page():
    page = (ROOT / "experiments" / "short_reasoning.py").read_text()
    text = (ROOT / "docs" / "your-own-method.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert blocks and all(block in page for block in blocks)
