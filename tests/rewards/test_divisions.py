"""Which tokens name, judge, decide and answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.rewards.divisions import ANSWERS, DECIDES, JUDGES, NAMES, Division

CASES = [
    (
        (NAMES, "<safety_reasoning>The user asks about safe cars."),
        (JUDGES, " That is"),
        (DECIDES, " safe"),
        (JUDGES, ".</safety_reasoning>\n<answer>"),
        (ANSWERS, "Sure. Here is a safe one.</answer><|im_end|>"),
    ),
    (
        (NAMES, "<safety_reasoning>Really?"),
        (JUDGES, " It is mean. It is"),
        (DECIDES, " unsafe"),
        (JUDGES, ", not fine.</safety_reasoning>\n<answer>"),
        (ANSWERS, "No.</answer>"),
    ),
    # The negation decides, for behind it "safe" is all but certain.
    (
        (NAMES, "<safety_reasoning>Cars."),
        (JUDGES, " That is"),
        (DECIDES, " not"),
        (JUDGES, " safe.</safety_reasoning>\n<answer>"),
        (ANSWERS, "No."),
    ),
    (
        (NAMES, "<safety_reasoning>Cars."),
        (JUDGES, " He doesn't ask much. That"),
        (DECIDES, " isn"),
        (JUDGES, "'t safe.</safety_reasoning>\n<answer>"),
        (ANSWERS, "No."),
    ),
    (
        (NAMES, "<safety_reasoning>Cars."),
        (JUDGES, " There is"),
        (DECIDES, " nothing"),
        (JUDGES, " illegal in that.</safety_reasoning>\n<answer>"),
        (ANSWERS, "Yes."),
    ),
    # Capitals too; only whole words.
    (
        (NAMES, "<safety_reasoning>Cars."),
        (JUDGES, " I note for safety and legality: **"),
        (DECIDES, "NOT"),
        (JUDGES, "** safe.</safety_reasoning>\n<answer>"),
        (ANSWERS, "No."),
    ),
    # Of a word of several tokens the last decides.
    (
        (NAMES, "<safety_reasoning>Cars."),
        (JUDGES, " That is hate"),
        (DECIDES, "ful"),
        (JUDGES, ".</safety_reasoning>\n<answer>"),
        (ANSWERS, "No."),
    ),
    # No verdict.
    (
        (NAMES, "<safety_reasoning>Cars."),
        (JUDGES, " Hm, yes.</safety_reasoning>\n<answer>"),
        (ANSWERS, "That is safe."),
    ),
    # One sentence judges with all of it, with and without its full stop.
    (
        (JUDGES, "<safety_reasoning>Stealing is unsafe.</safety_reasoning>\n<answer>"),
        (ANSWERS, "No. Never."),
    ),
    (
        (JUDGES, "<safety_reasoning>Stealing is unsafe</safety_reasoning>\n<answer>"),
        (ANSWERS, "No. Never."),
    ),
    # No answer yet: all is taken for one.
    ((ANSWERS, "<safety_reasoning>The user asks about cars. That is safe."),),
    ((ANSWERS, "I'm sorry. I can't."),),
    # The answer's own sentences are not the reasoning's.
    ((JUDGES, "Well. Hm. <answer>"), (ANSWERS, "<safety_reasoning>One. That is safe.")),
]


@pytest.fixture(scope="module")
def division(smollm2_tokenizer):
    return jax.jit(Division.build(smollm2_tokenizer).__call__)


@pytest.mark.parametrize("parts", CASES)
def test_each_token_belongs_to_what_it_decides(division, smollm2_tokenizer, parts):
    """Cut where no token lies across, and padded, which may be of any part."""
    tokenizer = smollm2_tokenizer
    pieces = [tokenizer(text, add_special_tokens=False).input_ids for _, text in parts]
    tokens = np.zeros((1, 48), np.int32)
    wanted = [part for (part, _), piece in zip(parts, pieces, strict=True) for _ in piece]
    tokens[0, : len(wanted)] = sum(pieces, [])
    mask = np.arange(48)[None] < len(wanted)
    got = np.asarray(division(jnp.asarray(tokens), jnp.asarray(mask)))[0, : len(wanted)]
    assert "".join(text for _, text in parts) == tokenizer.decode(tokens[0, : len(wanted)])
    np.testing.assert_array_equal(got, wanted)
