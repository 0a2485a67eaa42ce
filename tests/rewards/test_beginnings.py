"""How many answers begin alike."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.data.templates import pad
from jaxalign.rewards.beginnings import OpeningReader, begin_alike

TEXTS = ["Use a pan.", " use it", "**Use** both", "Useful?", "\n", "...", "3 pans", "You use a pan"]


def test_what_a_text_begins_with(smollm2_tokenizer):
    """Whatever its case, what stands around it and what it goes on with; of nothing, nothing.

    Of "Useful", which SmolLM2 writes with two tokens, it is the first.
    """
    rows = [smollm2_tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]
    tokens, mask = map(jnp.asarray, pad(rows, 8))
    got = np.asarray(OpeningReader.build(smollm2_tokenizer)(tokens, mask))
    assert got[0] == got[1] == got[2] == got[3] > 0
    assert (got[[4, 5]] == 0).all()
    assert len({*got[[0, 6, 7]]}) == 3
    # Only what is masked in is read.
    later = mask & (jnp.arange(mask.shape[1]) > 0)
    assert OpeningReader.build(smollm2_tokenizer)(tokens, later)[7] == got[0]


def test_the_share_of_others_that_begin_alike():
    """Of four prompts × 2: three answers begin with 7, two of them to one prompt."""
    opening = jnp.array([7, 7, 7, 5, 7, 7, 9, 9])
    where = jnp.array([True, True, True, True, False, False, True, False])
    # The first prompt's two answers have three to other prompts beside them, one of which is 7;
    # that to the second prompt has three beside it, two of which are 7.
    wanted = [1 / 3, 1 / 3, 2 / 3, 0, 0, 0, 0, 0]
    np.testing.assert_allclose(begin_alike(opening, where, 2), wanted, rtol=1e-6)


@pytest.mark.parametrize("count", [1, 0])
def test_no_others_begin_alike(count):
    np.testing.assert_array_equal(begin_alike(jnp.ones(3), jnp.arange(3) < count, 1), np.zeros(3))
