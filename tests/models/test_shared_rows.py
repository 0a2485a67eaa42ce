"""Completions that share rows have the log-probabilities and gradients they have alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import SMALL, random_params

from jaxalign.models.attention import OPENED, KeyValues, attend
from jaxalign.models.fused_attention import attend_fused
from jaxalign.models.shared_rows import lay_rows_out, row_length, rows_of
from jaxalign.models.transformer import Transformer

MODEL = Transformer(SMALL, dtype=jnp.float32)
PREFIX = jnp.asarray([8, 8, 2], jnp.int32)


def masks(prompts, completions, width, new, *, left=False):
    """Of prompts and completions of these lengths."""
    prompt = np.arange(width) < np.array(prompts)[:, None]
    prompt = prompt[:, ::-1] if left else prompt
    return jnp.asarray(prompt), jnp.asarray(np.arange(new) < np.array(completions)[:, None])


def test_rows_by_hand():
    """Prompts of 2 and 3 tokens, whose last ones open completions; rows of 2 (3 + 4) places."""
    prompt_mask, mask = masks((2, 3), (4, 3, 0, 2), 3, 4)
    prompts = jnp.asarray([[10, 11, 0], [20, 21, 22]])
    tokens = jnp.asarray([[1, 2, 3, 4], [5, 6, 7, 0], [0, 0, 0, 0], [8, 9, 0, 0]])
    layout = lay_rows_out(prompt_mask, mask, rows=1)
    assert layout.source.shape == (1, 4, row_length(3, 4)) and int(layout.rows) == 1
    rows = rows_of(layout.part(0, 1), prompts, prompt_mask, tokens, offset=3)
    first, second = OPENED + 1, 2 * OPENED + 1
    shown = {
        "tokens": [10, 11, 1, 2, 3, 11, 5, 6, 20, 21, 22, 8, 0, 0],
        "positions": [3, 4, 5, 6, 7, 4, 5, 6, 3, 4, 5, 6, 0, 0],
        "documents": [1, *4 * [first], *3 * [second], 2, 2, *2 * [2 * OPENED + 2], 0, 0],
    }
    for name, values in shown.items():
        assert getattr(rows, name).tolist() == [values], name
    targets = layout.take(jnp.zeros_like(prompts), tokens)
    assert targets[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 0, 8, 9, 0, 0]
    back = layout.back(targets.astype(jnp.float32))
    np.testing.assert_array_equal(back, jnp.where(mask, tokens, 0))


@settings(deadline=None, max_examples=30)
@given(st.data(), st.sampled_from([(5, 1), (3, 4)]), st.sampled_from([1, 2, 3]))
def test_every_token_has_one_place_and_a_prompt_of_its_own(data, sizes, rows):
    (count, group), width, new = sizes, 4, 6
    lengths = st.lists(st.integers(1, width), min_size=count, max_size=count)
    drawn = st.lists(st.integers(0, new), min_size=count * group, max_size=count * group)
    prompt_mask, mask = masks(data.draw(lengths), data.draw(drawn), width, new, left=True)
    layout = lay_rows_out(prompt_mask, mask, rows=rows)
    assert layout.source.shape[1] % rows == 0
    filled = np.asarray(layout.source)[0]
    own = count * width + np.flatnonzero(mask)
    np.testing.assert_array_equal(np.sort(filled[filled >= count * width]), own)
    place = np.asarray(layout.place)
    np.testing.assert_array_equal(filled.reshape(-1)[place[place >= 0]], own)
    assert layout.holds.tolist() == mask.tolist()
    for row in filled:
        completions = {int(x - count * width) // new for x in row if x >= count * width}
        prompts = {completion // group for completion in completions}
        body = [(n, p) for n in prompts for p in np.flatnonzero(np.asarray(prompt_mask)[n])[:-1]]
        assert sorted(row[(row >= 0) & (row < count * width)]) == sorted(
            n * width + p for n, p in body
        )
    parts = [layout.part(index, rows).holds for index in range(layout.source.shape[1] // rows)]
    np.testing.assert_array_equal(np.sum(parts, axis=0), mask)


@pytest.mark.parametrize(
    ("group", "left", "prefix"), [(1, False, PREFIX), (3, True, PREFIX), (8, False, None)]
)
def test_log_probabilities_and_gradients_are_those_of_rows_of_their_own(group, left, prefix):
    rng = np.random.default_rng(group)
    count, width, new = 4, 5, 7
    lengths = rng.integers(0, new + 1, count * group)
    prompt_mask, mask = masks(rng.integers(1, width + 1, count), lengths, width, new, left=left)
    prompts = jnp.asarray(rng.integers(SMALL.vocab_size, size=(count, width)))
    tokens = jnp.asarray(rng.integers(SMALL.vocab_size, size=(count * group, new)))
    weights = jnp.asarray(rng.normal(size=mask.shape) * np.asarray(mask))
    more = {"prefix": prefix, "temperature": 0.7}

    def alone(params):
        logps = MODEL.logps(params, prompts, prompt_mask, tokens, mask, **more)
        return jnp.where(mask, logps * weights, 0.0).sum(), logps

    def shared(params):
        layout = lay_rows_out(prompt_mask, mask, rows=2)
        parts = [layout.part(i, 2) for i in range(layout.source.shape[1] // 2)]
        logps = sum(
            MODEL.shared_logps(params, prompts, prompt_mask, tokens, part, **more) for part in parts
        )
        return (logps * weights).sum(), logps

    params = random_params(SMALL)
    (expected, logps), (value, got) = (
        jax.jit(jax.value_and_grad(each, has_aux=True))(params)[0] for each in (alone, shared)
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(got, jnp.where(mask, logps, 0.0), atol=1e-5)
    left_out, right = (jax.jit(jax.grad(lambda p, f=f: f(p)[0]))(params) for f in (alone, shared))
    for one, other in zip(jax.tree.leaves(left_out), jax.tree.leaves(right), strict=True):
        np.testing.assert_allclose(other, one, atol=1e-5 * max(1.0, float(jnp.abs(one).max())))


def test_the_fused_kernel_sees_what_blocks_see():
    """A prompt, two of its completions, another prompt and its completion, padding."""
    documents = jnp.asarray([[1, 1, *2 * [OPENED + 1], 2 * OPENED + 1, 2, OPENED + 2, 0]])
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    query, keys, values = draw(1, 8, 4, 4), draw(1, 2, 8, 4), draw(1, 2, 8, 4)
    prefix = KeyValues(draw(1, 2, 3, 4), draw(1, 2, 3, 4), jnp.ones((1, 3), bool))
    blocks = attend(query, keys, values, documents, (prefix,))
    fused = attend_fused(query, keys, values, documents, (prefix,), kernel="xla")
    np.testing.assert_allclose(fused[:, :-1], blocks[:, :-1], atol=1e-5)
    # The second completion sees its prompt and itself, not the first one.
    changed = attend(query, keys.at[:, :, 3].add(1.0), values, documents, (prefix,))
    differs = jnp.abs(changed - blocks).max(axis=(0, 2, 3)) > 1e-6
    assert differs.tolist() == [False, False, False, True, False, False, False, False]


def test_more_prompts_than_can_be_numbered_are_refused():
    prompt_mask, mask = jnp.ones((OPENED, 1), bool), jnp.ones((OPENED, 1), bool)
    with pytest.raises(ValueError, match="65536 prompts of 1 samples on a device can't share rows"):
        lay_rows_out(prompt_mask, mask, rows=1)
