"""AlphaAlign's helpfulness reward, and the term that it is of a run's reward (arXiv 2507.14987)."""

import dataclasses
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxalign.records import Batch, Credit, Rollout, Score
from jaxalign.rewards.answer_scores import Likelihood
from jaxalign.rewards.safety import mean_where
from jaxalign.rewards.terms import Addable, term_score
from jaxalign.rewards.verifiers import Verdict


def helpfulness_reward(
    scores: jax.Array, refused: jax.Array, *, normalise: bool = True, eps: float = 1e-6
) -> jax.Array:
    """Rewards the answers that are better than the average answer to their prompt.

        z_i = (r_i − mean r) / (std r + ε)
        R_h = max(z_i, 0) if V_r(y_i) = 0, else 0

    Mean and standard deviation are over all G rollouts of a prompt, the refusals among them too.
    The paper leaves the standard deviation open; ours has G − 1 in the denominator, with which
    z is at most (G − 1)/√G: 2.47 for G = 8. A group of equal scores gets 0.

    The reward is for benign prompts only: the caller leaves it out where the prompt is harmful.
    Source: AlphaAlign (arXiv 2507.14987).

    Args:
      scores: `[N, G]` float, a reward model's score r of each answer; G ≥ 2.
      refused: `[N, G]` bool, whether the answer is a refusal.
      normalise: False is the paper's ablation: R_h is the score r itself, and 0 for a refusal.
      eps: ε, which keeps the quotient finite.

    Returns:
      `[N, G]` float32.

    Raises:
      ValueError: a group to normalise has a single rollout, so no standard deviation.
    """
    chex.assert_rank([scores, refused], 2)
    chex.assert_equal_shape([scores, refused])
    scores = scores.astype(jnp.float32)
    if not normalise:
        return jnp.where(refused, 0.0, scores)
    if scores.shape[1] < 2:
        raise ValueError("helpfulness_reward needs at least two rollouts of each prompt")
    scores = scores - scores[:, :1]  # so that equal scores are exactly zero, also when large
    deviation = scores - jnp.mean(scores, axis=1, keepdims=True)
    z = deviation / (jnp.std(scores, axis=1, keepdims=True, ddof=1) + eps)
    return jnp.where(refused, 0.0, jnp.maximum(z, 0.0))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Helpfulness(Addable):
    """The term `helpfulness`: R_h of answers to harmless prompts, 0 elsewhere.

    The last N' prompts of a batch are the harmless ones: those whose `PromptFacts` have questions.
    With one sample of a prompt its group is all N' answers (ours); a single answer has nothing to
    be better than, and earns 0 if scores are normalised.

    Attributes:
      verifiers: `(tokens, mask) -> Verdict`, which answers earn nothing and where they are:
        `Verifiers`, or `jaxalign.rewards.reasoned.Answers`.
      scorer: `Likelihood` or `RewardModel`; on the host `HostValues`, of `[N'·G]` answers.
      normalise: False is the paper's ablation, R_h as the score r itself. Log-likelihoods are below
        zero and would pay for refusing, so r is their exponential then: the geometric mean of the
        tokens' probabilities (ours). Other scores are taken as they are.
    """

    verifiers: Callable[[jax.Array, jax.Array], Verdict]
    scorer: Any
    normalise: bool = dataclasses.field(default=True, metadata={"static": True})

    def __call__(self, batch: Batch, samples: Rollout) -> Score:
        """The `Score` of completions of prompts with `PromptFacts`."""
        prompts, facts = batch.prompts.tokens.shape[0], batch.facts
        scored, group = facts.questions.shape[0], samples.tokens.shape[0] // prompts
        if not scored:
            return term_score("helpfulness", jnp.zeros((prompts, group), jnp.float32))
        verdict = self.verifiers(samples.tokens, samples.readable(samples.mask))
        first = (prompts - scored) * group
        refused, likelihood = verdict.refused[first:], isinstance(self.scorer, Likelihood)
        completions = samples.tokens[first:], verdict.answer[first:]
        scores = self.scorer(facts.questions, facts.question_mask, *completions)
        name = "answer_likelihood" if likelihood else "answer_score"
        metrics = {name: mean_where(scores, ~refused)}
        if likelihood and not self.normalise:
            scores = jnp.exp(scores)
        shape = (scored, group) if group > 1 else (1, scored)
        scores, refused = scores.reshape(shape), refused.reshape(shape)
        if scores.size == 1 and self.normalise:
            helpful = jnp.zeros(shape)
        else:
            helpful = helpfulness_reward(scores, refused, normalise=self.normalise)
        helpful = helpful.reshape(scored, group)
        helpful = jnp.pad(helpful, ((prompts - scored, 0), (0, 0)))
        score = term_score("helpfulness", helpful, metrics)
        by_answers_alone = Credit(jnp.stack([jnp.zeros_like(helpful), helpful]), None)
        return score._replace(credit=by_answers_alone)
