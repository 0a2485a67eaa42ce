"""How far to trust a measured rate."""

import math
import statistics
from collections.abc import Iterable
from statistics import NormalDist
from typing import Any

_Z = NormalDist().inv_cdf(0.975)


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """Computes Wilson's 95% score interval for a proportion.

    With p = successes / n and z the standard normal quantile at 0.975::

        (p + z²/2n ± z √(p(1 − p)/n + z²/4n²)) / (1 + z²/n)

    Unlike p ± z √(p(1 − p)/n), it never leaves [0, 1] and keeps a sensible width at p = 0 and p =
    1, where refusal rates after training often are. A trial may count in part, as a prompt of which
    some answers do; the interval then is wider than need be (ours). 0 trials say nothing: (0, 1).

    Raises:
        ValueError: ``successes`` is not in [0, n].

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
        1927.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be between 0 and n = {n}, got {successes}")
    if n == 0:
        return 0.0, 1.0
    z, p = _Z, successes / n
    center = p + z * z / (2 * n)
    half_width = z * math.sqrt(p * (1.0 - p) / n + (z / (2 * n)) ** 2)
    scale = 1.0 + z * z / n
    # At the ends the formula gives exactly 0 or 1; rounding must not say otherwise.
    low = 0.0 if successes == 0 else (center - half_width) / scale
    high = 1.0 if successes == n else (center + half_width) / scale
    return low, high


def share(successes: float, n: int) -> dict[str, Any]:
    """`rate`, None of nothing, with `low` and `high` of `wilson_interval`, and `n`; for JSON."""
    low, high = wilson_interval(successes, n)
    return {"rate": successes / n if n else None, "low": low, "high": high, "n": n}


def mean_and_spread(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Mean and standard deviation (n − 1) of the numbers there are: None and NaN are left out.

    The mean of none is None, the deviation of less than two too.
    """
    numbers = [float(x) for x in values if x is not None and not math.isnan(x)]
    mean = statistics.mean(numbers) if numbers else None
    return mean, statistics.stdev(numbers) if len(numbers) > 1 else None


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Computes the exact two-sided p-value of McNemar's test on paired verdicts.

    Two methods judge the same n items; only those count that one of them gets right and the other
    wrong. If the methods are equally good, each such item is a fair coin, so with k the smaller of
    the two counts and m their sum::

        p = min(1, 2 Σ_{j ≤ k} C(m, j) / 2^m)

    which is 1 where the methods never differ.

    Raises:
        ValueError: a count is negative.

    Source: Q. McNemar, "Note on the sampling error of the difference between correlated
        proportions or percentages", 1947; the exact form is the sign test.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"counts must not be negative, got {only_first} and {only_second}")
    m = only_first + only_second
    tail = sum(math.comb(m, j) for j in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**m)


def paired_difference_interval(only_first: int, only_second: int, n: int) -> tuple[float, float]:
    """Computes the adjusted Wald 95% interval for the difference of two paired proportions.

    Two models answer the same n prompts; b of them count for the first alone, c for the second. The
    difference, second minus first, is (c − b) / n. With p = (b + 1)/(n + 2), q = (c + 1)/(n + 2),
    and z the standard normal quantile at 0.975::

        (q − p) ± z √((p + q − (q − p)²) / (n + 2)), cut to [−1, 1]

    The two added pairs keep the width sensible where the models never differ.

    Raises:
        ValueError: a count is negative, b + c exceeds n, or n is 0.

    Source: D. G. Bonett and R. M. Price, "Adjusted Wald confidence interval for a difference of
        binomial proportions based on paired data", 2012.
    """
    if min(only_first, only_second) < 0 or only_first + only_second > n or n < 1:
        raise ValueError(
            f"counts must be at least 0 and sum to at most n, got {only_first}, {only_second}, {n}"
        )
    p, q = (only_first + 1) / (n + 2), (only_second + 1) / (n + 2)
    half_width = _Z * math.sqrt((p + q - (q - p) ** 2) / (n + 2))
    return max(-1.0, q - p - half_width), min(1.0, q - p + half_width)
