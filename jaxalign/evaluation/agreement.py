"""How far a judge's verdicts agree with labels that people gave."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import chex
import numpy as np

from jaxalign.host.statistics import share


@dataclasses.dataclass(frozen=True)
class Agreement:
    """The four counts of verdicts against labels, and what follows; shares as of `share`.

    Attributes:
      both: verdict and label are true.
      only_verdict: the verdict alone is true: a false alarm.
      only_label: the label alone is true: a miss.
      neither: both are false.
    """

    both: int
    only_verdict: int
    only_label: int
    neither: int

    @property
    def n(self) -> int:
        """How many items there are."""
        return self.both + self.only_verdict + self.only_label + self.neither

    @property
    def accuracy(self) -> dict[str, Any]:
        """Of all items, those where verdict and label are the same."""
        return share(self.both + self.neither, self.n)

    @property
    def precision(self) -> dict[str, Any]:
        """Of the items whose verdict is true, those whose label is."""
        return share(self.both, self.both + self.only_verdict)

    @property
    def recall(self) -> dict[str, Any]:
        """Of the items whose label is true, those whose verdict is."""
        return share(self.both, self.both + self.only_label)

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa: agreement beyond what two independent raters with these shares reach.

        With p_o the accuracy, v and l the shares of true verdicts and of true labels::

            p_e = v·l + (1 − v)(1 − l),    κ = (p_o − p_e) / (1 − p_e)

        1 is full agreement, 0 is chance, below 0 is worse than chance. None where p_e = 1 (verdicts
        and labels are all the same one) and of no items.

        Source: J. Cohen, "A coefficient of agreement for nominal scales", 1960.
        """
        n = self.n
        verdicts, labels = self.both + self.only_verdict, self.both + self.only_label
        by_chance = verdicts * labels + (n - verdicts) * (n - labels)  # times n²
        if by_chance == n * n:
            return None
        return ((self.both + self.neither) * n - by_chance) / (n * n - by_chance)


def agreement(
    verdicts: Sequence[bool] | np.ndarray, labels: Sequence[bool] | np.ndarray
) -> Agreement:
    """Counts verdicts against labels, `[n]` bool each.

    Raises:
      AssertionError: they are not two vectors of one length.
    """
    found, true = np.asarray(verdicts, bool), np.asarray(labels, bool)
    chex.assert_rank([found, true], 1)
    chex.assert_equal_shape([found, true])
    return Agreement(
        both=int((found & true).sum()),
        only_verdict=int((found & ~true).sum()),
        only_label=int((~found & true).sum()),
        neither=int((~found & ~true).sum()),
    )
