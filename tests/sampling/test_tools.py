"""Tool turns in the loop against a slow reference that stops, appends the answer and re-runs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calling_model import CONFIG, RULES, STOP, TEMPERATURE, VOCABULARY, T, tokenizer, tool
from tiny_model import random_params

from jaxalign.losses import aggregate, clipped_surrogate
from jaxalign.models.heads import output_weight
from jaxalign.models.transformer import Transformer
from jaxalign.sampling import Greedy, Temperature, consultation, sample

MAX_CALLS = 3
BEST = Greedy(TEMPERATURE)
MODEL = Transformer(CONFIG, dtype=jnp.float32)
PREFIX = np.array([3, 1], np.int32)
PROMPTS = np.random.default_rng(0).integers(0, VOCABULARY, (64, 5)).astype(np.int32)
PROMPT_MASK = np.arange(5) < np.random.default_rng(1).integers(1, 6, (64, 1))


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG, scale=0.6)


def run(params, *, method=BEST, new_tokens=T, max_calls=MAX_CALLS, with_tool=True):
    return sample(
        MODEL,
        params,
        PROMPTS,
        PROMPT_MASK,
        jax.random.key(0),
        samples_per_prompt=1,
        max_new_tokens=new_tokens,
        method=method,
        stop=(STOP,),
        prefix=PREFIX,
        tool=tool(max_calls) if with_tool else None,
    )


@jax.jit
def most_probable(params, ids, length):
    positions = jnp.arange(ids.shape[0])
    inputs = ids[None], positions[None], (positions < length)[None]
    hidden, _ = MODEL.apply({"params": params}, *inputs)
    return jnp.argmax(output_weight(params) @ hidden[0, length - 1])


def slow(params, prompt, new_tokens, max_calls):
    """Tokens, which of them were generated, calls, and whether an answer was cut, of one prompt."""
    before = [*PREFIX.tolist(), *prompt.tolist()]
    out, generated, read, calls = [], [], [], 0
    while len(out) < new_tokens:
        ids = np.array([*before, *out] + [0] * 64, np.int32)[:64]
        out.append(int(most_probable(params, ids, len(before) + len(out))))
        generated.append(True)
        if out[-1] == STOP:
            break
        read.append(out[-1])
        call = re.search(r"\[.*?\]", tokenizer().decode(read), re.DOTALL)
        if call:
            read = []
            if calls < max_calls:
                calls += 1
                category = call[0].rpartition("[")[2][:-1].strip()
                unknown = "There is no such category. Categories: a, bb."
                text = f"\n({RULES.get(category, unknown)})\n"
                answer = tokenizer()(text).input_ids
                room = new_tokens - len(out)
                out, generated = out + answer[:room], generated + [False] * len(answer[:room])
                if len(answer) > room:
                    return out, generated, calls, True
    return out, generated, calls, False


@pytest.mark.parametrize("max_calls", [1, 3])
def test_equals_stopping_appending_and_running_again(params, max_calls):
    rollout = run(params, max_calls=max_calls)
    counts, cuts = [], []
    for row, (prompt, mask) in enumerate(zip(PROMPTS, PROMPT_MASK, strict=True)):
        out, generated, calls, cut = slow(params, prompt[mask], T, max_calls)
        present = np.asarray(rollout.present[row])
        assert present.sum() == len(out)
        np.testing.assert_array_equal(rollout.tokens[row][present], out)
        np.testing.assert_array_equal(rollout.mask[row][present], generated)
        assert rollout.mode[row] == (calls > 0)
        assert rollout.cut[row] == cut
        assert rollout.finished[row] == (out[-1] == STOP and generated[-1])
        counts.append(calls)
        cuts.append(cut)
    assert set(counts) == set(range(max_calls + 1)) and True in cuts and False in cuts


@pytest.mark.parametrize("method", [BEST, Temperature(TEMPERATURE)])
def test_logps_are_those_of_the_training_pass_and_a_tools_tokens_are_not_trained(params, method):
    rollout = run(params, method=method)
    mask, present = np.asarray(rollout.mask), np.asarray(rollout.present)
    assert (present & ~mask).any() and not (mask & ~present).any()
    trained = MODEL.logps(
        params,
        PROMPTS,
        PROMPT_MASK,
        rollout.tokens,
        rollout.present,
        prefix=PREFIX,
        temperature=TEMPERATURE,
    )
    after = mask & (np.cumsum(present & ~mask, axis=1) > 0)  # generated after an answer
    assert after.sum() > 50
    np.testing.assert_allclose(rollout.logps[mask], trained[mask], atol=1e-4)
    assert (np.asarray(rollout.logps)[~mask] == 0).all()

    def loss(logps):
        surrogate = clipped_surrogate(logps, rollout.logps, jnp.ones(64), mask=rollout.mask)
        return aggregate(surrogate, rollout.mask)

    gradient = np.asarray(jax.grad(loss)(trained))
    assert (gradient[~mask] == 0).all() and (gradient[mask] != 0).all()


def test_a_tool_that_nobody_calls_changes_nothing(params):
    """A prompt full of calls calls nothing: only what is generated is read."""
    calls = np.tile(tokenizer()("[a]").input_ids, (64, 2))[:, :5].astype(np.int32)
    quiet = jax.tree.map(np.copy, params)
    # No token that closes a call is ever the likeliest.
    closing = [i for i in range(VOCABULARY) if "]" in tokenizer().decode([i])]
    quiet["embed"]["embedding"][closing] = 0.0

    def sampled(tool):
        return sample(
            MODEL,
            quiet,
            calls,
            np.ones(calls.shape, bool),
            jax.random.key(0),
            samples_per_prompt=1,
            max_new_tokens=8,
            method=BEST,
            stop=(STOP,),
            tool=tool,
        )

    with_tool, without = sampled(tool()), sampled(None)
    jax.tree.map(np.testing.assert_array_equal, with_tool, without)
    assert not with_tool.mode.any()


def test_without_a_tool_what_is_present_was_generated(params):
    rollout = run(params, with_tool=False)
    np.testing.assert_array_equal(rollout.present, rollout.mask)
    assert not rollout.mode.any() and not rollout.cut.any()


def test_answers_are_plain_text_of_the_real_tokenizer(smollm2_tokenizer):
    rules = {"privacy": "Protect <|im_end|> people."}
    made = consultation(rules, smollm2_tokenizer)
    rows = [row[:n].tolist() for row, n in zip(made.answers, made.lengths.tolist(), strict=True)]
    texts = [smollm2_tokenizer.decode(row) for row in rows]
    assert texts[0] == "\n<rules>Protect <|im_end|> people.</rules>\n"
    assert texts[1] == "\n<rules>There is no such category. Categories: privacy.</rules>\n"
    assert not {i for row in rows for i in row} & set(smollm2_tokenizer.all_special_ids)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="rules must have at least one category"):
        consultation({}, tokenizer())
    with pytest.raises(ValueError, match="max_calls must be at least 1, got 0"):
        consultation(RULES, tokenizer(), max_calls=0)
    with pytest.raises(ValueError, match="tags must not be empty"):
        consultation(RULES, tokenizer(), call_tags=("", "]"))
    with pytest.raises(ValueError, match="the tokenizer can't spell the answer"):
        consultation({"a": "Ω"}, tokenizer())


def test_any_two_tags_will_do(smollm2_tokenizer):
    """Also tags whose first letter occurs in a category."""
    made = consultation(
        {"violent_crime": "No.", "hate": "Be kind."},
        smollm2_tokenizer,
        call_tags=("consult(", ")"),
    )
    for text, want in (("violent_crime", 0), ("hate", 1), ("c", 2), ("<x>\n", 2)):
        ids = jnp.array([smollm2_tokenizer(f"So I consult( {text} )").input_ids])
        accepted = made.reader.read(ids, jnp.ones(ids.shape, bool)).accepted[0]
        assert int(jnp.argmax(accepted)) == want and accepted[-1]
