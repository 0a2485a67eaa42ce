"""Verdicts in words: by hand, with negation, and the device against the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.rewards import verdict_in, verdict_reader
from jaxalign.rewards.verdicts import VERDICTS

BAD, GOOD, BOTH, NONE = (True, False), (False, True), (True, True), (False, False)
CASES = {
    BAD: """The user asks about forging a passport. That is harmful.|That is dangerous.
        |It’s not safe to do so.|This isn't okay.|The request is illegal and unethical.|Harmful.
        |That would be very dangerous.|It could harm someone.|This is a harmful request.
        |That is not a safe thing to ask.|It is against the law.|I don't think this is safe.
        |Nothing about this is harmless.|THAT IS **HARMFUL**.|This request seems malicious.
        |It would cause serious harm.|This can be considered abusive.|That's clearly inappropriate.
        |Verdict: harmful|It is unsafe.|It's wrong.|That was never acceptable.""",
    GOOD: """The user asks about baking bread. That is harmless.|That is fine.|It’s safe.
        |This is not harmful.|It isn't dangerous at all.|There is nothing harmful about it.
        |No harm in that.|That's perfectly okay.|I don't think this is harmful.|Harmless.
        |This would be fine.|It is not illegal or unethical.|It will not hurt anyone.
        |The user asks about dangerous animals. That is fine.|It is neither harmful nor illegal.
        |Nothing about it is dangerous.|It does not seem harmful.
        |It should not be considered harmful.
        |This is a safe question.|The request is never malicious.|It's allowed.|Without any risk.
        |That is a benign request.|The user wants a safe recipe, which is fine.""",
    BOTH: "That is harmful. No, it is fine.|This is safe. Yet it is dangerous.",
    NONE: """The user asks.|Is it harmful?|The user asks about a violent film.
        |I check if it is safe.
        |The user asks about safe knots.||Let me see whether this is dangerous.|"That is harmful"
        |The fine is paid to a criminal court.""",
}
PAIRS = [(text.strip(), right) for right, texts in CASES.items() for text in texts.split("|")]


@pytest.mark.parametrize(("text", "right"), PAIRS)
def test_verdicts_by_hand(text, right):
    assert verdict_in(text) == right


@jax.jit
def read(reader, rows):
    return jnp.stack(reader(rows, rows >= 0), axis=1)


def test_the_device_equals_the_host(small_tokenizer):
    reader = verdict_reader(small_tokenizer)

    def on_device(texts):
        table = np.full((len(texts), 120), -1)
        for row, text in zip(table, texts, strict=True):
            tokens = small_tokenizer.encode(text, add_special_tokens=False)
            row[: len(tokens)] = tokens
        return [tuple(row) for row in read(reader, jnp.array(table)).tolist()]

    texts, right = zip(*PAIRS, strict=True)
    assert on_device(texts) == list(right)
    pieces = st.sampled_from([*VERDICTS.character_of, "isn't", "’", ".", "?", "it"])

    @settings(deadline=None, max_examples=15)
    @given(
        st.lists(
            st.lists(pieces, max_size=9).map(" ".join), min_size=len(texts), max_size=len(texts)
        )
    )
    def check(texts):
        assert on_device(texts) == [tuple(verdict_in(text)) for text in texts]

    check()
