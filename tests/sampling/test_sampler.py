"""The sampler against a slow reference, against training's log-probabilities, and its masks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import SMALL, random_params

from jaxalign.models.heads import output_weight
from jaxalign.models.transformer import Transformer
from jaxalign.records import Rollout, of_rows
from jaxalign.sampling import Greedy, Temperature, TopK, TopP, sample
from jaxalign.sampling.sampler import _sample

CONFIG = dataclasses.replace(SMALL, vocab_size=23, max_positions=32)
MODEL = Transformer(CONFIG, dtype=jnp.float32)
NEW_TOKENS = 8
TEMPERATURE = 0.7
PREFIX = jnp.array([8, 8, 2], jnp.int32)
PROMPTS = [[3, 1, 4, 1, 5], [9], [2, 6, 5]]
# Left-padded, and the padding is an ordinary id.
PADDED = np.array([[3, 1, 4, 1, 5], [7, 7, 7, 7, 9], [7, 7, 2, 6, 5]], np.int32)
PROMPT_MASK = np.arange(5) >= 5 - np.array([[5], [1], [3]])


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG, scale=0.4)


DRAW, BEST = Temperature(TEMPERATURE), Greedy(TEMPERATURE)
STOP = (2, 11)


def run(
    params,
    *,
    method=DRAW,
    stop=STOP,
    seed=0,
    prompts=PADDED,
    prompt_mask=PROMPT_MASK,
    new_tokens=NEW_TOKENS,
):
    return sample(
        MODEL,
        params,
        prompts,
        prompt_mask,
        jax.random.key(seed),
        samples_per_prompt=4,
        max_new_tokens=new_tokens,
        method=method,
        stop=stop,
        prefix=PREFIX,
    )


@jax.jit
def training_logps(params, tokens, mask):
    return MODEL.logps(
        params,
        PADDED,
        PROMPT_MASK,
        tokens,
        mask,
        prefix=PREFIX,
        temperature=TEMPERATURE,
    )


@jax.jit
def most_probable(params, ids, length):
    """The next token after the first `length` of `ids` `[S]`, by one plain pass."""
    positions = jnp.arange(ids.shape[0])
    inputs = ids[None], positions[None], (positions < length)[None]
    hidden, _ = MODEL.apply({"params": params}, *inputs)
    return jnp.argmax(output_weight(params) @ hidden[0, length - 1])


def slow_greedy(params, stop):
    """Runs the whole sequence anew for every token of every prompt."""
    completions = []
    for prompt in PROMPTS:
        ids = [*PREFIX.tolist(), *prompt]
        start = len(ids)
        while len(ids) < start + NEW_TOKENS and not (len(ids) > start and ids[-1] in stop):
            padded = np.array(ids + [0] * (CONFIG.max_positions - len(ids)), np.int32)
            ids.append(int(most_probable(params, padded, len(ids))))
        completions.append(ids[start:])
    return completions


def rows_of(rollout: Rollout):
    tokens, mask = np.asarray(rollout.tokens), np.asarray(rollout.mask)
    return [row[exists].tolist() for row, exists in zip(tokens, mask, strict=True)]


def assert_well_formed(rollout: Rollout, stop):
    """A mask is a run from the left, ends at the first stop token, and all is zero beyond it."""
    tokens, mask = np.asarray(rollout.tokens), np.asarray(rollout.mask)
    lengths = mask.sum(axis=1)
    np.testing.assert_array_equal(mask, np.arange(mask.shape[1]) < lengths[:, None])
    assert (lengths > 0).all()
    assert (tokens[~mask] == 0).all()
    assert (np.asarray(rollout.logps)[~mask] == 0).all()
    for row, length, finished in zip(tokens, lengths, np.asarray(rollout.finished), strict=True):
        assert not set(row[: length - 1]) & set(stop)
        assert finished == (row[length - 1] in stop)
        assert finished or length == mask.shape[1]


def test_greedy_equals_running_everything_again(params):
    free = run(params, method=BEST, stop=())
    assert not free.finished.any()
    # Ids that this model likes, so that two of the prompts meet a stop and at different places.
    stop = (int(free.tokens[0, 3]), int(free.tokens[8, 5]))
    stopped = run(params, method=BEST, stop=stop)
    assert stopped.finished[0] and stopped.finished[8]
    for rollout, ids in ((free, ()), (stopped, stop)):
        assert_well_formed(rollout, ids)
        assert rows_of(rollout) == [row for row in slow_greedy(params, ids) for _ in range(4)]


@pytest.mark.parametrize(
    "method", [BEST, DRAW, TopK(3, temperature=TEMPERATURE), TopP(0.7, temperature=TEMPERATURE)]
)
def test_logps_are_those_of_the_training_pass(params, method):
    rollout = run(params, method=method)
    assert_well_formed(rollout, STOP)
    mask = np.asarray(rollout.mask)
    trained = training_logps(params, rollout.tokens, rollout.mask)
    np.testing.assert_allclose(rollout.logps[mask], trained[mask], atol=1e-4)
    assert (rollout.mode == 0).all()
    assert rollout.temperature == method.temperature


def test_samples_of_a_prompt_lie_next_to_each_other(params):
    """The prompts in another order give the same groups in that order."""
    order = [2, 0, 1]
    rollout = run(params, method=BEST)
    first = rows_of(rollout)
    other = rows_of(run(params, method=BEST, prompts=PADDED[order], prompt_mask=PROMPT_MASK[order]))
    assert len({tuple(row) for row in first}) == 3  # one per prompt
    assert first == [first[4 * (row // 4)] for row in range(12)]
    assert other == [first[4 * prompt] for prompt in order for _ in range(4)]
    # The rollout says which prompt each row answers, and what is said of prompts follows it.
    np.testing.assert_array_equal(rollout.prompt_of_row, np.repeat(np.arange(3), 4))
    kinds = jnp.array([7, 8, 9])
    for samples in (rollout, rollout.replace(prompt_of_row=None)):
        np.testing.assert_array_equal(of_rows(kinds, samples), np.repeat(kinds, 4))
    turned = rollout.replace(prompt_of_row=rollout.prompt_of_row[::-1])
    np.testing.assert_array_equal(of_rows(kinds, turned), np.repeat(kinds[::-1], 4))


def test_several_stop_ids_end_rows_and_stay_in_the_mask(params):
    rollout = run(params)
    assert_well_formed(rollout, STOP)
    rows = zip(rows_of(rollout), np.asarray(rollout.finished), strict=True)
    assert {row[-1] for row, finished in rows if finished} == set(STOP)
    assert not rollout.finished.all()


STEPS: list[float] = []


@dataclasses.dataclass(frozen=True)
class Counted:
    """Greedy, and notes every step that the loop takes."""

    temperature: float = 1.0

    def choose(self, keys, scaled):
        jax.debug.callback(STEPS.append, scaled[0, 0])
        return Greedy().choose(keys, scaled)


@pytest.mark.parametrize(
    ("stop", "steps"), [(tuple(range(CONFIG.vocab_size)), 1), ((), NEW_TOKENS)], ids=["all", "none"]
)
def test_the_loop_ends_with_the_last_row(params, stop, steps):
    """Where every id stops a row, one step is taken and one token a row is written."""
    STEPS.clear()
    rollout = jax.block_until_ready(run(params, method=Counted(), stop=stop))
    jax.effects_barrier()
    assert len(STEPS) == steps
    assert_well_formed(rollout, stop)
    np.testing.assert_array_equal(rollout.mask.sum(axis=1), steps)
    np.testing.assert_array_equal(rollout.finished, bool(stop))


def test_the_key_decides_the_samples(params):
    first, again, other = (run(params, seed=seed) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert rows_of(first) != rows_of(other)
    assert len({tuple(row) for row in rows_of(first)[:4]}) > 1  # rows of a group differ


def test_a_row_draws_the_same_whatever_the_batch_around_it(params):
    """Alone, with other prompts, and as numbered rows of a larger set."""
    together = rows_of(run(params))
    alone = run(params, prompts=PADDED[:1], prompt_mask=PROMPT_MASK[:1])
    assert rows_of(alone) == together[:4]
    last = sample(
        MODEL,
        params,
        PADDED[2:],
        PROMPT_MASK[2:],
        jax.random.key(0),
        samples_per_prompt=4,
        max_new_tokens=NEW_TOKENS,
        method=DRAW,
        stop=STOP,
        prefix=PREFIX,
        rows=jnp.arange(8, 12),
    )
    assert rows_of(last) == together[8:]


def test_a_token_draws_the_same_whatever_stops_before_or_is_asked_behind(params):
    """Noise goes by row and position: a longer limit only adds tokens."""
    short, long = rows_of(run(params, new_tokens=3)), rows_of(run(params))
    assert [row[:3] for row in long] == short


def test_a_second_batch_of_the_same_shape_compiles_nothing(params):
    run(params)
    before = _sample._cache_size()
    run(params, seed=5, prompts=(PADDED + 1) % CONFIG.vocab_size)
    assert _sample._cache_size() == before


def test_more_positions_than_the_model_has_is_an_error(params):
    room = CONFIG.max_positions - len(PREFIX) - PADDED.shape[1]
    abstract = jax.eval_shape(lambda params: run(params, new_tokens=room), params)
    assert abstract.tokens.shape == (12, room)
    with pytest.raises(ValueError, match="up to 33 positions, the model has 32: shorten"):
        run(params, new_tokens=room + 1)
