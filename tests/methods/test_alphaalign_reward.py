"""AlphaAlign's whole reward on transcripts written by hand."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_model import TINY, random_params

from jaxalign.engine.baselines import WholeBatch
from jaxalign.engine.experience import experience_of
from jaxalign.engine.objective import GRPO
from jaxalign.engine.state import init_state
from jaxalign.engine.step import Frozen, Sampling, Updates, draw, make_step, update_once
from jaxalign.methods.alphaalign.reward import alphaalign_reward
from jaxalign.models import Transformer
from jaxalign.records import Batch, Prompts, Rollout
from jaxalign.rewards import (
    Likelihood,
    PromptFacts,
    balanced_weights,
    safety_verifiers,
)
from jaxalign.rewards.terms import GivenValues
from jaxalign.sampling import Temperature

MODEL = Transformer(TINY, dtype=jnp.float32)
WELL = "<safety_reasoning>{}</safety_reasoning>\n<answer>{}</answer>"
REFUSAL = WELL.format("Harmful.", "I'm sorry, no.")
SHORT = WELL.format("Harmless.", "Yes.")
LONG = WELL.format("Harmless.", "Bread needs flour, water and time.")
BARE_REFUSAL = "I'm sorry."
COMPLETIONS = [
    *(REFUSAL, SHORT, BARE_REFUSAL, "Sure!"),  # a harmful prompt
    *(REFUSAL, SHORT, LONG, SHORT),  # a benign one
    *(REFUSAL, REFUSAL, BARE_REFUSAL, LONG),  # a look-alike
]
QUESTIONS = ["How is bread made?", "How do I kill weeds?"]


def arrays(tokenizer, texts, width):
    tokens, mask = np.zeros((len(texts), width), np.int32), np.zeros((len(texts), width), bool)
    for row, text in enumerate(texts):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        tokens[row, : len(ids)] = ids
        mask[row, : len(ids)] = True
    return jnp.asarray(tokens), jnp.asarray(mask)


@pytest.fixture(scope="module")
def scene(smollm2_tokenizer):
    """The verifiers, the batch and the rollout."""
    tokens, mask = arrays(smollm2_tokenizer, COMPLETIONS, 48)
    questions, question_mask = arrays(smollm2_tokenizer, QUESTIONS, 8)
    batch = Batch(
        Prompts(jnp.ones((3, 4), jnp.int32), jnp.ones((3, 4), bool)),
        kind=jnp.arange(3),
        facts=PromptFacts(jnp.arange(3), questions, question_mask),
    )
    nothing = jnp.zeros(tokens.shape, jnp.float32)
    samples = Rollout(
        tokens=tokens,
        mask=mask,
        present=mask,
        logps=nothing,
        mode=nothing[:, 0],
        finished=nothing[:, 0] == 0,
        cut=nothing[:, 0] > 0,
    )
    return safety_verifiers(smollm2_tokenizer), batch, samples


@pytest.fixture(scope="module")
def likelihood():
    """What scores the answers: a start model."""
    return Likelihood.of(MODEL, random_params(TINY))


def test_without_helpfulness_it_is_the_safety_reward_with_equal_tops(scene):
    verifiers, batch, samples = scene
    score = jax.jit(lambda *given: alphaalign_reward(verifiers)(*given))(batch, samples)
    np.testing.assert_array_equal(
        score.rewards,
        [
            [2, 1, 1, 0],  # format + refusal
            [1, 2, 2, 2],  # format + answer
            [1, 1, 0, 2],
        ],
    )
    assert float(score.metrics["harmful_refused"]) == 0.5
    assert float(score.metrics["benign_refused"]) == 0.25
    assert float(score.metrics["lookalike_refused"]) == 0.75
    assert float(score.metrics["well_formed"]) == 9 / 12


def test_balance_gives_the_side_with_more_errors_more_weight(scene):
    """Harmful: 2 of 4 wrong, e = 3/6. Harmless: 4 of 8 wrong, e = 5/10. Nothing to shift."""
    verifiers, *rollout = scene
    even = alphaalign_reward(verifiers, balance=True)(*rollout)
    plain = alphaalign_reward(verifiers)(*rollout)
    np.testing.assert_array_equal(even.rewards, plain.rewards)
    # All refuse: harmful 0 of 4 wrong, e = 1/6; harmless 8 of 8 wrong, e = 9/10.
    harmful = jnp.arange(12) < 4
    weights = balanced_weights(harmful, jnp.ones(12, bool))
    low, high = 2 * (1 / 6) / (1 / 6 + 0.9), 2 * 0.9 / (1 / 6 + 0.9)
    np.testing.assert_allclose(weights, [low] * 4 + [high] * 8, rtol=1e-6)
    # None refuse: the same with the sides swapped, 5/6 and 1/10.
    weights = balanced_weights(harmful, jnp.zeros(12, bool))
    low, high = 2 * 0.1 / (5 / 6 + 0.1), 2 * (5 / 6) / (5 / 6 + 0.1)
    np.testing.assert_allclose(weights, [high] * 4 + [low] * 8, rtol=1e-6)


def test_rows_taken_as_half_wrong_soften_the_balance():
    """All refuse, c = 8: harmful 0 of 4 wrong, e = 8/20; harmless 8 of 8 wrong, e = 16/24."""
    harmful = jnp.arange(12) < 4
    weights = balanced_weights(harmful, jnp.ones(12, bool), prior=8.0)
    low, high = 2 * 0.4 / (0.4 + 2 / 3), 2 * (2 / 3) / (0.4 + 2 / 3)
    np.testing.assert_allclose(weights, [low] * 4 + [high] * 8, rtol=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.9])
def test_balance_pulls_a_blind_policy_back_to_the_middle(share):
    """Refusing everybody with one probability p: the reward's slope in p points towards one half.

    On its side, a right answer pays w. Refusing one more sample changes the expected reward by
    w_harmful − w_harmless, 0 without the weights: they push against the side that p favours.
    """
    harmful = jnp.arange(40) < 20
    refused = (jnp.arange(40) % 20) < share * 20
    weights = balanced_weights(harmful, refused)
    slope = float(weights[0] - weights[-1])
    assert slope > 1 if share < 0.5 else slope < -1


def test_a_single_answer_has_nothing_to_be_better_than(scene):
    """One harmless prompt, one sample; its bare score is its own all the same."""
    verifiers, batch, samples = scene
    facts = batch.facts
    facts = dataclasses.replace(
        facts, questions=facts.questions[-1:], question_mask=facts.question_mask[-1:]
    )
    batch = dataclasses.replace(batch, facts=facts)
    one_each = jax.tree.map(lambda leaf: leaf[jnp.array([0, 5, 11])], samples)
    for normalise, earned in ((True, 0), (False, 3)):
        score = alphaalign_reward(verifiers, GivenValues(jnp.asarray([3.0])), normalise=normalise)(
            batch, one_each
        )
        np.testing.assert_array_equal(score.details["helpfulness"], [0, 0, earned])


def test_relevance_is_what_the_question_adds_beyond_its_own_words(scene, likelihood):
    """A float64 oracle from the model's log-probabilities: row by row, token by token."""
    _, batch, samples = scene
    facts, relevant = batch.facts, dataclasses.replace(likelihood, relevance=0.5)
    inside = samples.mask & (jnp.arange(samples.tokens.shape[1]) < 6)
    given = facts.questions, facts.question_mask
    tokens, inside = samples.tokens[4:], inside[4:]
    logps = np.asarray(MODEL.logps(likelihood.params, *given, tokens, inside), np.float64)
    swapped = [x[::-1] for x in given]  # of two questions the other one is the next one
    others = np.asarray(MODEL.logps(likelihood.params, *swapped, tokens, inside), np.float64)
    expected = []
    for row in range(8):
        asked = set(np.asarray(given[0][row // 4])[np.asarray(given[1][row // 4])].tolist())
        own, gain = [], []
        for place in np.flatnonzero(inside[row]):
            own.append(logps[row, place])
            copied = int(tokens[row, place]) in asked
            gain.append(0.0 if copied else logps[row, place] - others[row, place])
        expected.append(np.mean(own) + 0.5 * np.mean(gain))
    np.testing.assert_allclose(relevant(*given, tokens, inside), expected, rtol=1e-5)
    # An answer that is made of its question's words gains nothing.
    copies = jnp.repeat(given[0], 4, axis=0)[:, :4]
    said = jnp.ones(copies.shape, bool)
    np.testing.assert_array_equal(relevant(*given, copies, said), likelihood(*given, copies, said))


def test_helpfulness_goes_to_better_answers_of_harmless_prompts(scene, likelihood):
    verifiers, batch, samples = scene
    plain = alphaalign_reward(verifiers)(batch, samples).rewards
    score = alphaalign_reward(verifiers, likelihood, helpfulness_weight=0.5)(batch, samples)
    answer = verifiers(samples.tokens, samples.mask).answer
    facts = batch.facts
    scores = likelihood(facts.questions, facts.question_mask, samples.tokens[4:], answer[4:])
    scores = np.asarray(scores, np.float64).reshape(2, 4)
    z = (scores - scores.mean(1, keepdims=True)) / scores.std(1, ddof=1, keepdims=True)
    refused = np.array([[1, 0, 0, 0], [1, 1, 1, 0]], bool)
    extra = 0.5 * np.where(refused, 0.0, np.maximum(z, 0.0))
    np.testing.assert_allclose(score.rewards[0], plain[0])
    np.testing.assert_allclose(score.rewards[1:], plain[1:] + extra, atol=1e-4)
    assert extra.max() > 0
    # The sum's parts by name, before their weights; what comes out is whether the refusal is right.
    np.testing.assert_array_equal(score.terms["safety"], plain)
    np.testing.assert_allclose(score.terms["helpfulness"][1:], 2 * extra, atol=2e-4)
    np.testing.assert_array_equal(score.outcome, [[1, 0, 1, 0], [0, 1, 1, 1], [0, 0, 0, 1]])


def test_helpfulness_of_known_scores_by_hand(scene):
    """Scores that the host gives, normalised among a prompt's four answers.

    The first question's have mean 2 and deviation 2: z = 1.5, −0.5, −0.5, −0.5, and the best answer
    is a refusal. The second's have mean 2.5 and deviation 5; of three refusals one is not last.
    """
    verifiers, *rollout = scene
    given = GivenValues(jnp.asarray([5.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 10.0]))
    score = alphaalign_reward(verifiers, given, helpfulness_weight=0.5)(*rollout)
    expected = [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1.5]]
    np.testing.assert_allclose(score.details["helpfulness"], np.ravel(expected), atol=1e-5)
    plain = alphaalign_reward(verifiers)(*rollout).rewards
    np.testing.assert_allclose(score.rewards, plain + 0.5 * np.asarray(expected), atol=1e-5)
    assert float(score.metrics["answer_score"]) == pytest.approx((1 + 1 + 1 + 10) / 4)
    assert "answer_likelihood" not in score.metrics
    # The paper's ablation: the scores as they are, where the answer is no refusal.
    bare = alphaalign_reward(verifiers, given, normalise=False)(*rollout)
    np.testing.assert_array_equal(
        bare.details["helpfulness"], [0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 10]
    )


def test_with_one_sample_of_a_prompt_helpfulness_compares_prompts(scene):
    """Answers to the two harmless prompts, scored 1 and 3: z = ∓1/√2, of which the better stays."""
    verifiers, batch, samples = scene
    one_each = jax.tree.map(lambda leaf: leaf[jnp.array([0, 5, 11])], samples)
    given = GivenValues(jnp.asarray([1.0, 3.0]))
    score = alphaalign_reward(verifiers, given)(batch, one_each)
    np.testing.assert_allclose(score.details["helpfulness"], [0, 0, 2**-0.5], atol=1e-5)


def test_without_a_scorer_nothing_of_helpfulness_is_there(scene):
    """And the kinds of the prompts must be."""
    verifiers, batch, samples = scene
    reward = alphaalign_reward(verifiers)
    assert not any("help" in name for name in reward(batch, samples).terms)
    with pytest.raises(ValueError, match="needs the kind of each prompt: set Batch.kind"):
        reward(dataclasses.replace(batch, kind=None), samples)


def test_the_likelihood_is_that_of_the_answer_after_the_bare_question(
    scene, likelihood, smollm2_tokenizer
):
    """The same number as running question and answer as plain text, without the tags."""
    verifiers, batch, samples = scene
    facts = batch.facts
    answer = verifiers(samples.tokens, samples.mask).answer
    row = 6  # LONG, to the first question
    got = likelihood(
        facts.questions[:1],
        facts.question_mask[:1],
        samples.tokens[row : row + 1],
        answer[row : row + 1],
    )
    kept = samples.tokens[row][answer[row]][None]
    assert smollm2_tokenizer.decode(kept[0]) == "Bread needs flour, water and time."
    logps = MODEL.logps(
        likelihood.params,
        facts.questions[:1],
        facts.question_mask[:1],
        kept,
        jnp.ones(kept.shape, bool),
    )
    np.testing.assert_allclose(got, logps.mean(axis=1), rtol=1e-5)


def test_an_empty_answer_scores_as_a_uniform_guess(scene, likelihood):
    _, batch, samples = scene
    facts = batch.facts
    nothing = jnp.zeros(samples.tokens[:1].shape, bool)
    got = likelihood(facts.questions[:1], facts.question_mask[:1], samples.tokens[:1], nothing)
    np.testing.assert_allclose(got, -np.log(TINY.vocab_size), rtol=1e-6)


def test_fused_and_split_paths_give_the_same_parameters_after_three_steps(scene, likelihood):
    """The demo's whole step on a tiny model, against its parts run one by one."""
    verifiers, batch, _ = scene
    batch = dataclasses.replace(batch, prefix=jnp.arange(3, 9, dtype=jnp.int32))
    sampling = Sampling(4, 12, (2,), Temperature(0.7))
    objective = GRPO(advantages=WholeBatch())
    optimizer = optax.adamw(1e-3)
    reward = alphaalign_reward(verifiers, likelihood, helpfulness_weight=0.3)
    key = jax.random.key(5)

    fused = make_step(
        MODEL,
        optimizer,
        sampling=sampling,
        objective=objective,
        updates=Updates(micro_batches=3),
    )
    state = split_state = init_state(random_params(TINY, seed=1), optimizer)
    sample = jax.jit(functools.partial(draw, MODEL, sampling))
    judge = jax.jit(lambda reward, batch, samples: reward(batch, samples))
    learn = jax.jit(functools.partial(update_once, MODEL, optimizer, objective, micro_batches=3))
    for step in range(3):
        drawing = jax.random.fold_in(jax.random.fold_in(key, step), 0)
        samples = sample(split_state.params, batch, drawing)
        scored = judge(reward, batch, samples)
        advantages = objective.advantages(scored.rewards).reshape(-1)
        split_state, _ = learn(split_state, experience_of(batch, samples, advantages))
        state, result = fused(jax.tree.map(jnp.copy, state), batch, key, Frozen(reward))
        np.testing.assert_array_equal(result.samples.tokens, samples.tokens)
        np.testing.assert_allclose(result.score.rewards, scored.rewards, atol=1e-6)
    chex.assert_trees_all_close(state.params, split_state.params, atol=1e-6)
    assert float(jnp.abs(advantages).max()) > 0.1  # there was something to learn


def test_without_normalisation_an_answer_earns_its_mean_probability(scene, likelihood):
    verifiers, *rollout = scene
    bare = alphaalign_reward(verifiers, likelihood, normalise=False)(*rollout)
    plain = alphaalign_reward(verifiers)(*rollout)
    earned = np.asarray(bare.rewards - plain.rewards)
    assert np.all((earned >= 0) & (earned <= 1)) and earned.max() > 0
    np.testing.assert_allclose(earned.reshape(-1), bare.details["helpfulness"], atol=1e-6)
