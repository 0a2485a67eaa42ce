"""Agreement of verdicts with labels, by hand and against another way to compute it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxalign.evaluation.agreement import agreement
from jaxalign.host.statistics import share, wilson_interval


def of_counts(*counts):
    """Of so many items where both are true, the verdict alone, the label alone, and neither."""
    return agreement(*np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], counts, axis=0).T)


def test_counts():
    counted = agreement([True, True, False, False, True], [True, False, True, False, True])
    assert counted == of_counts(2, 1, 1, 1)


def test_rates_by_hand():
    """Of 50: right on 35. Verdicts are true on 25 and labels on 30, so by chance on 0.3 + 0.2."""
    made = of_counts(20, 5, 10, 15)
    assert made["accuracy"] == share(35, 50) and made["accuracy"]["rate"] == 0.7
    assert made["kappa"] == pytest.approx((0.7 - 0.5) / (1 - 0.5))
    assert made["precision"]["rate"] == 20 / 25
    assert made["recall"]["rate"] == 20 / 30
    assert (made["recall"]["low"], made["recall"]["high"]) == wilson_interval(20, 30)


def test_kappa_at_its_ends():
    assert of_counts(3, 0, 0, 4)["kappa"] == 1
    assert of_counts(0, 3, 3, 0)["kappa"] == -1
    assert of_counts(1, 1, 1, 1)["kappa"] == 0
    assert of_counts(0, 0, 4, 4)["kappa"] == 0, "one verdict for all is no better than chance"


def test_where_there_is_nothing_to_say():
    assert of_counts(5, 0, 0, 0)["kappa"] is None, "chance alone agrees"
    assert of_counts(0, 0, 0, 0)["kappa"] is None
    nothing_found = of_counts(0, 0, 2, 3)
    assert nothing_found["precision"]["rate"] is None
    assert (nothing_found["precision"]["low"], nothing_found["precision"]["high"]) == (0, 1)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_kappa_is_one_less_disagreement_over_that_of_shuffled_labels(pairs):
    """1 − κ: how often they differ, over how often any verdict differs from any label."""
    verdicts, labels = np.array(pairs).T
    differ = (verdicts != labels).mean()
    by_chance = (verdicts[:, None] != labels).mean()
    kappa = agreement(verdicts, labels)["kappa"]
    if by_chance == 0:
        assert kappa is None
    else:
        assert kappa == pytest.approx(1 - differ / by_chance, abs=1e-12)


def test_other_lengths_are_refused():
    with pytest.raises(AssertionError):
        agreement([True], [True, False])
