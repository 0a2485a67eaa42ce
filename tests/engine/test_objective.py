"""What an objective is made of: each part is a function of `jaxalign.losses`, some also by hand.

Advantages, IFPO and GDPO, losses of tokens, KLs, denominators, masks, and how GRPO puts them
together. No model runs here.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxalign import losses
from jaxalign.engine import check_objective
from jaxalign.engine.baselines import (
    Group,
    InverseFrequency,
    LeaveOneOut,
    PerTerm,
    Shrinkage,
    WholeBatch,
)
from jaxalign.engine.experience import experience_of
from jaxalign.engine.objective import GRPO, policy_loss
from jaxalign.engine.penalties import K2, K3, KL
from jaxalign.engine.ppo import PPO
from jaxalign.engine.reductions import (
    Constant,
    Finished,
    Informative,
    SequenceMean,
    SequenceSum,
    TokenMean,
    Totals,
)
from jaxalign.engine.surrogates import Cispo, Clipped, SoftGated
from jaxalign.host.errors import InputError
from jaxalign.records import Batch, Credit, Prompts, Rollout, Score

N, G, T = 2, 3, 4
RNG = np.random.default_rng(0)
REWARDS = jnp.array([[1.0, 0.0, 0.5], [2.0, 2.0, 2.0]])
MASK = jnp.arange(T) < jnp.array([[4], [1], [0], [3], [2], [4]])
FINISHED = jnp.array([False, True, True, True, False, True])
LOGPS, OLD, REFERENCE = (
    jnp.asarray(RNG.normal(-2, 0.4, (N * G, T)), jnp.float32) for _ in range(3)
)
OF_ROWS = jnp.asarray(RNG.normal(size=N * G), jnp.float32)  # advantages
BATCH = Batch(Prompts(jnp.ones((N, 1), jnp.int32), jnp.ones((N, 1), bool)))


def samples_of(modes=None, mask=MASK, finished=FINISHED) -> Rollout:
    """Completions, of which only masks, old log-probabilities and modes matter here."""
    rows = jnp.zeros(mask.shape[0], jnp.int32) if modes is None else modes.reshape(-1)
    return Rollout(
        tokens=jnp.zeros(mask.shape, jnp.int32),
        mask=mask,
        present=mask,
        logps=jnp.where(mask, OLD, 0.0) if mask.shape == OLD.shape else jnp.zeros(mask.shape),
        mode=rows,
        finished=finished,
        cut=jnp.zeros_like(finished),
        temperature=0.7,
    )


# --- advantages ----------------------------------------------------------------------------------


ADVANTAGES = {
    Group(): (losses.group_advantages, {}),
    Group(scale=False): (losses.group_advantages, {"scale": False}),
    Group(ddof=0, eps=0.1): (losses.group_advantages, {"ddof": 0, "eps": 0.1}),
    WholeBatch(): (losses.batch_advantages, {}),
    WholeBatch(scale=False): (losses.batch_advantages, {"scale": False}),
    WholeBatch(ddof=0, eps=0.1): (losses.batch_advantages, {"ddof": 0, "eps": 0.1}),
    Shrinkage(): (losses.shrinkage_advantages, {}),
    Shrinkage(weight=0.2): (losses.shrinkage_advantages, {"weight": 0.2}),
    Shrinkage(scale=False): (losses.shrinkage_advantages, {"scale": False}),
    Shrinkage(ddof=0, eps=0.1): (losses.shrinkage_advantages, {"ddof": 0, "eps": 0.1}),
    LeaveOneOut(): (losses.leave_one_out_advantages, {}),
}


@pytest.mark.parametrize("chosen", ADVANTAGES, ids=repr)
def test_one_argument_chooses_the_advantages(chosen):
    """With every constant the same numbers; other constants, other numbers."""
    function, constants = ADVANTAGES[chosen]
    wanted = function(REWARDS, **constants)
    np.testing.assert_array_equal(chosen(REWARDS), wanted)
    assert not constants or not np.array_equal(wanted, function(REWARDS))
    experience, _ = of_grpo(advantages=chosen)
    np.testing.assert_array_equal(experience.rows.advantages, wanted.reshape(-1))


def of_grpo(score=Score(REWARDS), **parts):  # noqa: B008
    return GRPO(**parts).experience(None, None, BATCH, samples_of(), score, base=None, parts=1)


def test_the_group_baseline_leaves_a_prompt_without_spread_alone():
    rewards = jnp.array([[1.0, 1.0], [0.0, 1.0]])
    np.testing.assert_allclose(Group()(rewards)[0], 0.0)
    assert (np.asarray(WholeBatch()(rewards)[0]) > 0).all()


# --- IFPO ----------------------------------------------------------------------------------------

BASELINES = (Group(), WholeBatch(), Shrinkage())
OF_EIGHT = jnp.array([[1, 0, 0.5, 2, 1, 0, 0, 1], [0, 1, 0, 0, 1, 1, 1, 2]], jnp.float32)
SEVEN_TO_ONE = jnp.array([[1, 1, 1, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0, 0, 1]], jnp.int32)


def rebalanced(baseline, rewards, modes, **constants):
    """IFPO on a baseline: what GRPO does with `adjust=InverseFrequency(…)`."""
    rows = jnp.ones((modes.size, 1), bool)
    samples = samples_of(modes, mask=rows, finished=rows[:, 0])
    return InverseFrequency(**constants)(baseline(rewards), Score(rewards), samples)


@pytest.mark.parametrize("baseline", BASELINES, ids=repr)
@pytest.mark.parametrize("scope", ["group", "batch"])
@pytest.mark.parametrize("mode", [0, 1])
def test_with_one_mode_ifpo_is_the_plain_baseline_to_the_bit(baseline, scope, mode):
    modes = jnp.full((2, 8), mode, jnp.int32)
    ifpo = rebalanced(baseline, OF_EIGHT, modes, scope=scope)
    np.testing.assert_array_equal(ifpo, baseline(OF_EIGHT))


@pytest.mark.parametrize("baseline", BASELINES, ids=repr)
def test_modes_seven_to_one_weigh_the_same_before_the_cap(baseline):
    """Eight samples, two modes: each mode's weights add up to 4, the rare one's alone."""
    plain = np.asarray(baseline(OF_EIGHT))
    rare = np.array([[0, 0, 0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 0, 1]], bool)
    shared = plain.mean(axis=1, keepdims=True)  # 0 for `Group`
    for cap, most in ((None, 4.0), (2.0, 2.0)):
        weighed = rebalanced(baseline, OF_EIGHT, SEVEN_TO_ONE, max_weight=cap)
        expected = shared + (plain - shared) * np.where(rare, most, 4 / 7)
        np.testing.assert_allclose(weighed, expected, atol=1e-5)


def test_on_grpo_ifpo_is_the_weight_form_of_the_losses():
    for scope in ("group", "batch"):
        constants = {"scope": scope, "max_weight": 1.5}
        got = rebalanced(Group(), OF_EIGHT, SEVEN_TO_ONE, **constants)
        wanted = losses.inverse_frequency_advantages(
            OF_EIGHT, SEVEN_TO_ONE, num_modes=2, form="weight", **constants
        )
        np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("baseline", BASELINES, ids=repr)
def test_ifpo_does_not_move_modes_that_are_equally_good(baseline):
    """A hard and an easy prompt, rewards that do not depend on the mode: no pull on its logit."""
    keys = jax.random.split(jax.random.key(0), 4)
    shape, p = (2, 4000, 4), 0.8
    success = jnp.array([0.3, 0.9])[:, None, None]
    rewards = (jax.random.uniform(keys[0], shape) < success).astype(jnp.float32)
    modes = (jax.random.uniform(keys[1], shape) < p).astype(jnp.int32)
    pairs = jax.vmap(lambda rewards, modes: rebalanced(baseline, rewards, modes), in_axes=1)
    advantage = pairs(rewards, modes)
    pull = (advantage * (modes.swapaxes(0, 1) - p)).mean(axis=2)
    error = np.asarray(pull.std(axis=0)) / np.sqrt(4000)
    assert (np.abs(pull.mean(axis=0)) < 4 * error).all()


def test_the_baseline_form_weighs_the_modes_means_alike():
    """Of the first prompt: the seven's mean is 1/2, the one's 2, so the baseline is 5/4."""
    form = {"form": "baseline", "scale": False}
    advantage = rebalanced(Group(), OF_EIGHT, SEVEN_TO_ONE, **form)
    np.testing.assert_allclose(advantage[0], np.asarray(OF_EIGHT[0]) - 1.25, atol=1e-6)
    wanted = losses.inverse_frequency_advantages(
        OF_EIGHT, SEVEN_TO_ONE, num_modes=2, form="baseline", max_weight=2.0
    )
    got = rebalanced(Group(), OF_EIGHT, SEVEN_TO_ONE, form="baseline", max_weight=2.0)
    np.testing.assert_array_equal(got, wanted)


def test_the_baseline_form_goes_with_the_groups_baseline_alone():
    """As another one it would take its place without a word."""
    with pytest.raises(InputError, match="goes with the advantages Group, not with WholeBatch"):
        GRPO(WholeBatch(), adjust=InverseFrequency(form="baseline"))
    check_objective(GRPO(adjust=InverseFrequency(form="baseline")))


def test_the_baseline_form_takes_the_place_of_other_advantages():
    """It computes them anew from the rewards, so what they were before does not matter."""
    one, other = (
        rebalanced(baseline, OF_EIGHT, SEVEN_TO_ONE, form="baseline")
        for baseline in (Group(), WholeBatch())
    )
    np.testing.assert_array_equal(one, other)


# --- GDPO ----------------------------------------------------------------------------------------

TERMS = {"right": jnp.array([[1.0, 0.0], [1.0, 1.0]]), "form": jnp.array([[0.0, 4.0], [0.0, 4.0]])}


def per_term(terms, *weights):
    score = Score(sum(terms.values()), terms=terms) if terms else Score(REWARDS)
    return PerTerm(*weights)(jnp.full((2, 2), jnp.nan), score, samples_of())


def test_gdpo_by_hand():
    """Two samples that differ are ±h apart from their mean, h = √½, however much they differ.

    right   (h, −h), (0, 0)      weights 2 and 1: (h, −h), (−h, h), of deviation √(2/3)
    form    (−h, h), (−h, h)     alike: (0, 0), (−h, h), of deviation √(1/3)
    """
    np.testing.assert_allclose(
        per_term(TERMS, (2.0, 1.0)), np.sqrt(3 / 4) * np.array([[1, -1], [-1, 1]]), atol=1e-3
    )
    np.testing.assert_allclose(
        per_term(TERMS), np.sqrt(3 / 2) * np.array([[0, 0], [-1, 1]]), atol=1e-3
    )
    wanted = losses.multi_reward_advantages(
        jnp.stack([TERMS["right"], TERMS["form"]], axis=-1), jnp.array([0.3, 0.7])
    )
    np.testing.assert_array_equal(per_term(TERMS, (0.3, 0.7)), wanted)


def test_gdpo_wants_a_weight_for_each_term():
    with pytest.raises(ValueError, match="3 weights for the reward's terms right, form: give one"):
        per_term(TERMS, (1.0, 1.0, 1.0))
    with pytest.raises(ValueError, match=r"0 weights for the reward's terms \(none\)"):
        per_term({})


# --- losses of tokens, and the KL -----------------------------------------------------------------

ON_TOKENS = (LOGPS, OLD, OF_ROWS)


SURROGATES = {
    Clipped(): (losses.clipped_surrogate, {}),
    Clipped(low=0.1): (losses.clipped_surrogate, {"clip_low": 0.1}),
    Clipped(high=0.3): (losses.clipped_surrogate, {"clip_high": 0.3}),
    Clipped(dual=1.1): (losses.clipped_surrogate, {"dual_clip": 1.1}),
    Clipped(ratio="sequence"): (losses.clipped_surrogate, {"ratio": "sequence"}),
    Cispo(): (losses.clipped_importance_loss, {}),
    Cispo(max_ratio=1.2): (losses.clipped_importance_loss, {"max_ratio": 1.2}),
    Cispo(min_ratio=0.9): (losses.clipped_importance_loss, {"min_ratio": 0.9}),
    SoftGated(): (losses.soft_gated_surrogate, {}),
    SoftGated(2.0): (losses.soft_gated_surrogate, {"temperature_positive": 2.0}),
    SoftGated(temperature_negative=3.0): (
        losses.soft_gated_surrogate,
        {"temperature_negative": 3.0},
    ),
}


@pytest.mark.parametrize("chosen", SURROGATES, ids=repr)
def test_one_argument_chooses_the_loss_of_a_token(chosen):
    function, constants = SURROGATES[chosen]
    wanted = function(*ON_TOKENS, mask=MASK, **constants)
    np.testing.assert_array_equal(chosen(*ON_TOKENS, mask=MASK), wanted)
    assert not constants or not np.array_equal(wanted, function(*ON_TOKENS, mask=MASK))


def test_clipped_tells_on_how_many_tokens_it_clips():
    tokens = MASK.sum()
    for chosen, constants in (
        (Clipped(low=0.1, high=0.3), {"clip_low": 0.1, "clip_high": 0.3}),
        (Clipped(ratio="sequence"), {"ratio": "sequence"}),
    ):
        got = chosen.fractions(*ON_TOKENS, MASK, normalizer=2 * tokens)
        wanted = losses.clip_fraction(*ON_TOKENS, MASK, normalizer=2 * tokens, **constants)
        assert got == wanted and max(wanted.values()) > 0


@pytest.mark.parametrize(
    ("chosen", "constants"),
    [
        (K2(0.3), {"estimator": "k2"}),
        (K3(0.3), {"estimator": "k3"}),
        (KL(0.3), {"estimator": "k3", "old_logp": OLD}),
    ],
    ids=["K2", "K3", "KL"],
)
def test_one_argument_chooses_the_kl(chosen, constants):
    """Its gradient too: the estimates differ in little else."""

    def chosen_kl(logps):
        return chosen(logps, REFERENCE, OLD, mask=MASK).sum()

    def wanted_kl(logps):
        return losses.kl_divergence(logps, REFERENCE, mask=MASK, **constants).sum()

    for function in (lambda f: f(LOGPS), lambda f: jax.grad(f)(LOGPS)):
        np.testing.assert_array_equal(function(chosen_kl), function(wanted_kl))
    assert chosen.coefficient == 0.3


# --- from tokens to a number ----------------------------------------------------------------------

REDUCTIONS = {
    TokenMean(): {"mode": "token_mean"},
    SequenceMean(): {"mode": "sequence_mean"},
    SequenceSum(): {"mode": "sequence_sum"},
    Constant(): {"mode": "constant", "normalizer": N * G * T},
    Constant(length=7): {"mode": "constant", "normalizer": N * G * 7},
}


@pytest.mark.parametrize("chosen", REDUCTIONS, ids=repr)
def test_one_argument_chooses_the_denominator_and_parts_add_up(chosen):
    got = chosen(LOGPS, MASK, Totals.of(MASK))
    wanted = losses.aggregate(LOGPS, MASK, **REDUCTIONS[chosen])
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    parts = [
        chosen(LOGPS[rows], MASK[rows], Totals.of(MASK)) for rows in (slice(0, 3), slice(3, 6))
    ]
    np.testing.assert_allclose(sum(parts), wanted, rtol=1e-6)


def test_denominators_by_hand():
    """Rows of 2, 0 and 1 tokens of value 1 and room for 4: 3 tokens, 2 rows with one, 3 samples."""
    mask = jnp.arange(4) < jnp.array([[2], [0], [1]])
    ones, totals = jnp.ones(mask.shape), Totals.of(mask)
    assert [float(x) for x in totals] == [3, 2, 3]
    for chosen, wanted in (
        (TokenMean(), 3 / 3),
        (SequenceMean(), (2 / 2 + 1 / 1) / 2),
        (SequenceSum(), 3 / 2),
        (Constant(), 3 / (3 * 4)),
        (Constant(length=10), 3 / (3 * 10)),
    ):
        np.testing.assert_allclose(chosen(ones, mask, totals), wanted, rtol=1e-6)
    # Nothing to learn from: a loss of 0.
    nothing = jnp.zeros_like(mask)
    assert [float(x) for x in Totals.of(nothing)] == [1, 1, 3]
    for chosen in REDUCTIONS:
        assert float(chosen(ones, nothing, Totals.of(nothing))) == 0


# --- what parts of a completion learn from --------------------------------------------------------


def test_each_part_of_a_completion_learns_from_what_it_earned():
    """Held to the group's mean, adjusted apart, and over √n; two tokens are of the first part."""
    part = jnp.broadcast_to(jnp.arange(T) // 2, MASK.shape)
    earlier = jnp.array([[1.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    earned = jnp.stack([earlier, REWARDS - earlier])
    score = Score(REWARDS, credit=Credit(earned, part))
    more = lambda advantages, score, samples: advantages + score.rewards  # noqa: E731
    objective = GRPO(LeaveOneOut(), adjust=more)
    experience, _ = objective.experience(None, None, BATCH, samples_of(), score, base=None, parts=1)
    of_parts = [np.ravel(losses.leave_one_out_advantages(x) + x)[:, None] for x in earned]
    sizes = [(MASK & (part == number)).sum(axis=1, keepdims=True).clip(1) for number in (0, 1)]
    wanted = np.where(part == 0, *(x / np.sqrt(n) for x, n in zip(of_parts, sizes, strict=True)))
    np.testing.assert_allclose(experience.rows.advantages, wanted, atol=1e-6)
    # By hand: the first sample's 1 against (0 + 0)/2, plus 1; then 0 against (0 + 0.5)/2, plus 0.
    by_hand = np.array([2, 2, -0.25, -0.25]) / np.sqrt(2)
    np.testing.assert_allclose(experience.rows.advantages[0], by_hand, atol=1e-6)


def test_what_a_last_part_earns_all_tokens_learn_where_nothing_divides_them():
    score = Score(REWARDS, credit=Credit(jnp.stack([0 * REWARDS, REWARDS]), None))
    experience, _ = GRPO().experience(None, None, BATCH, samples_of(), score, base=None, parts=1)
    wanted = losses.group_advantages(REWARDS).reshape(-1)
    np.testing.assert_array_equal(experience.rows.advantages, wanted)


def test_parts_have_means_of_their_own_and_one_unit():
    """By hand: rewards ±1 of the first part and 10 ± 3 of the second; variance (1 + 9)/2 = 5."""
    earned = jnp.array([[[1.0, -1.0]], [[13.0, 7.0]]])
    part = jnp.array([[0, 1], [0, 1]])
    score = Score(earned.sum(axis=0), credit=Credit(earned, part))
    samples = samples_of(mask=jnp.ones((2, 2), bool), finished=jnp.ones(2, bool))
    objective = GRPO(WholeBatch(ddof=0, eps=0.0))
    experience, _ = objective.experience(
        None, None, Batch(BATCH.prompts), samples, score, base=None, parts=1
    )
    wanted = np.array([[1, 3], [-1, -3]]) / np.sqrt(5)
    np.testing.assert_allclose(experience.rows.advantages, wanted, rtol=1e-6)


# --- what is left out -----------------------------------------------------------------------------


def test_one_argument_chooses_what_is_left_out():
    score, samples = Score(REWARDS), samples_of()
    finished = Finished()(score, samples)
    np.testing.assert_array_equal(finished, losses.finished_mask(MASK, FINISHED))
    # The second prompt's rewards are equal.
    informative = Informative()(score, samples)
    differ = jnp.repeat(losses.informative_groups(REWARDS), G)
    np.testing.assert_array_equal(informative, MASK & differ[:, None])
    assert informative[:G].any() and not informative[G:].any()
    for keep, mask in ((None, MASK), (Finished(), finished), (Informative(), informative)):
        experience, _ = of_grpo(keep=keep)
        np.testing.assert_array_equal(experience.rows.mask, mask)
        np.testing.assert_array_equal(experience.rows.samples.mask, MASK)


# --- the whole ------------------------------------------------------------------------------------


def test_the_loss_is_made_of_its_parts():
    rows = experience_of(BATCH, samples_of(), OF_ROWS)
    totals, old = Totals.of(MASK), rows.rows.samples.logps
    value, metrics = policy_loss(GRPO(Group(), SoftGated()), LOGPS, rows, totals)
    wanted = losses.aggregate(losses.soft_gated_surrogate(LOGPS, old, OF_ROWS, mask=MASK), MASK)
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    assert metrics.keys() == {"loss", "logp_gap"} and metrics["loss"] == value
    gap = np.abs(LOGPS - OLD)[np.asarray(MASK)].mean()
    np.testing.assert_allclose(metrics["logp_gap"], gap, rtol=1e-6)

    pulled = GRPO(kl=KL(0.3), aggregation=SequenceMean())
    with_reference = rows.replace(rows=rows.rows.replace(reference_logps=REFERENCE))
    value, metrics = policy_loss(pulled, LOGPS, with_reference, totals)
    kl = losses.kl_divergence(LOGPS, REFERENCE, estimator="k3", old_logp=old, mask=MASK)
    surrogate = losses.clipped_surrogate(LOGPS, old, OF_ROWS, mask=MASK)
    wanted = losses.aggregate(surrogate + 0.3 * kl, MASK, mode="sequence_mean")
    np.testing.assert_allclose(value, wanted, rtol=1e-6)
    np.testing.assert_allclose(metrics["kl"], losses.aggregate(kl, MASK), rtol=1e-6)
    assert metrics.keys() == {"loss", "logp_gap", "clip_low", "clip_high", "kl"}


def test_any_function_of_the_form_takes_a_parts_place():
    halves = GRPO(
        advantages=lambda rewards: rewards / 2,
        adjust=lambda advantages, score, samples: advantages + score.terms["more"],
        surrogate=lambda logps, old, advantages, *, mask=None: logps * advantages[:, None],
        keep=lambda score, samples: samples.mask & (score.rewards.reshape(-1, 1) > 1),
        aggregation=lambda values, mask, totals: (values * mask).sum() / totals.samples,
    )
    score = Score(REWARDS, terms={"more": jnp.ones((N, G))})
    samples = samples_of()
    experience, _ = halves.experience(None, None, BATCH, samples, score, base=None, parts=1)
    np.testing.assert_array_equal(experience.rows.advantages, REWARDS.reshape(-1) / 2 + 1)
    value, metrics = policy_loss(halves, LOGPS, experience, Totals.of(experience.rows.mask))
    np.testing.assert_allclose(value, 2 * (LOGPS * MASK)[G:].sum() / (N * G), rtol=1e-6)
    assert metrics.keys() == {"loss", "logp_gap"}


def test_parts_are_static():
    """Equal ones are one key of a compiled program."""
    parts = (*ADVANTAGES, *SURROGATES, *REDUCTIONS, K2(), K3(), KL(), Finished())
    for part in (*parts, Informative(), InverseFrequency(), PerTerm((1.0, 2.0)), GRPO(), PPO()):
        again = dataclasses.replace(part)
        assert part == again and hash(part) == hash(again)
