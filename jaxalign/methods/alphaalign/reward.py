"""AlphaAlign's reward, whole and on the device (arXiv 2507.14987).

    R = R_s                       on a harmful prompt
    R = R_s + r_a + w·R_h         on a benign one

The constant r_a on benign prompts is ours: a critic or a group's mean would absorb it, but under
a baseline that spans the batch it makes a right answer worth the same on both kinds of prompts.
Without it refusing would look good as such, since harmful prompts would pay more at their best.

Balancing is ours too (`balanced_weights`): r_a grows on the side, harmful or harmless, that goes
wrong more often. With a constant r_a and as many harmful as harmless prompts, refusing more and
refusing less pay the same to a policy that can't tell them apart yet, so its share of refusals
drifts, up to an end from where it hardly returns.

R_s: `jaxalign.rewards.safety_reward`; R_h: `jaxalign.rewards.helpfulness_reward`. The score that
R_h normalises is, offline, ours: the mean log-likelihood per token of the answer given the bare
question under the frozen start model, so an answer that the original model would have given
itself is a good answer. A reward model or a function of the user's takes its place where one is
given (`jaxalign.rewards.answer_scores`).
"""

import functools
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxalign.data.prompts import KINDS, Prompt
from jaxalign.engine.step import RewardFn
from jaxalign.models.completion import compute_params
from jaxalign.models.transformer import Params, Transformer
from jaxalign.records import Batch, Metrics, Rollout, Score
from jaxalign.rewards import Verifiers, helpfulness_reward, safety_reward
from jaxalign.rewards.answer_scores import ScoreTokens, answer_likelihood
from jaxalign.runs.batches import kind_indices


@struct.dataclass
class PromptFacts:
    """What the reward knows of N prompts (`Batch.extras`), the harmful ones first.

    Attributes:
      kind: `[N]` int32 index into `jaxalign.data.prompts.KINDS`.
      questions: `[N', Q]` int32, the bare questions of the last N' prompts as chats: those that are
        not harmful and hence get a helpfulness score; N' may be 0.
      question_mask: `[N', Q]` bool.
      scores: `[N'·G]` float32, what the host says of the answers to the last N' prompts; None where
        the step scores them itself, from `questions`.
    """

    kind: jax.Array
    questions: jax.Array
    question_mask: jax.Array
    scores: jax.Array | None = None


def kinds_alone(prompts: Sequence[Prompt]) -> PromptFacts:
    """The facts of a batch whose reward has no helpfulness part: no questions."""
    none = np.zeros((0, 0), np.int32)
    arrays: Any = (kind_indices(prompts), none, none.astype(bool))
    return PromptFacts(*arrays)


@struct.dataclass
class RewardParams:
    """Arrays the reward needs: the verifiers' tables and the model that scores helpfulness.

    Attributes:
      verifiers: format and refusal automata over the vocabulary.
      scorer: a frozen model in the compute dtype: the one before training, or a reward model. None
        where helpfulness has no weight or is scored on the host.
    """

    verifiers: Verifiers
    scorer: Params | None


def balanced_weights(harmful: jax.Array, refused: jax.Array) -> jax.Array:
    """Weights of the refusal reward that grow with the errors of a row's side. Ours.

        w_i = 2 e_side(i) / (e_harmful + e_harmless),   e_side = (wrong + 1) / (rows + 2)

    `wrong` counts the side's rows that refuse where they should answer or the other way round, in
    this batch. Equal error rates give 1 everywhere, and a side without rows counts as half wrong.

    Args:
      harmful: `[B]` bool, whether a row ought to refuse.
      refused: `[B]` bool, whether it does.

    Returns:
      `[B]` float32 between 0 and 2.
    """
    chex.assert_rank([harmful, refused], 1)
    chex.assert_equal_shape([harmful, refused])
    wrong = harmful != refused
    rate = lambda side: (jnp.sum(wrong & side) + 1.0) / (jnp.sum(side) + 2.0)  # noqa: E731
    on_harmful, on_harmless = rate(harmful), rate(~harmful)
    return 2.0 * jnp.where(harmful, on_harmful, on_harmless) / (on_harmful + on_harmless)


def alphaalign_reward(
    model: Transformer,
    *,
    format_weight: float = 1.0,
    refusal_weight: float = 1.0,
    helpfulness_weight: float = 1.0,
    normalise: bool = True,
    balance: bool = False,
    score_answers: ScoreTokens | None = None,
) -> RewardFn:
    """Builds the reward function of AlphaAlign for `make_step`.

    Args:
      model: the policy, whose frozen start parameters score helpfulness by default.
      format_weight: r_f. The paper is silent; 1 is ours.
      refusal_weight: r_a. The paper is silent; 1 is ours.
      helpfulness_weight: w, 1 in the paper; 0 leaves the scoring pass out.
      normalise: False is the paper's ablation, R_h as the score r itself. Log-likelihoods are below
        zero and would pay for refusing, so r is their exponential then: the geometric mean of the
        tokens' probabilities (ours). Other scores are taken as they are.
      balance: multiply r_a by `balanced_weights`; the paper does not.
      score_answers: what scores helpfulness with `RewardParams.scorer`; by default
        `answer_likelihood`. Scores of the host's in the batch's `PromptFacts` go before it.

    Returns:
      a function of (`RewardParams`, batch with `PromptFacts`, rollout).
    """
    likelihood = functools.partial(answer_likelihood, model)

    def reward(params: RewardParams, batch: Batch, samples: Rollout) -> Score:
        facts: PromptFacts = batch.extras
        prompts = batch.prompts.shape[0]
        verdict = params.verifiers(samples.tokens, samples.mask)
        kind = jnp.repeat(facts.kind, samples.tokens.shape[0] // prompts)
        harmful = kind == KINDS.index("harmful")
        weight = refusal_weight * (balanced_weights(harmful, verdict.refused) if balance else 1.0)
        total = safety_reward(
            harmful,
            verdict.well_formed,
            verdict.refused,
            format_weight=format_weight,
            refusal_weight=weight,
        )
        total = total + weight * ~harmful
        details = {"well_formed": verdict.well_formed, "refused": verdict.refused}
        metrics: Metrics = {"well_formed": verdict.well_formed.mean()}
        group = samples.tokens.shape[0] // prompts
        scores = facts.scores
        scored = facts.questions.shape[0] if scores is None else scores.shape[0] // group
        if helpfulness_weight and scored:
            first = (prompts - scored) * group
            refused = verdict.refused[first:]
            ours = scores is None and score_answers is None
            if scores is None:
                if params.scorer is None:
                    raise ValueError("helpfulness needs a model that scores in RewardParams")
                scores = (score_answers or likelihood)(
                    params.scorer,
                    facts.questions,
                    facts.question_mask,
                    samples.tokens[first:],
                    verdict.answer[first:],
                )
            metrics["answer_likelihood" if ours else "answer_score"] = _mean(scores, ~refused)
            if ours and not normalise:
                scores = jnp.exp(scores)
            by_prompt = lambda x: x.reshape(scored, group)  # noqa: E731
            helpful = helpfulness_reward(
                by_prompt(scores), by_prompt(refused), normalise=normalise
            ).reshape(-1)
            helpful = jnp.pad(helpful, (first, 0))
            total = total + helpfulness_weight * helpful
            details |= {"helpfulness": helpful}
        for index, name in enumerate(KINDS):
            metrics[f"{name}_refused"] = _mean(verdict.refused, kind == index)
            metrics[f"reward_{name}"] = _mean(total, kind == index)
        return Score(total.reshape(prompts, -1), metrics, details | {"reward": total})

    return reward


def _mean(values: jax.Array, where: jax.Array) -> jax.Array:
    """Mean over the rows where the condition holds; NaN where it holds nowhere."""
    return jnp.sum(jnp.where(where, values, 0.0)) / jnp.sum(where)


def make_reward_params(verifiers: Verifiers, scorer: Params | None, dtype: Any) -> RewardParams:
    """Puts the verifiers' tables and the model that scores, cast to the compute dtype, together."""
    return RewardParams(verifiers, None if scorer is None else compute_params(scorer, dtype))
