"""What is wrong with a user's network, reward or objective is said in one line."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from tiny_model import SMALL, random_params

from jaxalign.engine import (
    GRPO,
    K2,
    PPO,
    Batch,
    Cispo,
    Constant,
    Credit,
    Prompts,
    Score,
    Shrinkage,
    TokenMean,
    check_decoder,
    check_objective,
    check_reward,
    device_reward,
    plain_decoder,
)
from jaxalign.models import Transformer
from jaxalign.rewards.terms import host_reward

MODEL = Transformer(SMALL, dtype=jnp.float32)
V = SMALL.vocab_size
WEIGHTS = {"embed": jax.random.normal(jax.random.key(0), (V, 8))}
BATCH = Batch(Prompts(jnp.ones((3, 2), jnp.int32), jnp.ones((3, 2), bool)), kind=jnp.arange(3))


def apply(weights, tokens, mask):
    """Each token sees the mean of those before it."""
    x = weights["embed"][tokens]
    seen = jnp.cumsum(x, axis=1) / (1 + jnp.arange(x.shape[1]))[:, None]
    return seen @ weights["embed"].T


PLAIN = plain_decoder(apply, max_positions=32)


def altered(**methods):
    """The plain decoder with other methods."""
    made = type("Altered", (type(PLAIN),), methods)
    return made(PLAIN.apply, PLAIN.max_positions)


def test_decoders_that_are_right():
    check_decoder(MODEL, random_params(SMALL))
    check_decoder(PLAIN, WEIGHTS)


def worse_logps(change):
    def logps(self, *args, **more):
        return change(PLAIN.logps(*args, **more))

    return altered(logps=logps)


def ignores_temperature(self, *args, temperature=1.0, **more):
    return PLAIN.logps(*args, **more)


def ignores_prefix(self, *args, prefix=None, **more):
    return PLAIN.logps(*args, **more)


def reads_padding(self, params, prompts, mask, *args, **more):
    return PLAIN.logps(params, prompts, jnp.ones_like(mask), *args, **more)


def stale_cache(self, params, context, cache, token, step):
    logits, _ = PLAIN.next_logits(params, context, cache, token, step)
    return logits, cache


def sorts_rows(self, context, cache, rows):
    return PLAIN.take(context, cache, jnp.sort(rows))


def half_precision(self, *args):
    logits, cache = PLAIN.next_logits(*args)
    return logits.astype(jnp.bfloat16), cache


def one_row(self, *args):
    logits, cache = PLAIN.next_logits(*args)
    return logits[:1], cache


def on_the_host(self, *args):
    logits, cache = PLAIN.next_logits(*args)
    return logits * float(logits[0, 0]), cache


@pytest.mark.parametrize(
    ("decoder", "line"),
    [
        (worse_logps(lambda x: x + 0.1), "next_logits and logps differ from token 0 on"),
        (worse_logps(lambda x: x[:, 0]), r"logps has the shape \(4,\): return \(4, 3\)"),
        (worse_logps(lambda x: x.astype(jnp.bfloat16)), "logps is bfloat16: return float32"),
        (worse_logps(lambda x: x / 0.0), "logps is not finite"),
        (worse_logps(jax.lax.stop_gradient), "the gradient of logps is zero"),
        (worse_logps(lambda x: x + 0.0 * jnp.sqrt(0.0 * x)), "gradient of logps is not finite at"),
        (altered(logps=ignores_temperature), r"not those of softmax\(z / temperature\)"),
        (altered(logps=reads_padding), "differ"),
        (altered(next_logits=stale_cache), "the cache disagrees with the full pass"),
        (altered(take=sorts_rows), "take mixes up rows"),
        (altered(next_logits=half_precision), "next_logits is bfloat16: return float32"),
        (altered(next_logits=one_row), r"has the shape \(1, 32\) for 4 rows"),
        (altered(next_logits=on_the_host), "next_logits fails under jit: ConcretizationTypeError"),
    ],
)
def test_what_is_wrong_with_a_decoder(decoder, line):
    with pytest.raises(ValueError, match=line) as caught:
        check_decoder(decoder, WEIGHTS)
    assert "\n" not in str(caught.value)


def test_a_prefix_that_is_read_by_one_half_alone():
    """Sampling leaves it out too, so the two agree with each other and not with the prompt."""

    def prefill(self, params, prompts, mask, prefix=None):
        return PLAIN.prefill(params, prompts, mask)

    with pytest.raises(ValueError, match="a prefix is not read as if it stood before every prompt"):
        check_decoder(altered(prefill=prefill, logps=ignores_prefix), WEIGHTS)


def ones(batch, samples):
    return jnp.ones(samples.tokens.shape[0])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Returns:
    """A reward that returns what it is told to."""

    make: object = dataclasses.field(metadata={"static": True})

    def __call__(self, batch, samples):
        return self.make(samples)


def test_rewards_that_are_right():
    check_reward(device_reward(ones), BATCH, vocab_size=V)
    check_reward(0.5 * device_reward(ones), BATCH, vocab_size=V)
    check_reward(host_reward(lambda batch, samples: 1 / 0, "late"), BATCH, vocab_size=V)


LARGE = jnp.ones(2048)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda samples: jnp.ones((3, 2)), "returns an array: return a Score"),
        (lambda samples: Score(jnp.ones(6)), r"rewards has the shape \(6,\): return \(3, 2\)"),
        (lambda samples: Score(jnp.ones((3, 2), int)), "rewards is int32: return float32"),
        (lambda samples: Score(jnp.ones((3, 2)) / 0.0), "rewards is not finite"),
        (
            lambda samples: Score(jnp.ones((3, 2)), outcome=jnp.ones(3)),
            r"outcome has the shape \(3,\)",
        ),
        (
            lambda samples: Score(jnp.ones((3, 2)), details={"x": jnp.ones(2)}),
            r"the detail x has the shape \(2,\): return one entry for each of 6 rows",
        ),
        (
            lambda samples: Score(jnp.ones((3, 2)), metrics={"x": jnp.ones(2)}),
            "the metric x is no scalar",
        ),
        (
            lambda samples: Score(
                jnp.ones((3, 2)), credit=Credit(jnp.ones((2, 3, 2)), jnp.zeros((6, 1), int))
            ),
            r"credit.part has the shape \(6, 1\): return one entry for each token, \(6, 4\)",
        ),
        (
            lambda samples: Score(
                jnp.ones((3, 2)), credit=Credit(jnp.ones((2, 3, 2)), samples.tokens * 0 + 2)
            ),
            "credit.part names parts that credit.rewards does not have: it has 0 to 1",
        ),
        (
            lambda samples: Score(jnp.ones((3, 2)), credit=Credit(jnp.ones((3, 3, 2)), None)),
            r"credit.rewards has the shape \(3, 3, 2\): return \(2, 3, 2\)",
        ),
        (
            lambda samples: Score(LARGE[samples.tokens[:, :2]][:3]),
            r"holds an array of shape \(2048,\) as a constant of the program",
        ),
        (
            lambda samples: Score(jax.jit(lambda x: LARGE[x])(samples.tokens[:, :2])[:3]),
            r"holds an array of shape \(2048,\) as a constant of the program",
        ),
        (lambda samples: Score(jnp.ones((3, 2)) * float(samples.tokens[0, 0])), "fails under jit"),
    ],
)
def test_what_is_wrong_with_a_reward(make, line):
    with pytest.raises(ValueError, match=line) as caught:
        check_reward(Returns(make), BATCH, vocab_size=V)
    assert "\n" not in str(caught.value)


def test_a_part_on_the_host_does_not_hide_what_is_wrong_on_the_device():
    late = host_reward(lambda batch, samples: 1 / 0, "late")
    with pytest.raises(ValueError, match="the reward fails under jit: ZeroDivisionError"):
        check_reward(late + device_reward(lambda batch, samples: 1 / 0, "now"), BATCH, vocab_size=V)


def test_a_bare_function_is_no_reward():
    with pytest.raises(ValueError, match="no registered pytree: wrap a function by device_reward"):
        check_reward(ones, BATCH, vocab_size=V)


@pytest.mark.parametrize(
    "objective",
    [GRPO(), GRPO(Shrinkage(), Cispo(), K2(), Constant()), PPO(), PPO(kl=K2(), value_clip=None)],
)
def test_objectives_that_are_right(objective):
    check_objective(objective)


def own_mean(values, mask, totals):
    return jnp.where(mask, values, 0.0).sum() / jnp.maximum(mask.sum(), 1)


def constant_loss(logps, old, advantages, *, mask):
    return jnp.zeros_like(logps)


class WithMetric:
    """GRPO that logs a vector."""

    experience = GRPO().experience

    def loss(self, *arguments):
        loss, metrics = GRPO().loss(*arguments)
        return loss, metrics | {"vector": jnp.ones(3)}


@pytest.mark.parametrize(
    ("objective", "line"),
    [
        (GRPO(aggregation=own_mean), "the losses of two micro-batches do not add up"),
        (GRPO(surrogate=constant_loss), "the gradient of loss is zero"),
        (GRPO(aggregation=lambda values, mask, totals: values), r"loss fails under jit: TypeError"),
        (GRPO(advantages=lambda rewards: rewards / 0.0), "advantages is not finite"),
        (WithMetric(), "the metric vector is no scalar"),
        (
            GRPO(surrogate=lambda logps, old, adv, *, mask: jnp.sqrt(0.0 * logps)),
            "gradient of loss is not finite",
        ),
    ],
)
def test_what_is_wrong_with_an_objective(objective, line):
    with pytest.raises(ValueError, match=line) as caught:
        check_objective(objective)
    assert "\n" not in str(caught.value)


def test_a_model_comes_with_its_params():
    with pytest.raises(ValueError, match="give both a model and params, or neither"):
        check_objective(GRPO(), MODEL)


def test_a_custom_objective_that_returns_no_experience():
    class Bare:
        def experience(self, *args, **more):
            return jnp.zeros(3), {}

        loss = TokenMean

    with pytest.raises(ValueError, match="experience returns an array first"):
        check_objective(Bare())
