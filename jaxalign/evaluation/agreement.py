"""How far a judge's verdicts agree with labels that people gave."""

from collections.abc import Sequence
from typing import Any

import chex
import numpy as np

from jaxalign.host.statistics import share


def agreement(
    verdicts: Sequence[bool] | np.ndarray, labels: Sequence[bool] | np.ndarray
) -> dict[str, Any]:
    """Holds verdicts against labels, `[n]` bool each.

    Kappa is Cohen's: agreement beyond what two independent raters with these shares reach. With p_o
    the accuracy, v and l the shares of true verdicts and of true labels::

        p_e = v·l + (1 − v)(1 − l),    κ = (p_o − p_e) / (1 − p_e)

    1 is full agreement, 0 is chance, below 0 is worse than chance.

    Returns:
      `n`; as of `share`, `accuracy`: where they are the same, `precision`: of true verdicts those
      whose label is true, and `recall`: of true labels those whose verdict is; `kappa`, None where
      p_e = 1 (verdicts and labels are all the same one) and of no items.

    Raises:
      AssertionError: they are not two vectors of one length.

    Source: J. Cohen, "A coefficient of agreement for nominal scales", 1960.
    """
    found, true = np.asarray(verdicts, bool), np.asarray(labels, bool)
    chex.assert_rank([found, true], 1)
    chex.assert_equal_shape([found, true])
    arrays = found, true, found & true, found == true
    n, (said, meant, both, right) = len(true), (int(array.sum()) for array in arrays)
    by_chance = said * meant + (n - said) * (n - meant)  # times n²
    same = by_chance == n * n
    return {
        "n": n,
        "accuracy": share(right, n),
        "precision": share(both, said),
        "recall": share(both, meant),
        "kappa": None if same else (right * n - by_chance) / (n * n - by_chance),
    }
