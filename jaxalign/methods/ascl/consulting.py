"""ASCL's reward (arXiv 2602.13562), on the device: outcome and format, none for consulting.

    R = r_f·V_f(o) + r_a·[refused = harmful]

with r_a weighed by `balanced_weights` where asked for.

The format is `jaxalign.rewards.CONSULTING_FORMAT_PATTERN`. The paper's reward is not public; this
one is ours: AlphaAlign's safety reward without its helpfulness part. Nothing is paid for a
consultation as such, so whether the model consults is decided by what it makes of the answer.
"""

import dataclasses

import jax

from jaxalign.records import KINDS, Batch, Metrics, Rollout, Score, of_rows
from jaxalign.rewards import Safety
from jaxalign.rewards.safety import mean_where
from jaxalign.rewards.terms import Addable


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Consulting(Addable):
    """The safety reward of completions that may consult, and how often they do.

    Attributes:
      safety: with the consulting format's verifiers.
    """

    safety: Safety

    def __call__(self, batch: Batch, samples: Rollout) -> Score:
        """`Safety`'s score with `consulting_metrics`, and `consulted` among the details."""
        score = self.safety(batch, samples)
        assert batch.kind is not None  # safety has checked it
        metrics = consulting_metrics(of_rows(batch.kind, samples), samples)
        details = score.details | {"consulted": samples.mode > 0}
        return score._replace(metrics=score.metrics | metrics, details=details)


def consulting_metrics(kind: jax.Array, samples: Rollout) -> Metrics:
    """`consulted` and `cut`, shares of the samples, and `KIND_consulted`, NaN without such a kind.

    `kind` is the `[B]` int32 index into `KINDS` of each completion's prompt.
    """
    consulted = samples.mode > 0
    metrics = {"consulted": consulted.mean(), "cut": samples.cut.mean()}
    for index, name in enumerate(KINDS):
        metrics[f"{name}_consulted"] = mean_where(consulted, kind == index)
    return metrics
