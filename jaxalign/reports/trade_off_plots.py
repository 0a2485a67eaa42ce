"""Pictures of models that are compared in refusals, from the rows of an ablation's results.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.reports.plots import BLUE, GREEN, PURPLE, RED, drawn_panels
from jaxalign.reports.trade_off import AXES, PLANE, curves, spot
from jaxalign.reports.trade_off_tables import Results, axes_in

COLORS = ("black", RED, BLUE, PURPLE, GREEN, "#E69F00", "#56B4E9", "#7A4B00")
"""Of groups, in their order."""

_LIMITS = (-0.03, 1.03)  # of an axis from 0 to 100 %


def plot_trade_off(results: Results, path: Path) -> None:
    """Attack success against over-refusal: a numbered mark for each row that has both.

    Dots are its seeds and thin lines its intervals; a curve joins the learning rates of an arm.
    """
    colors = _colors_of(results)
    with drawn_panels(path, (10.5, max(7, 0.18 * len(results) + 2))) as (axes,):
        for arm, curve in curves(results).items():
            color = next(colors[row["group"]] for row in results.values() if row["arm"] == arm)
            axes.plot(*zip(*curve, strict=True), "-", color=color, linewidth=1.2, alpha=0.5)
        numbers: dict[tuple[float, float], list[int]] = {}  # of the rows on one spot
        for number, (label, row) in enumerate(results.items(), start=1):
            axes.plot([], [], " ", label=f"{number:\u2007>2}  {label}")  # a digit wide
            if (place := spot(row)) is None:
                continue
            (x, y), color = place, colors[row["group"]]
            thin: dict[str, Any] = {"color": color, "linewidth": 0.7, "alpha": 0.35}
            axes.plot(row["over_refusal"][1:], [y, y], "-", **thin)
            axes.plot([x, x], row["attack_success"][1:], "-", **thin)
            for dy, dx in ([seed[axis] for axis in PLANE] for seed in row["by_seed"]):
                axes.plot([x, dx], [y, dy], ".:", markersize=5, **thin)
            face = "white" if row["dominated_by"] else color
            axes.plot(x, y, "o", color=color, markerfacecolor=face, markersize=8)
            near = (s for s in numbers if max(abs(s[0] - x), abs(s[1] - y)) < 0.012)
            numbers.setdefault(next(near, place), []).append(number)
        for place, those in numbers.items():
            right = place[0] > 0.7  # and so the text to the left
            style: dict[str, Any] = {"ha": "right" if right else "left", "fontsize": 8}
            shift = (-5 if right else 5, 5)
            text = ", ".join(map(str, those))
            axes.annotate(text, place, shift, textcoords="offset points", **style)
        for group, color in colors.items():
            axes.plot([], [], "o", color=color, label=group)
        axes.figure.legend(loc="outside right upper", frameon=False, fontsize=9)
        axes.set(
            title="Dots: seeds; hollow: another one is better by more than chance",
            xlabel="over-refusal: look-alikes refused, with 95 % intervals ◀ better",
            ylabel="attack success: harmful requests not refused ▼ better",
            xlim=_LIMITS,
            ylim=_LIMITS,
        )
        axes.xaxis.set_major_formatter("{x:.0%}")
        axes.yaxis.set_major_formatter("{x:.0%}")


def plot_axes(results: Results, path: Path) -> None:
    """Every row's axes with intervals, a panel for each axis."""
    names, colors = axes_in(results.values()), _colors_of(results)
    size = (2.8 * len(names) + 1.6, 0.34 * len(results) + 1.6)
    with drawn_panels(path, size, columns=len(names), grid="x", sharey=True) as panels:
        for axis, panel in zip(names, panels, strict=True):
            for place, row in enumerate(results.values()):
                (middle, *ends), color = row[axis], colors[row["group"]]
                panel.plot(ends, [place, place], "-", color=color, linewidth=1.4)
                panel.plot(middle, place, "o", color=color, markersize=6)
            panel.set(title=f"{AXES[axis]}\n◀ better".replace(", ", ",\n"), xlim=_LIMITS)
            panel.set_yticks(range(len(results)), list(results))
            panel.xaxis.set_major_formatter("{x:.0%}")
        panels[0].invert_yaxis()
        panels[0].figure.suptitle("Means over seeds with 95 % intervals", fontsize=11)


def _colors_of(results: Mapping[str, Any]) -> dict[str, str]:
    """A color for each group, in the order of the rows."""
    groups = dict.fromkeys(row["group"] for row in results.values())
    return {group: COLORS[place % len(COLORS)] for place, group in enumerate(groups)}
