"""Which parameters of a run are its result: the last, or the best by a score."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.evaluation.measure import RESULTS, summary
from jaxalign.host.errors import InputError
from jaxalign.host.fields import Checked, Weight
from jaxalign.host.json_files import read_json
from jaxalign.reports.run_folder import validation_folders

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

    def score(self, rates: Mapping[str, Any]) -> float:
        """The score of what `jaxalign.evaluation.measure.summary` says, of the shares it has.

        Raises:
          InputError: nothing with a weight is in it.
        """
        shares = {"harmful": rates.get("harmful_refused"), "well_formed": rates["well_formed"]}
        for kind in ("benign", "lookalike"):
            refused = rates.get(f"{kind}_refused")
            shares[kind] = None if refused is None else 1 - refused
        counted = {name: x for name, x in shares.items() if x is not None}
        total = sum(getattr(self, name) for name in counted)
        if not total:
            raise InputError("keep: the validation prompts have nothing that its weights count")
        return sum(getattr(self, name) * x for name, x in counted.items()) / total


def best_step(run: Path, keep: Best) -> tuple[int, float]:
    """The step with the highest score in a run folder, the first of several, and the score."""
    scores = {
        step: keep.score(summary(read_json(folder / RESULTS)))
        for step, folder in validation_folders(run).items()
    }
    best = max(scores, key=lambda step: scores[step])
    return best, scores[best]
