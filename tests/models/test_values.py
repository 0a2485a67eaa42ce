"""A critic's values are the scores of the text so far; a new critic says 0 everywhere."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import SMALL, random_params

from jaxalign.models import Transformer, sequence_scores
from jaxalign.models.values import completion_values, critic_of, critic_params

CONFIG = dataclasses.replace(SMALL, tie_embeddings=False)
MODEL = Transformer(CONFIG, dtype=jnp.float32, remat="dots")
CRITIC = critic_of(MODEL)
PROMPTS = np.array([[3, 1, 4], [9, 0, 0]], np.int32)
PROMPT_MASK = np.array([[1, 1, 1], [1, 0, 0]], bool)
TOKENS = np.random.default_rng(1).integers(0, 32, (4, 3)).astype(np.int32)
MASK = np.arange(3) < np.array([[3], [1], [2], [3]])
PREFIX = [8, 8]


def test_a_value_is_the_score_of_what_stands_before_the_token():
    """With shared prompts and a prefix, against one plain pass for each token."""
    params = random_params(CRITIC.config)
    values = completion_values(
        CRITIC, params, PROMPTS, PROMPT_MASK, TOKENS, MASK, prefix=jnp.array(PREFIX)
    )
    places = [(row, t) for row in range(4) for t in range(3) if MASK[row, t]]
    texts = np.zeros((len(places), 8), np.int32)
    exists = np.zeros(texts.shape, bool)
    for text, there, (row, t) in zip(texts, exists, places, strict=True):
        prompt = PROMPTS[row // 2][PROMPT_MASK[row // 2]]
        before = [*PREFIX, *prompt, *TOKENS[row, :t]]
        text[: len(before)], there[: len(before)] = before, True
    wanted = sequence_scores(CRITIC, params, texts, exists)[:, 0]
    got = np.array([values[place] for place in places])
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert got.std() > 0.1


def test_a_new_critic_is_the_policys_trunk_under_a_head_of_zeros():
    policy = jax.tree.map(jnp.asarray, random_params(CONFIG))
    params = critic_params(policy)
    assert params.keys() == policy.keys() - {"lm_head"} | {"score"}
    wanted = jax.tree.map(jnp.shape, random_params(CRITIC.config))
    assert jax.tree.map(jnp.shape, params) == wanted
    assert params["layers"] is policy["layers"]
    values = completion_values(CRITIC, params, PROMPTS, PROMPT_MASK, TOKENS, MASK)
    np.testing.assert_array_equal(values, np.zeros((4, 3)))


def test_a_model_without_one_score_is_no_critic():
    with pytest.raises(ValueError, match="a critic has one score, not 0"):
        completion_values(MODEL, random_params(CONFIG), PROMPTS, PROMPT_MASK, TOKENS, MASK)
