"""ASCL: a tool, modes and IFPO inside the one compiled step; the cold start's filter and tuning."""

import dataclasses
import functools

import calling_model
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from calling_model import RULES, STOP, tokenizer, tool
from tiny_model import random_params

from jaxalign.data import Prompt
from jaxalign.data.templates import pad
from jaxalign.engine.baselines import InverseFrequency, Shrinkage
from jaxalign.engine.objective import GRPO
from jaxalign.engine.state import init_state
from jaxalign.engine.step import Frozen, Sampling, draw, make_step, update_once
from jaxalign.host.errors import InputError
from jaxalign.methods.alphaalign.reward import alphaalign_reward
from jaxalign.methods.ascl.cold_start import (
    Trace,
    balance_traces,
    collect_traces,
    count_traces,
    fine_tune,
    make_documents,
)
from jaxalign.methods.ascl.consulting import Consulting, consulting_metrics
from jaxalign.methods.ascl.openings import Opening, Openings, encode_openings, guided_rollout
from jaxalign.models import Transformer
from jaxalign.records import Batch, Prompts, Rollout
from jaxalign.rewards import Safety, safety_verifiers
from jaxalign.runs.loop import DivergedError
from jaxalign.sampling import Temperature
from jaxalign.sampling.tools import encode_answers

# More letters, so that not every row calls.
LETTERS = "ABDEFGHIJKLMOPQRSUVWXYZfjlmpqvw0123456789+-*/=!?"
TOKENIZER = tokenizer(LETTERS)
CONFIG = dataclasses.replace(calling_model.CONFIG, vocab_size=len(TOKENIZER))
MODEL = Transformer(CONFIG, dtype=jnp.float32)
SAMPLING = Sampling(
    samples_per_prompt=4,
    max_new_tokens=24,
    stop=(STOP,),
    method=Temperature(0.7),
)
OBJECTIVE = GRPO(advantages=Shrinkage(), adjust=InverseFrequency(max_weight=4.0))
KEY = jax.random.key(3)
KIND = np.array([0, 0, 1, 2], np.int32)


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG, scale=0.6)


@functools.cache
def verifiers():
    """Well-formed is here whatever has a letter of the tool's."""
    return safety_verifiers(TOKENIZER, pattern="[ab]")


def batch(seed=0, with_tool=True):
    rng = np.random.default_rng(seed)
    tokens = jnp.asarray(rng.integers(0, len(TOKENIZER), (4, 5)), jnp.int32)
    return Batch(
        Prompts(tokens, jnp.asarray(np.arange(5) < np.array([5, 2, 4, 3])[:, None])),
        kind=jnp.asarray(KIND),
        prefix=jnp.asarray([3, 1], jnp.int32),
        tool=tool(3, LETTERS) if with_tool else None,
    )


def largest_difference(left, right):
    pairs = zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True)
    return max(float(jnp.max(jnp.abs(a - b))) for a, b in pairs)


def test_the_step_with_a_tool_compiles_once_and_equals_the_split_path(params):
    """The split path takes two micro-batches: IFPO's frequencies are the whole batch's.

    By SGD: Adam's first steps are nearly signs, and another fusion's rounding shows as a step.
    """
    optimizer = optax.sgd(0.01)
    reward = Consulting(Safety(verifiers(), balance=True))
    fused = make_step(MODEL, optimizer, sampling=SAMPLING, objective=OBJECTIVE)
    split_update = jax.jit(
        functools.partial(update_once, MODEL, optimizer, OBJECTIVE, micro_batches=2)
    )
    state, split_state = init_state(params, optimizer), init_state(params, optimizer)
    for step in range(3):
        state, result = fused(state, batch(step), KEY, Frozen(reward))

        key = jax.random.fold_in(jax.random.fold_in(KEY, split_state.step), 0)
        samples = draw(MODEL, SAMPLING, split_state.params, batch(step), key)
        given = experience(OBJECTIVE, batch(step), samples, reward(batch(step), samples))
        split_state, _ = split_update(split_state, given)
        np.testing.assert_array_equal(result.samples.tokens, samples.tokens)
        consulted = np.asarray(samples.mode) > 0
        assert 0 < consulted.mean() < 1
        np.testing.assert_allclose(result.metrics["consulted"], consulted.mean(), rtol=1e-6)
        np.testing.assert_array_equal(result.score.details["consulted"], consulted)
        assert float(result.metrics["logp_gap"]) < 1e-4
    assert fused.whole._cache_size() == 1
    assert largest_difference(state.params, split_state.params) < 1e-6
    assert largest_difference(state.params, params) > 1e-3


def experience(objective, batch, samples, score):
    return objective.experience(MODEL, None, batch, samples, score, base=None, parts=1)[0]


def test_ifpo_changes_the_advantages_where_both_modes_occur_and_only_there(params):
    plain = dataclasses.replace(OBJECTIVE, adjust=None)
    for with_tool in (True, False):
        given = batch(with_tool=with_tool)
        samples = draw(MODEL, SAMPLING, params, given, KEY)
        score = Consulting(Safety(verifiers()))(given, samples)
        ifpo, grpo = (
            np.asarray(experience(objective, given, samples, score).rows.advantages)
            for objective in (OBJECTIVE, plain)
        )
        share = np.asarray(samples.mode).reshape(4, 4).mean(axis=1)
        mixed = (share > 0) & (share < 1) & (share != 0.5)  # at one half all weights are 1
        assert mixed.any() == with_tool
        changed = (np.abs(ifpo - grpo) > 1e-6).reshape(4, 4).any(axis=1)
        # What all samples of a prompt share is left alone.
        differ = np.ptp(grpo.reshape(4, 4), axis=1) > 1e-6
        np.testing.assert_array_equal(changed, mixed & differ)


def test_nothing_is_paid_for_consulting(params):
    """The reward is AlphaAlign's without helpfulness, whatever the mode says."""
    samples = draw(MODEL, SAMPLING, params, batch(), KEY)
    other = dataclasses.replace(samples, mode=1 - samples.mode)
    reward = Consulting(Safety(verifiers(), format_weight=0.5, refusal_weight=2.0))
    plain = alphaalign_reward(verifiers(), format_weight=0.5, refusal_weight=2.0)
    expected = plain(batch(), samples).rewards
    for given in (samples, other):
        np.testing.assert_array_equal(reward(batch(), given).rewards, expected)


def test_consulting_rates_by_hand():
    """Two harmful prompts, a benign one and no look-alike; two samples each."""
    nothing = jnp.zeros((6, 1))
    samples = Rollout(
        tokens=nothing,
        mask=nothing,
        present=nothing,
        logps=nothing,
        mode=jnp.array([1, 1, 1, 0, 0, 0]),
        finished=jnp.ones(6, bool),
        cut=jnp.array([True, False, False, False, False, False]),
    )
    metrics = consulting_metrics(jnp.array([0, 0, 0, 0, 1, 1]), samples)
    assert float(metrics["consulted"]) == 0.5
    assert float(metrics["harmful_consulted"]) == 0.75
    assert float(metrics["benign_consulted"]) == 0.0
    assert np.isnan(metrics["lookalike_consulted"])
    np.testing.assert_allclose(metrics["cut"], 1 / 6, rtol=1e-6)


# --- the cold start ------------------------------------------------------------------------------


# Two calls of the tests' tool and a letter, as `encode_openings` makes them of tags.
OPENINGS = Openings(
    {
        category: Opening(*encode_answers(TOKENIZER, [f"[{category}]", f"\n({text})\n"]))
        for category, text in RULES.items()
    },
    Opening(encode_answers(TOKENIZER, ["A"])[0], []),
)


# Letters that stand for another call.
AGAIN = "GHIJKLMOPQRSTUVW0123456789"
CALLING = dict.fromkeys(map(ord, AGAIN), "<consult>")


class OneBatch:
    """Stands in for `Batches`: the same four prompts in every step."""

    prompts = [
        Prompt("h1", "one", "harmful", "hate"),
        Prompt("h2", "two", "harmful", "hate"),
        Prompt("b", "three", "benign", "general"),
        Prompt("l", "four", "lookalike", "general"),
    ]

    def prompts_at(self, step):
        return self.prompts

    def __call__(self, step):
        return batch()

    def encode(self, prompts):
        rows = jnp.array([[p.id for p in self.prompts].index(prompt.id) for prompt in prompts])
        whole = batch()
        return dataclasses.replace(whole, prompts=jax.tree.map(lambda x: x[rows], whole.prompts))


@pytest.fixture(scope="module")
def collected(params):
    return collect_traces(
        MODEL,
        params,
        dataclasses.replace(SAMPLING, max_new_tokens=48),
        OneBatch(),
        safety_verifiers(TOKENIZER, pattern="[BDEFXYZfjlmpqvw]"),
        rounds=8,
        key=KEY,
        openings=OPENINGS,
        decode=lambda ids: TOKENIZER.decode(ids).translate(CALLING),
    )


def test_the_filter_keeps_what_turned_out_right(collected):
    """Nothing refuses here, so no trace of a harmful prompt is right."""
    right, every = collected
    assert len(every) == 8 * 4 * 4
    expected, repeating = [], []
    for trace in every:
        spoken = TOKENIZER.decode(trace.spoken)
        formed = any(letter in "BDEFXYZfjlmpqvw" for letter in spoken)
        if not trace.prompt.is_harmful and formed and STOP in trace.own:
            again = sum(letter in AGAIN for letter in spoken) > 1
            (repeating if again else expected).append(trace)
    assert expected and repeating and right == expected
    counts = count_traces(right)
    assert counts["harmful, consulted"] == counts["harmful, alone"] == 0


def test_a_guided_trace_is_its_opening_and_what_the_model_makes_of_it(params):
    """Its log-probabilities are those of the training pass behind the original prompt."""
    calls = OPENINGS.calls
    chosen = [calls["a"], OPENINGS.alone, calls["bb"], calls["a"]]
    width = OPENINGS.size
    samples = guided_rollout(MODEL, SAMPLING, params, batch(), chosen, key=KEY, width=width)
    assert samples.tokens.shape == (16, SAMPLING.max_new_tokens - width)
    assert samples.mask[:, 0].all()
    given = batch()
    starts = [len(opening.tokens) for opening in chosen for _ in range(4)]
    owns = [tokens[mask] for tokens, mask in zip(samples.tokens, samples.mask, strict=True)]
    whole = [[*chosen[row // 4].tokens, *own] for row, own in enumerate(owns)]
    logps = MODEL.logps(
        params,
        given.prompts.tokens,
        given.prompts.mask,
        *pad(whole, SAMPLING.max_new_tokens),
        prefix=given.prefix,
        temperature=0.7,
    )
    for row, (start, own) in enumerate(zip(starts, owns, strict=True)):
        theirs = logps[row, start : start + len(own)]
        np.testing.assert_allclose(samples.logps[row][samples.mask[row]], theirs, atol=1e-4)
    short = dataclasses.replace(SAMPLING, max_new_tokens=width)
    with pytest.raises(InputError, match="leaves no room behind a consultation"):
        guided_rollout(MODEL, short, params, batch(), chosen, key=KEY, width=width)


def test_a_call_is_of_the_prompts_hazard_or_the_general_one(smollm2_tokenizer):
    rules = {"hate": "No slurs.", "general": "Judge."}
    openings = encode_openings(rules, smollm2_tokenizer)
    hate, general = openings.calls["hate"], openings.calls["general"]
    assert smollm2_tokenizer.decode(hate.asked) == "<consult>hate</consult>"
    assert smollm2_tokenizer.decode(hate.answered) == "\n<rules>No slurs.</rules>\n"
    hateful, other = (Prompt("x", "y", "harmful", c) for c in ("hate", "privacy"))
    assert openings.of(hateful, consults=True) == hate
    assert openings.of(other, consults=True) == general
    assert Openings({"hate": hate}, openings.alone).of(other, consults=True) == hate
    alone = openings.of(hateful, consults=False)
    assert smollm2_tokenizer.decode(alone.asked) == "<safety_reasoning>" and not alone.answered
    assert openings.size == max(len(hate.tokens), len(general.tokens))


def traces(*rows):
    """(kind, consulted, token) each."""
    return [
        Trace(Prompt("x", "same", kind, "general"), Opening([7], [8] * consulted), [token, STOP])
        for kind, consulted, token in rows
    ]


def kept_tokens(given, cap):
    return [trace.own[0] for trace in balance_traces(given, cap=cap)]


def test_both_choices_are_kept_alike_and_no_text_twice():
    given = traces(
        ("harmful", True, 1),
        ("harmful", True, 1),  # again
        ("harmful", True, 2),
        ("harmful", False, 4),
        ("benign", True, 5),  # never right alone
        ("benign", True, 6),
        ("benign", True, 7),  # past the cap
    )
    assert kept_tokens(given, cap=1) == [1, 4, 5]
    # Two of each kind at most; the harmful ones, one of each choice, allow for one harmless.
    assert kept_tokens(given, cap=2) == [1, 4, 5]
    harmless = given[4:7]
    assert kept_tokens(harmless, cap=2) == [5, 6]  # nothing to balance them with
    with pytest.raises(InputError, match="no sampled trace was well-formed and right"):
        balance_traces([], cap=2)


def test_there_are_as_many_refusals_as_answers():
    """Of four, one and five traces for each choice; benign has least and leaves its rest."""
    numbers = iter(range(100))
    given = traces(
        *(
            (kind, choice, next(numbers))
            for kind, count in (("harmful", 4), ("benign", 1), ("lookalike", 5))
            for choice in (True, False)
            for _ in range(count)
        )
    )
    counts = count_traces(balance_traces(given, cap=24))
    assert list(counts.values()) == [4, 4, 1, 1, 3, 3]
    few = [given[row] for row in (0, 4, *range(8, 20))]  # one harmful trace of each choice
    assert list(count_traces(balance_traces(few, cap=24)).values()) == [1, 1, 0, 0, 1, 1]


def test_tuning_makes_the_traces_likelier_and_skips_the_tools_tokens(params, collected):
    _, every = collected
    kept = [trace for trace in every if trace.opening.answered][:8]
    asked = OneBatch().encode([trace.prompt for trace in kept])
    tokens, present = pad([[*x.opening.tokens, *x.own] for x in kept], 48)
    mask = present.copy()
    for row, trace in enumerate(kept):
        start = len(trace.opening.asked)
        mask[row, start : start + len(trace.opening.answered)] = False
    documents, _ = make_documents(kept, OneBatch())
    assert sum(document.learned.sum() for document in documents) == mask.sum() < present.sum()

    @jax.jit
    def logps_of(params):
        prompts = asked.prompts.tokens, asked.prompts.mask
        return MODEL.logps(params, *prompts, tokens, present, prefix=asked.prefix)

    def likelihood(params):
        return np.asarray(logps_of(params))[mask].mean()

    after, losses = fine_tune(
        MODEL,
        params,
        kept,
        OneBatch(),
        optax.adam(3e-3),
        epochs=12,
        batch_size=8,
        row_length=80,
        seed=0,
    )
    np.testing.assert_allclose(losses[0], -likelihood(params), rtol=1e-5)
    assert len(losses) == 12 and losses[-1] < 0.8 * losses[0]
    assert likelihood(after) > likelihood(params)


def test_tuning_that_diverges_is_named(params, collected):
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), params)
    with pytest.raises(DivergedError, match="lower cold_start.learning_rate"):
        fine_tune(
            MODEL,
            broken,
            collected[1],
            OneBatch(),
            optax.adam(1e-3),
            epochs=1,
            batch_size=8,
            row_length=80,
            seed=0,
        )
