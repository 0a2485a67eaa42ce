"""A critic's values are the scores of the text so far; a new critic says 0 everywhere."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import SMALL, random_params

from jaxalign.engine.experience import experience_of
from jaxalign.engine.ppo import completion_values, with_critic
from jaxalign.models import Transformer, sequence_scores
from jaxalign.models.decoder import StatesDecoder, plain_decoder
from jaxalign.records import Batch, Prompts, Rollout

CONFIG = dataclasses.replace(SMALL, tie_embeddings=False)
MODEL = Transformer(CONFIG, dtype=jnp.float32, remat="dots")
SCORER = MODEL.clone(config=dataclasses.replace(CONFIG, num_labels=1))
PROMPTS = np.array([[3, 1, 4], [9, 0, 0]], np.int32)
PROMPT_MASK = np.array([[1, 1, 1], [1, 0, 0]], bool)
TOKENS = np.random.default_rng(1).integers(0, 32, (4, 3)).astype(np.int32)
MASK = np.arange(3) < np.array([[3], [1], [2], [3]])
PREFIX = [8, 8]


def completions(prefix=None):
    zeros = np.zeros(MASK.shape, np.float32)
    no = np.zeros(4, bool)
    samples = Rollout(TOKENS, MASK, MASK, zeros, no.astype(np.int32), no, no)
    return experience_of(Batch(Prompts(PROMPTS, PROMPT_MASK), prefix=prefix), samples, zeros[:, 0])


def test_a_value_is_the_score_of_what_stands_before_the_token():
    """With shared prompts and a prefix, against one plain pass for each token."""
    params = random_params(SCORER.config)
    trunk = {name: leaves for name, leaves in params.items() if name != "score"}
    critic = {"trunk": trunk, "head": params["score"]["kernel"]}
    values = completion_values(MODEL, critic, completions(jnp.array(PREFIX)))
    places = [(row, t) for row in range(4) for t in range(3) if MASK[row, t]]
    texts = np.zeros((len(places), 8), np.int32)
    exists = np.zeros(texts.shape, bool)
    for text, there, (row, t) in zip(texts, exists, places, strict=True):
        prompt = PROMPTS[row // 2][PROMPT_MASK[row // 2]]
        before = [*PREFIX, *prompt, *TOKENS[row, :t]]
        text[: len(before)], there[: len(before)] = before, True
    wanted = sequence_scores(SCORER, params, texts, exists)[:, 0]
    got = np.array([values[place] for place in places])
    np.testing.assert_allclose(got, wanted, atol=1e-5)
    assert got.std() > 0.1


def test_a_new_critic_is_the_policys_trunk_under_a_head_of_zeros():
    policy = jax.tree.map(jnp.asarray, random_params(CONFIG))
    trained = with_critic(MODEL, policy)
    assert trained.keys() == {"policy", "critic"} and trained["policy"] is policy
    critic = trained["critic"]
    assert critic["trunk"].keys() == policy.keys() - {"lm_head"}
    scorer = random_params(SCORER.config)
    assert critic["head"].shape == scorer.pop("score")["kernel"].shape
    assert jax.tree.map(jnp.shape, critic["trunk"]) == jax.tree.map(jnp.shape, scorer)
    assert critic["trunk"]["layers"] is policy["layers"]
    values = completion_values(MODEL, critic, completions())
    np.testing.assert_array_equal(values, np.zeros((4, 3)))


def test_a_decoder_without_states_has_no_critic():
    plain = plain_decoder(lambda params, tokens, mask: params[tokens], max_positions=8)
    assert isinstance(MODEL, StatesDecoder) and not isinstance(plain, StatesDecoder)
    with pytest.raises(ValueError, match="a critic reads hidden states: give a StatesDecoder"):
        with_critic(plain, jnp.eye(4))
