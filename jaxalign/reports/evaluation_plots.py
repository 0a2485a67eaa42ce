"""The picture of an evaluation or a comparison: rates as points with their intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxalign.reports.plots import BLUE, GREEN, GREY, PURPLE, RED, save_figure
from jaxalign.reports.run_folder import printable

_COLORS = (BLUE, RED, GREEN, PURPLE, GREY, "black")
_MARKERS = "os^Dvx"


@dataclass(frozen=True)
class Panel:
    """One field of the picture.

    Attributes:
      title: what the rates are, and which way is better.
      rows: label -> series -> {rate, low, high}, from top to bottom.
    """

    title: str
    rows: Mapping[str, Mapping[str, Mapping[str, Any]]]


def plot_rates(panels: Sequence[Panel], path: Path) -> None:
    """Draws a panel for each kind of rate, a line for each suite, a point for each series.

    Series (judges, or models that are compared) keep colour and mark through all panels; `panels`
    is not empty, and neither are they.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    series = list(dict.fromkeys(x for panel in panels for row in panel.rows.values() for x in row))
    step = 0.18  # inches between the points of a line
    heights = [len(panel.rows) * (0.14 + step * len(series)) + 0.35 for panel in panels]
    figure = Figure(figsize=(8.5, sum(heights) + 0.55 * len(panels) + 0.7), dpi=120)
    figure.set_layout_engine("constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, field in zip(panels, axes, strict=True):
        labels = list(panel.rows)
        for line, label in enumerate(labels):
            for number, name in enumerate(series):
                found = panel.rows[label].get(name)
                if found is None or found["rate"] is None:
                    continue
                y = line + (number - (len(series) - 1) / 2) * 0.7 / len(series)
                color = _COLORS[number % len(_COLORS)]
                field.hlines(y, found["low"], found["high"], color=color, linewidth=1.6)
                field.plot(found["rate"], y, _MARKERS[number % len(_MARKERS)], color=color, ms=6)
                field.text(1.02, y, f"{found['rate']:.1%}", color=color, va="center", fontsize=8.5)
        field.set_yticks(
            range(len(labels)), [printable(label) for label in labels], parse_math=False
        )
        field.set(xlim=(-0.01, 1.01), ylim=(len(labels) - 0.5, -0.5))
        field.set_title(panel.title, loc="left", fontsize=11)
        field.xaxis.set_major_formatter(PercentFormatter(1.0))
        field.grid(axis="x", alpha=0.3)
        field.spines[["top", "right"]].set_visible(False)
    handles = [
        axes[0].plot([], [], _MARKERS[n % len(_MARKERS)] + "-", color=_COLORS[n % len(_COLORS)])[0]
        for n in range(len(series))
    ]
    figure.legend(
        handles,
        [printable(name).replace("$", r"\$") for name in series],
        loc="outside lower center",
        ncols=min(len(series), 3),
        frameon=False,
        title="points with 95% intervals",
        title_fontsize=9,
    )
    save_figure(figure, path)
