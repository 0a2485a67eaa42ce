"""Which tokens name, judge and answer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.rewards.divisions import Division

CASES = [
    (
        "<safety_reasoning>The user asks about a car.",
        " That is safe.</safety_reasoning>\n<answer>",
        "Sure. Here is one.</answer><|im_end|>",
    ),
    (
        "<safety_reasoning>Really?",
        " It is mean. It is unsafe</safety_reasoning>\n<answer>",
        "No.</answer>",
    ),
    # One sentence judges with all of it, with and without its full stop.
    ("", "<safety_reasoning>Stealing is unsafe.</safety_reasoning>\n<answer>", "No. Never."),
    ("", "<safety_reasoning>Stealing is unsafe</safety_reasoning>\n<answer>", "No. Never."),
    # No answer yet: all is taken for one.
    ("", "", "<safety_reasoning>The user asks about cars. That is safe."),
    ("", "", "I'm sorry. I can't."),
    # The answer's own sentences are not the reasoning's.
    ("", "Well. Hm. <answer>", "<safety_reasoning>One. Two."),
]


@pytest.fixture(scope="module")
def division(smollm2_tokenizer):
    return jax.jit(Division.build(smollm2_tokenizer).__call__)


@pytest.mark.parametrize("parts", CASES)
def test_each_token_belongs_to_what_it_decides(division, smollm2_tokenizer, parts):
    """Cut where no token lies across, and padded, which may be of any part."""
    tokenizer = smollm2_tokenizer
    pieces = [tokenizer(part, add_special_tokens=False).input_ids for part in parts]
    tokens = np.zeros((1, 48), np.int32)
    wanted = [number for number, piece in enumerate(pieces) for _ in piece]
    tokens[0, : len(wanted)] = sum(pieces, [])
    mask = np.arange(48)[None] < len(wanted)
    got = np.asarray(division(jnp.asarray(tokens), jnp.asarray(mask)))[0, : len(wanted)]
    assert "".join(parts) == tokenizer.decode(tokens[0, : len(wanted)])
    np.testing.assert_array_equal(got, wanted)
