"""Rewards that add up: sums and weights, parts on the host, arrays that are arguments."""

import dataclasses
import re
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxalign.engine.state import init_state
from jaxalign.engine.step import Frozen, Sampling, Updates, make_step, reward_metrics
from jaxalign.host.errors import InputError
from jaxalign.models.decoder import plain_decoder
from jaxalign.records import Batch, Credit, Prompts, Rollout, Score
from jaxalign.rewards.terms import (
    Addable,
    GivenValues,
    HostValues,
    Sum,
    device_reward,
    host_parts,
    host_reward,
    resolve_on_host,
)

V, N, G, T = 40, 3, 4, 5
BATCH = Batch(
    Prompts(jnp.array([[3, 1], [4, 1], [5, 9]], jnp.int32), jnp.ones((N, 2), bool)),
    kind=jnp.array([0, 1, 1], jnp.int32),
)
LENGTHS = np.array([5, 3, 0, 1, 2, 2, 4, 5, 1, 3, 5, 2])


def completions() -> Rollout:
    mask = jnp.arange(T) < LENGTHS[:, None]
    tokens = jax.random.randint(jax.random.key(1), (N * G, T), 0, V)
    no = jnp.zeros(N * G, bool)
    zeros = jnp.zeros((N * G, T))
    return Rollout(jnp.where(mask, tokens, 0), mask, mask, zeros, no.astype(jnp.int32), no, no)


SAMPLES = completions()


def length(batch, samples):
    """How long a completion is. Written for JAX's arrays and NumPy's alike."""
    return samples.mask.sum(axis=1) / T


def evenness(batch, samples):
    """The share of a row's places that hold an even token."""
    return ((samples.tokens % 2 == 0) & samples.mask).sum(axis=1) / T


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Worth(Addable):
    """A reward of one's own, with an array: what each token is worth."""

    table: jax.Array
    name: str = dataclasses.field(default="worth", metadata={"static": True})

    def __call__(self, batch, samples):
        worth = jnp.where(samples.mask, self.table[samples.tokens], 0.0).mean(axis=1)
        values = worth.reshape(N, G)
        return Score(
            values,
            (values > 0).astype(jnp.float32),
            {self.name: values},
            {f"{self.name}_row": worth},
            {f"{self.name}_largest": worth.max()},
        )


WORTH = Worth(jnp.linspace(-1.0, 1.0, V))
LENGTH, EVENNESS = device_reward(length), device_reward(evenness)


# --- adding and weighing -------------------------------------------------------------------------


def test_rewards_add_up_with_their_weights():
    worth, length, even = (r(BATCH, SAMPLES) for r in (WORTH, LENGTH, EVENNESS))
    total = (WORTH + 0.3 * LENGTH + EVENNESS * 2)(BATCH, SAMPLES)
    expected = worth.rewards + 0.3 * length.rewards + 2 * even.rewards
    np.testing.assert_allclose(total.rewards, expected, rtol=1e-6)
    # The terms are what they were before their weights, in the order in which they were added.
    assert list(total.terms) == ["worth", "length", "evenness"]
    for name, score in (("worth", worth), ("length", length), ("evenness", even)):
        np.testing.assert_array_equal(total.terms[name], score.rewards)
    # The outcome is the first term's, which is what the run is about; a reward that has none is it.
    np.testing.assert_array_equal(total.outcome, worth.outcome)
    np.testing.assert_array_equal((LENGTH + WORTH)(BATCH, SAMPLES).outcome, length.rewards)
    assert total.details.keys() == {"worth_row", "length", "evenness"}
    np.testing.assert_array_equal(total.details["length"], length.rewards.reshape(-1))
    assert total.metrics == worth.metrics


def test_a_sum_is_weighed_as_a_whole_and_added_to():
    inner = 0.5 * (WORTH + 0.4 * LENGTH)
    assert [term.weight for term in inner.terms] == [0.5, 0.2]
    both = inner + 3 * EVENNESS
    assert [term.weight for term in both.terms] == [0.5, 0.2, 3]
    assert [term.weight for term in (EVENNESS + inner).terms] == [1.0, 0.5, 0.2]
    expected = 0.5 * WORTH(BATCH, SAMPLES).rewards + 0.2 * LENGTH(BATCH, SAMPLES).rewards
    np.testing.assert_allclose(inner(BATCH, SAMPLES).rewards, expected, rtol=1e-6)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pairs(Addable):
    """Three points: the first two tokens earn one, the next two one, and the fifth one."""

    def __call__(self, batch, samples):
        part = jnp.broadcast_to(jnp.arange(T) // 2, samples.mask.shape)
        ones = jnp.ones((N, G))
        return Score(3 * ones, credit=Credit(jnp.stack([ones, ones, ones]), part))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Endings(Addable):
    """A point that the last part earns alone."""

    def __call__(self, batch, samples):
        ones = jnp.ones((N, G))
        return Score(ones, credit=Credit(jnp.stack([0 * ones, ones]), None))


def test_what_a_sum_adds_is_earned_by_all_tokens_unless_it_says_by_which():
    length = LENGTH(BATCH, SAMPLES).rewards
    credit = (3 * Pairs() + 0.5 * LENGTH + 2 * Endings())(BATCH, SAMPLES).credit
    np.testing.assert_array_equal(credit.part[0], [0, 0, 1, 1, 2])
    for earned, more in zip(credit.rewards, (0, 0, 2), strict=True):
        np.testing.assert_allclose(earned, 3 + 0.5 * length + more, rtol=1e-6)
    assert (WORTH + 0.5 * LENGTH + Endings())(BATCH, SAMPLES).credit is None
    with pytest.raises(InputError, match="two terms of a reward divide completions"):
        (Pairs() + Pairs())(BATCH, SAMPLES)


def test_a_number_is_static_and_an_array_is_an_argument():
    """An equal tree definition means that a compiled program serves both."""
    structure = jax.tree.structure
    assert structure(0.3 * WORTH) == structure(0.3 * WORTH)
    assert structure(0.3 * WORTH) != structure(0.4 * WORTH)
    assert len(jax.tree.leaves(0.3 * WORTH)) == len(jax.tree.leaves(WORTH)) == 1
    low, high = (jnp.float32(weight) * WORTH for weight in (0.3, 0.4))
    assert structure(low) == structure(high) != structure(0.3 * WORTH)
    assert [float(x) for x in jax.tree.leaves(high)[1:]] == [pytest.approx(0.4)]
    assert structure(2 * low) == structure(low), "a number times an array is an array"
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(WORTH + high)]
    assert names == [
        ".terms[0].reward.table",
        ".terms[1].reward.table",
        ".terms[1].weight",
    ]
    # Flattening and back changes nothing.
    leaves, definition = jax.tree.flatten(LENGTH + high)
    again = jax.tree.unflatten(definition, leaves)
    np.testing.assert_array_equal(
        again(BATCH, SAMPLES).rewards, (LENGTH + high)(BATCH, SAMPLES).rewards
    )


def test_two_terms_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two terms of a reward are called length, worth"):
        (WORTH + LENGTH + 0.1 * WORTH + LENGTH)(BATCH, SAMPLES)
    other = Worth(jnp.zeros(V), name="nothing")
    assert list((WORTH + other)(BATCH, SAMPLES).terms) == ["worth", "nothing"]


# --- functions of the user's ----------------------------------------------------------------------


def test_a_function_may_return_rows_or_groups():
    rows = LENGTH(BATCH, SAMPLES)
    groups = device_reward(lambda batch, samples: length(batch, samples).reshape(N, G), "length")
    np.testing.assert_array_equal(groups(BATCH, SAMPLES).rewards, rows.rewards)
    np.testing.assert_array_equal(rows.rewards.reshape(-1), jnp.float32(LENGTHS / T))
    assert rows.terms.keys() == rows.details.keys() == {"length"} and rows.outcome is None
    for wrong in (lambda *given: jnp.zeros(N), lambda *given: jnp.zeros((G, N))):
        with pytest.raises(ValueError, match="return one number for each of the 12 completions"):
            device_reward(wrong, "wrong")(BATCH, SAMPLES)


def test_a_host_part_is_found_and_resolved_wherever_it_stands():
    """Below sums, weights, and rewards of one's own, of whatever form."""
    calls = []

    def seen(batch, samples):
        calls.append((type(batch.prompts.tokens), type(samples.tokens)))
        return length(batch, samples)

    deep = Worth(HostValues(seen))
    reward = {"sum": WORTH + 0.5 * (LENGTH + 0.1 * host_reward(seen)), "more": [EVENNESS, deep]}
    assert len(host_parts(reward)) == 2 and not host_parts(WORTH + LENGTH)
    assert all(part.function is seen for part in host_parts(reward))
    places = []

    def place(values):
        places.append(values.dtype)
        return jnp.asarray(values)

    resolved = resolve_on_host(reward, *jax.device_get((BATCH, SAMPLES)), place)
    assert calls == [(np.ndarray, np.ndarray)] * 2 and places == [np.float32] * 2
    assert not host_parts(resolved)
    given = resolved["more"][1].table
    assert isinstance(given, GivenValues)
    np.testing.assert_array_equal(given.values, jnp.float32(LENGTHS / T))
    np.testing.assert_array_equal(resolved["sum"].terms[0].reward.table, WORTH.table)
    wanted = WORTH + 0.5 * (LENGTH + 0.1 * device_reward(length, "seen"))
    assert isinstance(resolved["sum"], Sum)
    np.testing.assert_allclose(
        resolved["sum"](BATCH, SAMPLES).rewards, wanted(BATCH, SAMPLES).rewards, rtol=1e-6
    )


def test_what_a_function_on_the_host_returns_is_converted_or_one_line():
    arrays = jax.device_get((BATCH, SAMPLES))
    on_host = lambda returned: resolve_on_host(host_reward(lambda *_: returned), *arrays, jnp.array)  # noqa: E731
    wanted = LENGTH(BATCH, SAMPLES).rewards
    shares = [Fraction(int(n), T) for n in LENGTHS]
    for returned in (iter(shares), np.reshape(np.asarray(shares, float), (N, G))):
        np.testing.assert_allclose(on_host(returned)(BATCH, SAMPLES).rewards, wanted, rtol=1e-6)
    with pytest.raises(InputError, match="reward's function <lambda>: it gave None to answer 2"):
        on_host([0.5, None])


# --- in the step ----------------------------------------------------------------------------------

# The smallest network: a table of logits. It compiles in no time.
MODEL = plain_decoder(lambda params, tokens, mask: params[tokens], max_positions=16)
OPTIMIZER = optax.adam(1e-2)
KEY = jax.random.key(0)


def table(seed=0):
    return jax.random.normal(jax.random.key(seed), (V, V))


def new_step():
    return make_step(MODEL, OPTIMIZER, sampling=Sampling(G, T, stop=(2,)))


def three_steps(step, rewards):
    state = init_state(table(), OPTIMIZER)
    for reward in rewards:
        state, result = step(state, BATCH, KEY, Frozen(reward))
    return state, result


def test_a_reward_on_the_host_is_the_reward_on_the_device():
    on_device = WORTH + 0.5 * LENGTH + jnp.float32(0.25) * EVENNESS
    on_host = WORTH + 0.5 * host_reward(length) + jnp.float32(0.25) * host_reward(evenness)
    step = new_step()
    (one, first), (two, second) = (three_steps(step, [r] * 3) for r in (on_device, on_host))
    np.testing.assert_allclose(one.params, two.params, atol=1e-6)
    assert float(jnp.abs(one.params - table()).max()) > 1e-3
    np.testing.assert_array_equal(first.samples.tokens, second.samples.tokens)
    assert first.metrics.keys() == second.metrics.keys()
    for name in first.metrics:
        np.testing.assert_allclose(second.metrics[name], first.metrics[name], atol=1e-6)
    np.testing.assert_allclose(second.score.rewards, first.score.rewards, atol=1e-6)
    assert [x._cache_size() for x in (step.whole, step.rollout, step.learn)] == [1, 1, 1]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Openings(Addable):
    """The first token earns for being even, the others for being odd."""

    apart: bool = dataclasses.field(default=True, metadata={"static": True})

    def __call__(self, batch, samples):
        part = jnp.broadcast_to(jnp.minimum(jnp.arange(T), 1), samples.mask.shape)
        right = (samples.tokens % 2 == part) & samples.mask
        earned = jnp.stack([right[:, 0], right[:, 1:].mean(axis=1)]).reshape(2, N, G)
        return Score(earned.sum(axis=0), credit=Credit(earned, part) if self.apart else None)


def test_parts_earn_apart_in_a_whole_step_whole_or_in_pieces():
    """With a term on the host beside them, and with gradients summed over micro-batches."""
    whole, in_pieces = (
        make_step(
            MODEL, OPTIMIZER, sampling=Sampling(G, T, stop=(2,)), updates=Updates(micro_batches=m)
        )
        for m in (1, N)
    )
    on_host, on_device = (Openings() + 0.3 * f(length) for f in (host_reward, device_reward))
    (one, _), (two, _), (three, _) = (
        three_steps(step, [reward] * 3)
        for step, reward in ((whole, on_device), (whole, on_host), (in_pieces, on_device))
    )
    np.testing.assert_allclose(two.params, one.params, atol=1e-6)
    np.testing.assert_allclose(three.params, one.params, atol=1e-6)
    together, _ = three_steps(whole, [Openings(apart=False) + 0.3 * device_reward(length)] * 3)
    assert float(jnp.abs(together.params - one.params).max()) > 1e-3


def test_what_may_change_from_step_to_step_without_another_compilation():
    """A weight that is an array, the arrays of a reward, and which function the host calls."""
    step = new_step()
    arrays = [jnp.float32(weight) * Worth(weight * WORTH.table) for weight in (0.1, 0.2, 0.3)]
    three_steps(step, arrays)
    assert step.whole._cache_size() == 1
    three_steps(step, [weight * WORTH for weight in (0.1, 0.2)])
    assert step.whole._cache_size() == 3, "a number is part of the program"
    for _ in range(2):
        three_steps(step, [host_reward(lambda *given: length(*given), "length")])
    assert step.rollout._cache_size() == step.learn._cache_size() == 1


def large_constants(program):
    """Sizes of the arrays that stand in a program, except those of one number again and again."""
    found = re.findall(r"constant dense<([^>]*)> : tensor<((?:\d+x)*)\w+>", program)
    sizes = [np.prod([int(n) for n in shape.split("x") if n]) for _, shape in found]
    splat = re.compile(r"^[^,\[\"]*$")
    large = zip(found, sizes, strict=True)
    return [size for (text, _), size in large if not splat.match(text) and size > 2 * V]


def test_the_arrays_of_a_reward_are_arguments():
    """Closed over by a function, an array would be written into the program: so it can be seen."""
    big = jax.random.normal(jax.random.key(3), (100, V))

    def closed_over(batch, samples):
        return big[0][samples.tokens].mean(axis=1) + big.mean()

    def program(reward):
        state = init_state(table(), OPTIMIZER)
        return new_step().whole.lower(state, BATCH, KEY, Frozen(reward)).as_text()

    inside = WORTH + 0.5 * Worth(big[0], "other") + jnp.float32(0.3) * Worth(big.mean(0), "third")
    assert large_constants(program(inside)) == []
    assert large_constants(program(inside + device_reward(closed_over))) == [100 * V]
    leaves = jax.tree.leaves(jax.eval_shape(lambda reward: reward, inside))
    assert [leaf.shape for leaf in leaves] == [(V,), (V,), (V,), ()]


def test_metrics_of_terms_in_all_and_by_kind():
    """The first prompt is harmful, the others benign; none is a look-alike."""
    score = (WORTH + 0.5 * LENGTH)(BATCH, SAMPLES)
    metrics = reward_metrics(BATCH, SAMPLES, score)
    rewards, lengths = np.asarray(score.rewards), LENGTHS.reshape(N, G) / T
    for name, wanted in {
        "reward": rewards.mean(),
        "reward_harmful": rewards[:1].mean(),
        "reward_benign": rewards[1:].mean(),
        "reward_lookalike": np.nan,
        "outcome": np.asarray(score.outcome).mean(),
        "terms/length": lengths.mean(),
        "terms/length/harmful": lengths[:1].mean(),
        "terms/length/benign": lengths[1:].mean(),
        "terms/length/lookalike": np.nan,
        "worth_largest": float(score.details["worth_row"].max()),
    }.items():
        np.testing.assert_allclose(metrics[name], wanted, rtol=1e-5, err_msg=name)
    without = reward_metrics(dataclasses.replace(BATCH, kind=None), SAMPLES, score)
    assert without.keys() == {
        *("reward", "outcome", "terms/worth", "terms/length", "worth_largest")
    }
