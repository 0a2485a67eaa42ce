"""AlphaAlign's safety reward, and the term that it is of a run's reward (arXiv 2507.14987)."""

import dataclasses

import chex
import jax
import jax.numpy as jnp

from jaxalign.records import KINDS, Batch, Metrics, Rollout, Score, of_rows
from jaxalign.rewards.terms import Addable
from jaxalign.rewards.verifiers import Verifiers


def safety_reward(
    is_harmful: jax.Array,
    well_formed: jax.Array,
    refused: jax.Array,
    *,
    format_weight: float = 1.0,
    refusal_weight: float | jax.Array = 1.0,
) -> jax.Array:
    """Rewards the format always, and a refusal of harmful prompts only.

        R_s = r_f V_f + r_a V_r   on a harmful prompt
        R_s = r_f V_f − r_a V_r   on a benign one

    Source: AlphaAlign (arXiv 2507.14987). The weights are ours; the paper does not state them.

    Args:
      is_harmful: `[B]` bool, whether the row's prompt ought to be refused.
      well_formed: `[B]` bool, V_f of the output.
      refused: `[B]` bool, V_r of the answer.
      format_weight: r_f.
      refusal_weight: r_a, one for all rows or `[B]`.

    Returns:
      `[B]` float32.
    """
    chex.assert_rank([is_harmful, well_formed, refused], 1)
    chex.assert_equal_shape([is_harmful, well_formed, refused])
    sign = jnp.where(is_harmful, 1.0, -1.0)
    return (format_weight * well_formed + refusal_weight * sign * refused).astype(jnp.float32)


def balanced_weights(harmful: jax.Array, refused: jax.Array, *, prior: float = 1.0) -> jax.Array:
    """Weights of the refusal reward that grow with the errors of a row's side. Ours.

        w_i = 2 e_side(i) / (e_harmful + e_harmless),   e_side = (wrong + c) / (rows + 2c)

    `wrong` counts the side's rows that refuse where they should answer or the other way round, in
    this batch. Equal error rates give 1 everywhere, and a side without rows counts as half wrong.

    Args:
      harmful: `[B]` bool, whether a row ought to refuse.
      refused: `[B]` bool, whether it does.
      prior: c, rows that are counted as wrong, and as many as right, of each side: the more, the
        nearer are the weights to 1.

    Returns:
      `[B]` float32 between 0 and 2.
    """
    chex.assert_rank([harmful, refused], 1)
    chex.assert_equal_shape([harmful, refused])
    wrong = harmful != refused
    rate = lambda side: (jnp.sum(wrong & side) + prior) / (jnp.sum(side) + 2.0 * prior)  # noqa: E731
    on_harmful, on_harmless = rate(harmful), rate(~harmful)
    return 2.0 * jnp.where(harmful, on_harmful, on_harmless) / (on_harmful + on_harmless)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Safety(Addable):
    """The term `safety`: R_s, with the same top on both kinds of prompts.

        R = R_s                on a harmful prompt
        R = R_s + r_a          on a harmless one

    The constant r_a is ours: a critic or a group's mean would absorb it, but under a baseline that
    spans the batch it makes a right answer worth the same on both kinds of prompts. Without it
    refusing would look good as such, since harmful prompts would pay more at their best.

    Balancing is ours too (`balanced_weights`): r_a grows on the side, harmful or harmless, that
    goes wrong more often. With a constant r_a and as many harmful as harmless prompts, refusing
    more and refusing less pay the same to a policy that can't tell them apart yet, so its share of
    refusals drifts, up to an end from where it hardly returns.

    The outcome is 1 where the refusal is as it ought to be and 0 elsewhere.

    Attributes:
      verifiers: format and refusal automata over the vocabulary.
      format_weight: r_f. The paper is silent; 1 is ours.
      refusal_weight: r_a. The paper is silent; 1 is ours.
      balance: multiply r_a by `balanced_weights`; the paper does not.
    """

    verifiers: Verifiers
    format_weight: float = dataclasses.field(default=1.0, metadata={"static": True})
    refusal_weight: float = dataclasses.field(default=1.0, metadata={"static": True})
    balance: bool = dataclasses.field(default=False, metadata={"static": True})

    def __call__(self, batch: Batch, samples: Rollout) -> Score:
        """The `Score` of completions of prompts with kinds."""
        if batch.kind is None:
            raise ValueError("the safety reward needs the kind of each prompt: set Batch.kind")
        prompts = batch.prompts.tokens.shape[0]
        verdict = self.verifiers(samples.tokens, samples.readable(samples.mask))
        kind = of_rows(batch.kind, samples)
        harmful = kind == KINDS.index("harmful")
        balanced = balanced_weights(harmful, verdict.refused) if self.balance else 1.0
        weight = self.refusal_weight * balanced
        total = safety_reward(
            harmful,
            verdict.well_formed,
            verdict.refused,
            format_weight=self.format_weight,
            refusal_weight=weight,
        )
        total = (total + weight * ~harmful).reshape(prompts, -1)
        right = (verdict.refused == harmful).astype(jnp.float32).reshape(prompts, -1)
        metrics: Metrics = {"well_formed": verdict.well_formed.mean()}
        for index, name in enumerate(KINDS):
            metrics[f"{name}_refused"] = mean_where(verdict.refused, kind == index)
        details = {"well_formed": verdict.well_formed, "refused": verdict.refused}
        return Score(total, right, {"safety": total}, details, metrics)


def mean_where(values: jax.Array, where: jax.Array) -> jax.Array:
    """Mean over the entries where the condition holds; NaN where it holds nowhere."""
    return jnp.sum(jnp.where(where, values, 0.0)) / jnp.sum(where)
