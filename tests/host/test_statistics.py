"""Intervals for rates and paired differences, McNemar's test: by hand, SciPy, properties."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxalign.host.statistics import (
    mcnemar_p_value,
    mean_and_spread,
    paired_difference_interval,
    wilson_interval,
)

Z95 = 1.959963984540054


def test_mean_and_spread_are_of_the_numbers_there_are():
    assert mean_and_spread([1.0, None, 2.0, math.nan, 3.0]) == (2.0, 1.0)
    assert mean_and_spread([4.0]) == (4.0, None)
    assert mean_and_spread([None, math.nan]) == (None, None)


def test_by_hand_at_one_half():
    # p = 1/2, n = 4: centre 1/2, half-width z √(1/16 + z²/64) / (1 + z²/4) = z / (2 √(4 + z²)).
    half_width = Z95 / (2 * math.sqrt(4 + Z95**2))
    assert wilson_interval(2, 4) == pytest.approx((0.5 - half_width, 0.5 + half_width), rel=1e-12)


def test_by_hand_at_the_ends():
    # p = 0: both terms of the numerator are z²/2n, so the interval is (0, z² / (n + z²)).
    z2 = Z95**2
    assert wilson_interval(0, 20) == pytest.approx((0.0, z2 / (20 + z2)), rel=1e-12)
    assert wilson_interval(20, 20) == pytest.approx((20 / (20 + z2), 1.0), rel=1e-12)
    assert wilson_interval(0, 20)[0] == 0.0 and wilson_interval(20, 20)[1] == 1.0


@pytest.mark.parametrize(
    ("successes", "n", "expected"),
    # Newcombe (1998), "Two-sided confidence intervals for the single proportion", table I.
    [(81, 263, (0.2553, 0.3662)), (15, 148, (0.0624, 0.1605)), (0, 20, (0.0, 0.1611))],
)
def test_published_values(successes, n, expected):
    assert wilson_interval(successes, n) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(("successes", "n"), [(0, 1), (1, 1), (3, 7), (38, 40), (500, 1000)])
def test_equals_scipy(successes, n):
    test = stats.binomtest(successes, n)
    theirs = test.proportion_ci(confidence_level=0.95, method="wilson")
    ours = wilson_interval(successes, n)
    assert ours == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_no_trials_say_nothing():
    assert wilson_interval(0, 0) == (0.0, 1.0)


@settings(deadline=None)
@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_holds_the_rate_and_mirrors_when_success_and_failure_swap(counts):
    successes, n = counts
    low, high = wilson_interval(successes, n)
    assert 0.0 <= low <= successes / n <= high <= 1.0
    mirrored = wilson_interval(n - successes, n)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(-1, 3), (4, 3), (0, -1)])
def test_impossible_counts(successes, n):
    with pytest.raises(ValueError, match="successes"):
        wilson_interval(successes, n)


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    # m = 6: 2 (1 + 6) / 2⁶; m = 4: 2 (1 + 4 + 6) / 2⁴ is more than 1.
    [(5, 1, 14 / 64), (1, 5, 14 / 64), (2, 2, 1.0), (3, 0, 0.25), (0, 0, 1.0)],
)
def test_mcnemar_by_hand(first, second, expected):
    assert mcnemar_p_value(first, second) == expected


@pytest.mark.parametrize(("first", "second"), [(9, 4), (60, 75), (700, 900)])
def test_mcnemar_equals_scipy(first, second):
    theirs = stats.binomtest(first, first + second).pvalue
    assert mcnemar_p_value(first, second) == pytest.approx(theirs, rel=1e-9)


def test_mcnemar_refuses_a_negative_count():
    with pytest.raises(ValueError, match="negative"):
        mcnemar_p_value(-1, 3)


# --- paired differences --------------------------------------------------------------------------


def test_paired_difference_by_hand():
    # b = 1, c = 3, n = 8: p = 2/10, q = 4/10, (p + q − (q − p)²) / 10 = (0.6 − 0.04) / 10.
    half_width = Z95 * math.sqrt(0.056)
    expected = (0.2 - half_width, 0.2 + half_width)
    assert paired_difference_interval(1, 3, 8) == pytest.approx(expected, rel=1e-12)


def test_paired_difference_of_models_that_never_differ():
    # p = q = 1/(n + 2): ± z √(2/(n + 2)) / √(n + 2).
    low, high = paired_difference_interval(0, 0, 98)
    assert high == pytest.approx(Z95 * math.sqrt(2) / 100, rel=1e-12) and low == -high


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(0, 200), st.integers(0, 500))
def test_paired_difference_mirrors_when_the_models_swap(first, second, same):
    n = first + second + same
    if not n:
        return
    low, high = paired_difference_interval(first, second, n)
    assert -1 <= low < high <= 1
    swapped = paired_difference_interval(second, first, n)
    assert swapped == pytest.approx((-high, -low), abs=1e-12)


@pytest.mark.parametrize("shares", [(0.05, 0.10), (0.3, 0.1), (0.1, 0.1)])
def test_paired_difference_covers_as_often_as_it_says(shares):
    b, c = shares
    draws = np.random.default_rng(0).multinomial(60, [b, c, 1 - b - c], size=4000)
    ends = [paired_difference_interval(int(x), int(y), 60) for x, y, _ in draws]
    covered = np.mean([low <= c - b <= high for low, high in ends])
    assert 0.935 < covered < 0.995


@pytest.mark.parametrize("counts", [(-1, 0, 3), (2, 2, 3), (0, 0, 0)])
def test_impossible_pairs(counts):
    with pytest.raises(ValueError, match="counts"):
        paired_difference_interval(*counts)


def test_a_trial_may_count_in_part():
    assert wilson_interval(1.5, 4)[0] < wilson_interval(2, 4)[0]
    assert wilson_interval(1.5, 4)[0] > wilson_interval(1, 4)[0]
