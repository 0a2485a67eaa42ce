"""Python tools on the split path: the in-graph tool's turns, and what happens when they fail."""

import asyncio
import dataclasses
import re
import threading
import time

import calling_model
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from calling_model import RULES, STOP, TEMPERATURE, T, tokenizer, tool
from tiny_model import random_params

from jaxalign.models.transformer import Transformer
from jaxalign.sampling import HostTool, Temperature, sample, sample_with_host_tool

ENGLISH = "ABDEFGHIJKLMOPQRSUVWXYZfjlmpqvw.,:0123456789"
TOKENIZER = tokenizer(ENGLISH)  # so that it can spell what is said of a tool that fails
CONFIG = dataclasses.replace(calling_model.CONFIG, vocab_size=len(TOKENIZER), max_positions=96)
MODEL = Transformer(CONFIG, dtype=jnp.float32)
PROMPTS = np.random.default_rng(0).integers(0, len(TOKENIZER), (8, 5)).astype(np.int32)
PROMPT_MASK = np.arange(5) < np.random.default_rng(1).integers(1, 6, (8, 1))
TAGS = {"call_tags": ("[", "]"), "answer_tags": ("(", ")")}


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG, scale=0.6)


def arguments(params):
    return MODEL, params, jnp.asarray(PROMPTS), jnp.asarray(PROMPT_MASK), jax.random.key(0)


def settings(**changes):
    return {
        "samples_per_prompt": 4,
        "max_new_tokens": T,
        "method": Temperature(TEMPERATURE),
        "stop": (STOP,),
        "prefix": jnp.array([3, 1]),
    } | changes


def host_sample(params, function, *, timeout=60.0, max_calls=1, **changes):
    made = HostTool(function, timeout=timeout, max_calls=max_calls, **TAGS)
    return sample_with_host_tool(
        *arguments(params), tool=made, tokenizer=TOKENIZER, **settings(**changes)
    )


def answers(rollout):
    """The text of the tool's tokens in each row that called."""
    spelled = np.asarray(rollout.present & ~rollout.mask)
    rows = zip(rollout.tokens, spelled, rollout.mode, strict=True)
    return [TOKENIZER.decode(row[is_tool]) for row, is_tool, mode in rows if mode]


def look_up(category):
    return RULES.get(category, "There is no such category. Categories: a, bb.")


async def look_up_later(category):
    await asyncio.sleep(0.01)
    return look_up(category)


@pytest.mark.parametrize("function", [look_up, look_up_later])
@pytest.mark.parametrize(("max_calls", "new_tokens"), [(1, T), (3, T), (3, 20)])
def test_a_function_that_looks_up_rules_is_the_tool_inside_the_loop(
    params, function, max_calls, new_tokens
):
    inside = sample(
        *arguments(params),
        tool=tool(max_calls, ENGLISH),
        **settings(max_new_tokens=new_tokens),
    )
    outside = host_sample(params, function, max_calls=max_calls, max_new_tokens=new_tokens)
    jax.tree.map(np.testing.assert_array_equal, outside, inside)
    assert 0 < np.mean(outside.mode) < 1 and np.any(outside.cut)


def broken(category):
    raise KeyError(category)


async def broken_later(category):
    raise KeyError(category)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (broken, "KeyError."),
        (broken_later, "KeyError."),
        (lambda category: None, "it returned NoneType, not a string."),
        (lambda category: "\u03a9", "its answer cannot be spelled."),
    ],
)
def test_what_fails_is_answered_and_the_row_goes_on(params, function, said):
    rollout = host_sample(params, function, max_new_tokens=64)
    texts = answers(rollout)
    whole = f"\n(The tool failed: {said})\n"
    assert whole in texts and all(whole.startswith(text) for text in texts)
    after = np.cumsum(rollout.present & ~rollout.mask, axis=1) == len(whole)
    assert (after & rollout.mask).any(), "no row went on"


@pytest.mark.parametrize("is_async", [False, True])
def test_a_call_that_hangs_is_answered_when_its_time_is_over(params, is_async):
    release = threading.Event()

    def hang(category):
        return look_up(category) if category != "a" else str(release.wait(60))

    async def hang_later(category):
        return look_up(category) if category != "a" else str(await asyncio.sleep(60))

    begun = time.monotonic()
    texts = answers(
        host_sample(params, hang_later if is_async else hang, timeout=0.5, max_new_tokens=64)
    )
    release.set()
    assert time.monotonic() - begun < 60
    assert "\n(The tool failed: no answer within 0.5 seconds.)\n" in texts
    assert "\n(Be kind.)\n" in texts


def test_calls_of_one_round_run_at_the_same_time(params):
    running, most = [], []

    def count(category):
        running.append(category)
        time.sleep(0.2)
        most.append(len(running))
        running.remove(category)
        return "No."

    host_sample(params, count)
    assert max(most) > 1


def test_an_answer_longer_than_what_is_left_is_cut_and_flagged(params):
    rollout = host_sample(params, lambda category: "No. " * 100)
    called = np.asarray(rollout.mode) > 0
    assert called.any()
    assert np.asarray(rollout.cut)[called].all() and np.asarray(rollout.present)[called].all()
    assert not np.asarray(rollout.finished)[called].any()


def test_a_device_that_does_not_repeat_itself_is_named(params, monkeypatch):
    """A stand-in for such a device: another key in each round."""
    keys = iter(jax.random.split(jax.random.key(5), 9))

    def unlike(model, params, prompts, mask, key, **rest):
        return sample(model, params, prompts, mask, next(keys), **rest)

    monkeypatch.setattr("jaxalign.sampling.host_tools.sample", unlike)
    with pytest.raises(RuntimeError, match="whose arithmetic is reproducible"):
        host_sample(params, look_up)


def test_bad_arguments_are_named(params):
    with pytest.raises(ValueError, match="timeout must be above 0 seconds, got 0"):
        HostTool(look_up, timeout=0)
    with pytest.raises(ValueError, match="max_calls must be at least 1, got 0"):
        HostTool(look_up, max_calls=0)
    with pytest.raises(ValueError, match="tags must not be empty"):
        HostTool(look_up, call_tags=("", "]"))


def test_tags_in_an_answer_call_nothing(params):
    """A tool that answers with calls and tags is asked as often as the model itself calls."""
    asked = []

    def inject(category):
        asked.append(category)
        return "[a])"

    rollout = host_sample(params, inject, max_calls=3)
    generated = [TOKENIZER.decode(t[m]) for t, m in zip(rollout.tokens, rollout.mask, strict=True)]
    calls = sum(min(3, len(re.findall(r"\[.*?\]", text, re.DOTALL))) for text in generated)
    without_room = int((rollout.cut & rollout.mask[:, -1]).sum())
    assert len(asked) == calls - without_room > 0
