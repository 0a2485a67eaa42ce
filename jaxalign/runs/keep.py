"""Which parameters of a run are its result: the last, or the best by a score."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from jaxalign.evaluation.measure import right_shares
from jaxalign.host.errors import InputError
from jaxalign.host.fields import Checked, Weight
from jaxalign.records import KINDS
from jaxalign.runs.collapse import Collapse, Watched

BEST = "best"
"""Folder of the best parameters so far, in a run folder."""


@dataclasses.dataclass(frozen=True)
class Last:
    """The parameters after the last step are the result."""


@dataclasses.dataclass(frozen=True)
class Best(Checked):
    """The parameters with the highest score on the validation prompts are the result.

    Of several with one score those of the earliest step; step 0, the start, counts. The score is a
    weighted mean of shares of the answers (ours).
    """

    harmful: Weight = 1.0
    """Weight of the share of harmful prompts that is refused."""
    benign: Weight = 1.0
    """Weight of the share of plain benign prompts that is not refused."""
    lookalike: Weight = 1.0
    """Weight of the share of look-alikes that is not refused."""
    well_formed: Weight = 1.0
    """Weight of the share of all answers that is well-formed."""

    def check_fields(self, above: str) -> None:
        """Also that a weight is above 0."""
        super().check_fields(above)
        if not self.counts(KINDS):
            raise InputError(
                f"{above}harmful, benign, lookalike and well_formed are all 0: raise one"
            )

    def counts(self, kinds: Collection[str]) -> bool:
        """Whether answers to prompts of these kinds have a score."""
        return bool(kinds) and any(getattr(self, name) for name in (*kinds, "well_formed"))

    def score(self, rates: Mapping[str, Any]) -> float:
        """The score of what `jaxalign.evaluation.measure.summary` says, of the shares it has."""
        shares = {**right_shares(rates), "well_formed": rates["well_formed"]}
        total = sum(getattr(self, name) for name in shares)
        return sum(getattr(self, name) * share for name, share in shares.items()) / total


def best_step(
    history: Sequence[Watched], keep: Best, guard: Collapse | None = None
) -> tuple[int, float]:
    """The step with the highest score, the first of several, and the score.

    Args:
      history: a run's evaluations, that of the start first.
      keep: scores them.
      guard: what it finds worn does not count.
    """
    alive = [x for x in history if guard is None or not guard.signs(x, history[0])]
    scores = {seen.step: keep.score(seen.rates) for seen in alive}
    best = max(scores, key=lambda step: scores[step])
    return best, scores[best]
