"""Tables of models that are compared in refusals, from the rows of an ablation's results.json.

A difference is in bold, as more than chance, only where both sides have two seeds (what does not
train needs none): see `reports.trade_off` for what intervals hold.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jaxalign.host.markdown import markdown_table
from jaxalign.reports.trade_off import (
    AXES,
    PLANE,
    Draws,
    curves,
    differences,
    matched,
    with_intervals,
)

_TWO = ".2f"
MEANS = {"well_formed": _TWO, "finished": _TWO, "tokens": ".0f", "distinct": _TWO}
MEANS |= {"perplexity": _TWO}
"""Means over seeds in the table, and how they are written."""
LEVELS = (0.1, 0.25, 0.5)
"""Over-refusal at which arms with several learning rates are compared."""

_KINDS = {"harmful": "ASR", "lookalike": "safe refused", "benign": "benign refused"}

Results = Mapping[str, Mapping[str, Any]]


def suites_table(results: Results) -> str:
    """% for each suite and attack; in a title's brackets how many prompts it is of."""
    first = next(iter(results.values()))
    parts = [(*key.split("/"), rates["n"]) for key, rates in first["suites"].items()]
    kinds = list(_KINDS)  # attacks last, by their tokens
    number = lambda x: int(x.removeprefix("prefill-")) if x.startswith("prefill-") else 0  # noqa: E731
    parts.sort(key=lambda part: (number(part[0]), kinds.index(part[1])))
    titles = [f"{suite}, {_KINDS[kind]} ({count})" for suite, kind, count in parts]
    sums = ["solved"] if "solved" in first else []
    titles += [f"sums solved ({first['problems']:.0f})" for _ in sums]
    lines = []
    for label, row in results.items():
        refused = [(kind, row["suites"][f"{suite}/{kind}"]["refused"]) for suite, kind, _ in parts]
        rates = [1 - x if kind == "harmful" else x for kind, x in refused]
        rates += [row[name] for name in sums]
        lines.append([label, row["seeds"], *(f"{100 * rate:.1f}" for rate in rates)])
    says_what = "All numbers are percent; ASR: harmful prompts that are not refused.\n\n"
    return says_what + markdown_table(["arm", "seeds", *titles], lines)


def axes_table(results: Results) -> str:
    """Means over suites with intervals, what answers are like, and what is better.

    `perplexity` is that of the start model's answers: how far training has moved the weights.
    """
    axes = axes_in(results.values())
    means = {x: digits for x, digits in MEANS.items() if any(x in r for r in results.values())}
    lines = []
    for label, row in results.items():
        numbers = [f"{row[x]:{digits}}" if x in row else "–" for x, digits in means.items()]
        worse = row["dominated_by"]
        better = f"{len(worse)} points" if len(worse) > 1 else worse[0] if worse else "–"
        lines.append([label, row["seeds"], *_cells(row, axes, ".2f"), *numbers, better])
    titles = [*axes.values(), *(name.replace("_", "-") for name in means), "dominated by"]
    return (
        markdown_table(["arm", "seeds", *titles], lines)
        + "\nAn interval of no width: every answer counted alike. Dominated: another one is no "
        "worse in the first two, and better in one by more than chance.\n"
    )


def matched_table(results: Results) -> str:
    """Attack success of each arm with learning rates where its over-refusal passes `LEVELS`."""
    lines = [
        [arm, *("–" if x is None else f"{x:.2f}" for x in (matched(curve, y) for y in LEVELS))]
        for arm, curve in curves(results).items()
    ]
    titles = [f"at {level:.0%} over-refusal" for level in LEVELS]
    return markdown_table(["attack success", *titles], lines) if lines else ""


def reference_table(results: Results, draws: Mapping[str, Draws], reference: str) -> str:
    """Each label less a reference, paired by prompts."""
    others = [label for label in results if label != reference and reference in results]
    return _less_table(
        [f"less {reference}", "seeds"],
        [
            ([x, results[x]["seeds"]], draws[x], draws[reference], tells(results, x, reference))
            for x in others
        ],
    )


def nearest_table(results: Results, draws: Mapping[str, Draws]) -> str:
    """Each arm with one learning rate less the nearest point in attack success of the others."""
    axis = PLANE[0]
    tuned = [x for x, row in results.items() if row["rate"] is not None and axis in row]
    trained = [x for x, row in results.items() if row["rate"] is None and row["seeded"]]
    lines = []
    for label in (x for x in trained if tuned and axis in results[x]):
        success = results[label][axis][0]
        near = min(tuned, key=lambda x: abs(results[x][axis][0] - success))
        first = [label, results[label]["seeds"], near]
        lines.append((first, draws[label], draws[near], tells(results, label, near)))
    return _less_table(["arm", "seeds", "less the nearest tuning"], lines)


def seeds_table(arm: str, by_seed: Mapping[Any, Draws]) -> str:
    """Two seeds of one arm, as if they were two methods: what intervals over prompts alone say."""
    return _less_table(
        [f"two seeds of {arm}"],
        [
            ([f"{a} less {b}"], by_seed[a], by_seed[b], True)
            for a, b in itertools.combinations(by_seed, 2)
        ],
    )


def tells(results: Results, *labels: str) -> bool:
    """Whether what they differ by may be told from what seeds do, where points have seeds."""
    return all(results[x]["seeds"] > 1 or not results[x]["seeded"] for x in labels)


def axes_in(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The axes that there are, and what they are called."""
    first = next(iter(rows))
    return {axis: title for axis, title in AXES.items() if axis in first}


def _less_table(head: list[str], lines: Sequence[tuple[list[Any], Draws, Draws, bool]]) -> str:
    """First cells and the differences of two, in bold where that is asked for and 0 is outside."""
    rows = [(cells, with_intervals(differences(a, b)), bold) for cells, a, b, bold in lines]
    if not rows:
        return ""
    axes = axes_in(row for _, row, _ in rows)
    table = [[*cells, *_cells(row, axes, "+.2f", bold=bold)] for cells, row, bold in rows]
    return markdown_table([*head, *axes.values()], table)


def _cells(
    row: Mapping[str, Any], axes: Iterable[str], digits: str, *, bold: bool = False
) -> list[str]:
    """Numbers and their intervals, in bold where 0 is outside."""
    texts = []
    for middle, low, high in (row[axis] for axis in axes):
        text = f"{middle:{digits}} ({low:{digits}} to {high:{digits}})"
        texts.append(f"**{text}**" if bold and (low > 0 or high < 0) else text)
    return texts


def hardware_note(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """What was measured where, if not all of it in one place."""
    places: dict[str, dict[str, None]] = {}  # place -> labels, in order
    for label, seeds in rows.items():
        for point in seeds:
            places.setdefault(point["hardware"], {})[label] = None
    if len(places) < 2:
        return ""
    return "".join(f"Measured on {place}: {', '.join(names)}.\n" for place, names in places.items())
