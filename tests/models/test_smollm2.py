"""SmolLM2-135M in float32 against `transformers`, and sampling against training on real prompts."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign.data.prompts import builtin_prompts
from jaxalign.data.templates import alphaalign_messages, bare_messages, encode_prompts
from jaxalign.models import load_pretrained, save_pretrained
from jaxalign.models.heads import logits, output_weight
from jaxalign.models.transformer import Transformer
from jaxalign.sampling import Greedy, Temperature, sample


class Loaded(NamedTuple):
    model: Transformer
    params: Any
    tokenizer: Any


@pytest.fixture(scope="module")
def smollm2(smollm2_path: Path) -> Loaded:
    return Loaded(*load_pretrained(smollm2_path, dtype=jnp.float32))


def greedy(smollm2: Loaded, prompts, new_tokens: int):
    """Continues each prompt past any stop token; `[N, new_tokens]`."""
    return sample(
        smollm2.model,
        smollm2.params,
        jnp.asarray(prompts.tokens),
        jnp.asarray(prompts.mask),
        jax.random.key(0),
        samples_per_prompt=1,
        max_new_tokens=new_tokens,
        method=Greedy(),
        stop=(),
        prefix=jnp.asarray(prompts.prefix),
    )


# Recorded with transformers 5.12 and torch 2.13 in float32 on the same weights: the user's turn
# "Name three fruits.", its greedy continuation, their log-probabilities, and a few logits of the
# first new token. The two best logits of a step are never closer than 0.2.
GOLDEN_TOKENS = [33, 30, 12619, 12310, 198, 34, 30, 1816, 5120, 198, 35, 30, 4924, 3030, 2, 198]
GOLDEN_LOGPS = [
    *(-1.75737, -0.06066, -1.64378, -0.30333, -1.0762, -0.02345, -7e-05, -1.60333),
    *(-0.002, -0.117, -0.01864, -3e-05, -1.64501, -0.08138, -0.19824, -0.00069),
]
GOLDEN_LOGITS = {
    0: 15.1317,
    1: 20.357,
    2: 21.6033,
    504: 29.5252,
    5000: 13.0735,
    20000: 10.1106,
    49151: 11.4596,
}


def test_golden_continuation(smollm2):
    """The recorded continuation, also where torch cannot be installed."""
    prompts = encode_prompts(
        smollm2.tokenizer, bare_messages, ["Name three fruits."], max_tokens=64
    )
    rollout = greedy(smollm2, prompts, len(GOLDEN_TOKENS))
    assert rollout.tokens[0].tolist() == GOLDEN_TOKENS
    assert smollm2.tokenizer.decode(GOLDEN_TOKENS[:14]) == "1. Bananas\n2. Oranges\n3. Grapes"
    np.testing.assert_allclose(rollout.logps[0], GOLDEN_LOGPS, atol=1e-3)


def test_golden_logits(smollm2):
    prompts = encode_prompts(
        smollm2.tokenizer, bare_messages, ["Name three fruits."], max_tokens=64
    )
    ids = np.concatenate([prompts.prefix, prompts.tokens[0]])[None]
    positions = np.arange(ids.shape[1])[None]
    hidden, _ = jax.jit(smollm2.model.apply)(
        {"params": smollm2.params}, ids, positions, positions >= 0
    )
    z = logits(hidden[0, -1], output_weight(smollm2.params))
    np.testing.assert_allclose(
        z[np.array(list(GOLDEN_LOGITS))], list(GOLDEN_LOGITS.values()), atol=1e-3
    )


def test_sampling_and_training_agree_on_log_probabilities(smollm2):
    requests = [prompt.text for prompt in builtin_prompts("heldout")[::156]]
    prompts = encode_prompts(smollm2.tokenizer, alphaalign_messages, requests, max_tokens=128)
    inputs = jnp.asarray(prompts.tokens), jnp.asarray(prompts.mask)
    prefix = jnp.asarray(prompts.prefix)
    assert len(requests) >= 3 and prefix.shape[0] > 100
    rollout = sample(
        smollm2.model,
        smollm2.params,
        *inputs,
        jax.random.key(0),
        samples_per_prompt=2,
        max_new_tokens=24,
        method=Temperature(0.9),
        stop=(smollm2.model.config.eos_token_id,),
        prefix=prefix,
    )
    trained = jax.jit(smollm2.model.logps, static_argnames="temperature")(
        smollm2.params,
        *inputs,
        rollout.tokens,
        rollout.mask,
        prefix=prefix,
        temperature=0.9,
    )
    mask = np.asarray(rollout.mask)
    assert mask.sum() > 50
    np.testing.assert_allclose(rollout.logps[mask], trained[mask], atol=1e-4)


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_exported_model_is_the_same_in_transformers(smollm2, tmp_path):
    """Twenty prompts with 64 greedy tokens each: logits everywhere, and every choice."""
    torch = pytest.importorskip("torch", reason="the test extra brings torch on Python 3.11 only")
    from transformers import AutoModelForCausalLM

    save_pretrained(tmp_path, *smollm2)
    reference = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()

    requests = [prompt.text for prompt in builtin_prompts("heldout")[5::24]]
    prompts = encode_prompts(smollm2.tokenizer, bare_messages, requests, max_tokens=128)
    assert len(requests) == 20
    continuations = np.asarray(greedy(smollm2, prompts, 64).tokens)

    apply = jax.jit(smollm2.model.apply)
    width = len(prompts.prefix) + prompts.tokens.shape[1] + 64
    for tokens, mask, continuation in zip(prompts.tokens, prompts.mask, continuations, strict=True):
        sequence = np.concatenate([prompts.prefix, tokens[mask], continuation])
        ids = np.zeros((1, width), np.int32)
        ids[0, : len(sequence)] = sequence
        positions = np.arange(width)[None]
        hidden, _ = apply({"params": smollm2.params}, ids, positions, positions < len(sequence))
        ours = np.asarray(logits(hidden[0, : len(sequence)], output_weight(smollm2.params)))
        with torch.no_grad():
            theirs = reference(torch.from_numpy(sequence[None]).long()).logits[0].numpy()
        assert np.abs(ours - theirs).max() <= 1e-3

        # A token is greedy for `transformers` too if it is the best there given those before it.
        # In these rows the best logit leads by at least 1.3e-3, more than float32 sums differ.
        np.testing.assert_array_equal(theirs[-65:-1].argmax(axis=1), continuation)
