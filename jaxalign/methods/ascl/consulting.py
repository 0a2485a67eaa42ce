"""ASCL's reward (arXiv 2602.13562), on the device: outcome and format, none for consulting.

    R = r_f·V_f(o) + r_a·[refused = harmful]

with r_a weighed by `balanced_weights` where asked for.

The format is `jaxalign.rewards.CONSULTING_FORMAT_PATTERN`. The paper's reward is not public; this
one is ours: AlphaAlign's safety reward without its helpfulness part. Nothing is paid for a
consultation as such, so whether the model consults is decided by what it makes of the answer.
"""

import chex
import jax
import jax.numpy as jnp

from jaxalign.data.prompts import KINDS
from jaxalign.engine.step import RewardFn
from jaxalign.methods.alphaalign.reward import PromptFacts, RewardParams, alphaalign_reward
from jaxalign.models.transformer import Transformer
from jaxalign.records import Batch, Metrics, Rollout, Score


def ascl_reward(
    model: Transformer,
    *,
    format_weight: float = 1.0,
    refusal_weight: float = 1.0,
    balance: bool = False,
) -> RewardFn:
    """Builds ASCL's reward function for `make_step`.

    Args:
      model: the decoder.
      format_weight: r_f; ours.
      refusal_weight: r_a; ours.
      balance: as in `alphaalign_reward`.

    Returns:
      a function of (`RewardParams` with the consulting format's verifiers and no start model, batch
      with `PromptFacts`, rollout). Its metrics are `alphaalign_reward`'s and the shares of samples
      that consulted, in all (`consulted`), of each kind (`harmful_consulted`, …), and of those
      whose answer was `cut`.
    """
    outcome = alphaalign_reward(
        model,
        format_weight=format_weight,
        refusal_weight=refusal_weight,
        helpfulness_weight=0.0,
        balance=balance,
    )

    def reward(params: RewardParams, batch: Batch, samples: Rollout) -> Score:
        scored = outcome(params, batch, samples)
        facts: PromptFacts = batch.extras
        metrics = consulting_metrics(facts.kind, samples)
        details = scored.details | {"consulted": samples.mode > 0}
        return Score(scored.rewards, scored.metrics | metrics, details)

    return reward


def consulting_metrics(kind: jax.Array, samples: Rollout) -> Metrics:
    """How often samples consult, in all and by kind, and how often an answer was cut.

    Args:
      kind: `[N]` int32 index into `KINDS`.
      samples: B = N·G completions.

    Returns:
      `consulted`, `cut` and `KIND_consulted`, each a share; NaN for a kind that does not occur.
    """
    chex.assert_rank([kind, samples.mode], 1)
    consulted = samples.mode > 0
    of = jnp.repeat(kind, samples.mode.shape[0] // kind.shape[0])
    metrics = {"consulted": consulted.mean(), "cut": samples.cut.mean()}
    for index, name in enumerate(KINDS):
        metrics[f"{name}_consulted"] = jnp.sum(consulted & (of == index)) / jnp.sum(of == index)
    return metrics
