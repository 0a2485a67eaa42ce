"""The pictures of a report, in colours that colour-blind readers can tell apart (Okabe and Ito)."""

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxalign.reports.printable import KINDS, percent, printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, RED, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8C8C8C"
# Lines differ by dash as well as by colour.
_LINES = ((RED, "-"), (BLUE, "--"), (PURPLE, "-."), (GREEN, ":"), ("black", "-"))
KIND_LINES = dict(zip(KINDS, _LINES, strict=False))  # colour and dash of each kind
_POINTS = ((BLUE, "o"), (RED, "s"), (GREEN, "^"), (PURPLE, "D"), (GREY, "v"), ("black", "x"))
_SHARE = (-0.04, 1.04)
_LEGEND: dict[str, Any] = {"loc": "best", "framealpha": 0.6, "edgecolor": "none"}


@dataclasses.dataclass(frozen=True)
class _Panel:
    """Curves over the training steps: metric -> (label, colour, dash); those recorded are drawn."""

    title: str
    unit: str
    curves: Mapping[str, tuple[str | None, str, str]]
    limits: tuple[float, float] | None = None


def plot_training(metrics: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws reward, form, refusals, and consultations, answer likelihood or entropy by step.

    Of a run with a critic also its loss and how much of the returns' variance it explains; of one
    without rewards only the loss, and with pairs of answers how many are preferred. Faint points
    are the single steps, lines their moving average. ``metrics`` is not empty.
    """

    def recorded(name: str) -> bool:
        return series(metrics, name)[0].size > 0

    if not any("reward" in row for row in metrics):
        pairs = recorded("preferred")
        panels = [_Panel("Loss ▼", "nats a pair" if pairs else "nats per token", _alone("loss"))]
        if pairs:
            preferred = _alone("preferred", BLUE)
            panels.append(_Panel("Chosen answers preferred ▲", "share of pairs", preferred, _SHARE))
        return _plot_steps(metrics, panels, path, (12 if pairs else 7, 4))
    rewards = {
        "reward": ("all prompts", "black", "-"),
        "reward_harmful": ("harmful", *KIND_LINES["harmful"]),
        "reward_benign": ("benign", *KIND_LINES["benign"]),
    }
    consultations = {
        f"{kind}_consulted": (KINDS[kind].lower(), *line) for kind, line in KIND_LINES.items()
    }
    # The first of them that was recorded.
    others = [
        _Panel("Consultations", "share of samples", consultations, _SHARE),
        _Panel(
            "Likelihood of the answers under the start model",
            "nats per token",
            _alone("answer_likelihood"),
        ),
        _Panel("Helpfulness score of the answers ▲", "score", _alone("answer_score")),
        _Panel("Entropy", "nats per token", _alone("entropy")),
    ]
    panels = [
        _Panel("Reward", "mean reward", rewards),
        _Panel("Well-formed answers ▲", "share of samples", _alone("well_formed"), _SHARE),
        _refusals("share of samples refused"),
        next((panel for panel in others if any(map(recorded, panel.curves))), others[-1]),
    ]
    if recorded("value_loss"):
        unit, limits = "share of the returns' variance", (-1.04, 1.04)  # far below if they are flat
        panels += [
            _Panel("Critic's loss ▼", "half the mean squared error", _alone("value_loss")),
            _Panel("What the critic explains ▲", unit, _alone("explained_variance"), limits),
        ]
    _plot_steps(metrics, panels, path, (12, 3.7 * (len(panels) // 2)))


def plot_validation(rates: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws refusals and form of the validation prompts by step.

    ``rates`` is not empty: `step` and what `jaxalign.evaluation.measure.summary` says, of each.
    """
    panels = [
        _refusals("share of validation prompts refused"),
        _Panel(
            "Well-formed answers ▲", "share of validation prompts", _alone("well_formed"), _SHARE
        ),
    ]
    note = "validation prompts, asked greedily"
    _plot_steps(rates, panels, path, (12, 4), window=1, along="steps done", note=note)


def plot_key_words(curves: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Draws the share of rollouts that have used a safety key word by each token, with intervals.

    ``curves`` is not empty: label -> what `probes.key_words` found; the first five are drawn.
    """
    bands = {
        f"{label} (n = {x['rollouts']})": (range(1, len(x["by"]) + 1), x["by"], x["low"], x["high"])
        for label, x in curves.items()
    }
    with drawn_panels(path, (7.5, 4.3)) as (axes,):
        _draw_bands(axes, bands)
        axes.set(title="Safety key words in the reasoning", xlabel="token of the reasoning")
        axes.set(ylabel="share of rollouts that have used one")
        axes.set_xlim(1, max(2, *(len(curve["by"]) for curve in curves.values())))
        axes.locator_params(axis="x", integer=True)
        axes.legend(**_LEGEND, title="bands: 95% intervals", title_fontsize=9)


def plot_safety_at_k(curves: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """Draws the chance that any, and that all, of k answers are safe, by k, with intervals.

    ``curves`` is not empty: label -> what `probes.safety_at_k` found; the first five are drawn.
    """
    some: dict[str, Any] = {}
    every: dict[str, Any] = {}
    for label, points in curves.items():
        name, ks = f"{label} ({points[0]['prompts']} prompts)", [x["k"] for x in points]
        for bands, what in ((some, "any"), (every, "all")):
            intervals = zip(*(x[f"{what}_interval"] for x in points), strict=True)
            bands[name] = (ks, [x[f"{what}_safe"] for x in points], *intervals)
    with drawn_panels(path, (10, 5), columns=2, sharey=True) as panels:
        for panel, bands in zip(panels, (some, every), strict=True):
            _draw_bands(panel, bands, marker="o")
            panel.set(xlabel="k", xticks=sorted({k for ks, *_ in bands.values() for k in ks}))
        panels[0].set(title="At least one of k answers is safe ▲", ylabel="share of prompts")
        panels[1].set(title="All k answers are safe ▲")
        _legend_below(panels[0], "bands: 95% intervals", columns=2)


def plot_rates(
    panels: Mapping[str, Mapping[str, Mapping[str, Mapping[str, Any]]]], path: Path
) -> None:
    """Draws rates as points with their intervals: a panel for each kind of rate.

    Series (judges, or models that are compared) keep colour and mark through all panels. These are
    title -> label of a line, from top to bottom -> series -> {rate, low, high}; none of them empty.
    What a rate lacks, or is None, is not drawn.
    """
    names = list(dict.fromkeys(x for rows in panels.values() for row in rows.values() for x in row))
    styles = {name: _POINTS[number % len(_POINTS)] for number, name in enumerate(names)}
    step = 0.18  # inches between the points of a line
    heights = [len(rows) * (0.14 + step * len(names)) + 0.35 for rows in panels.values()]
    columns = 1 if max(map(len, names)) > 30 else min(len(names), 3)  # names may be paths
    legend = 0.5 + 0.2 * math.ceil(len(names) / columns)
    size = (8.5, sum(heights) + 0.55 * len(panels) + legend)
    with drawn_panels(path, size, len(panels), grid="x", height_ratios=heights) as fields:
        for field, (title, rows) in zip(fields, panels.items(), strict=True):
            for line, row in enumerate(rows.values()):
                for number, (name, (color, marker)) in enumerate(styles.items()):
                    if name not in row:
                        continue
                    share, low, high = (row[name].get(x) for x in ("rate", "low", "high"))
                    y = line + (number - (len(names) - 1) / 2) * 0.7 / len(names)
                    if low is not None and high is not None:
                        field.hlines(y, low, high, color=color, linewidth=1.6)
                    if share is not None:
                        field.plot(share, y, marker, color=color, ms=6)
                    field.text(1.02, y, percent(share), color=color, va="center", fontsize=8.5)
            field.set_yticks(range(len(rows)), [printable(x) for x in rows], parse_math=False)
            field.set(xlim=(-0.01, 1.01), ylim=(len(rows) - 0.5, -0.5))
            field.set_title(_plain(title), loc="left", fontsize=11)
            field.xaxis.set_major_formatter("{x:.0%}")
        for name, (color, marker) in styles.items():
            fields[0].plot([], [], marker + "-", color=color, label=_plain(name))
        _legend_below(fields[0], "points with 95% intervals", columns)


def series(metrics: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps [S] at which a metric has a number, and the numbers [S]; both float64."""
    points = [(row["step"], row[name]) for row in metrics if isinstance(row.get(name), int | float)]
    steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return steps, values


def moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """Averages each value [S] over a centred window of odd length, which shrinks at both ends."""

    def sums(x: np.ndarray) -> np.ndarray:
        return np.convolve(x, np.ones(window))[window // 2 :][: x.size]

    return sums(values) / sums(np.ones(values.size))


@contextlib.contextmanager
def drawn_panels(
    path: Path, size: tuple[float, float], rows: int = 1, columns: int = 1, **options: Any
) -> Iterator[list["Axes"]]:
    """The panels of a figure, `size` in inches, which in the end is a PNG file on white."""
    from matplotlib.figure import Figure

    grid = options.pop("grid", "both")
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, **options).flat)
    for panel in panels:
        panel.grid(axis=grid, alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    yield panels
    with warnings.catch_warnings():
        # Model output may hold characters that the font lacks; they are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(path, format="png", facecolor="white")


def _show_shares(axes: "Axes") -> None:
    """A vertical axis from 0 to 100 %."""
    axes.set_ylim(_SHARE)
    axes.yaxis.set_major_formatter("{x:.0%}")


def _plot_steps(
    metrics: Sequence[Mapping[str, Any]],
    panels: Sequence[_Panel],
    path: Path,
    size: tuple[float, float],
    *,
    window: int | None = None,
    along: str = "training step",
    note: str = "points: single steps; lines: their moving average",
) -> None:
    """Draws panels over the training steps, two in a row; lines average over a window of steps."""
    steps = [row["step"] for row in metrics]
    margin = max(1.0, 0.02 * (steps[-1] - steps[0]))
    columns = min(2, len(panels))
    space = {"wspace": 0.06, "hspace": 0.08}
    with drawn_panels(path, size, len(panels) // columns, columns, gridspec_kw=space) as fields:
        fields[0].figure.supxlabel(note, fontsize=9)
        for field, panel in zip(fields, panels, strict=True):
            field.set(title=panel.title, ylabel=panel.unit, xlabel=along)
            field.set_xlim(steps[0] - margin, steps[-1] + margin)
            field.locator_params(axis="x", integer=True)
            if panel.limits == _SHARE:
                _show_shares(field)
            elif panel.limits:
                field.set_ylim(panel.limits)
            for metric, (label, color, dash) in panel.curves.items():
                x, values = series(metrics, metric)
                if x.size:
                    field.plot(x, values, ".", color=color, alpha=0.25, markersize=5)
                    smooth = moving_average(values, window or max(3, values.size // 15 | 1))
                    field.plot(x, smooth, dash, color=color, linewidth=1.8, label=label)
            if not field.lines:
                field.text(0.5, 0.5, "not recorded", transform=field.transAxes, ha="center")
            elif len(panel.curves) > 1:
                field.legend(**_LEGEND)


def _refusals(unit: str) -> _Panel:
    curves = {
        f"{kind}_refused": (f"{KINDS[kind].lower()} {'▲' if kind == 'harmful' else '▼'}", *line)
        for kind, line in KIND_LINES.items()
    }
    return _Panel("Refusals", unit, curves, _SHARE)


def _alone(metric: str, color: str = GREEN) -> dict[str, tuple[str | None, str, str]]:
    """The only curve of a panel needs no label."""
    return {metric: (None, color, "-")}


def _draw_bands(axes: "Axes", bands: Mapping[str, Sequence[Any]], marker: str = "") -> None:
    """Shares with their intervals: label -> x, shares, lower and upper ends."""
    for (label, (x, shares, low, high)), (color, dash) in zip(bands.items(), _LINES, strict=False):
        name = _plain(label)
        axes.plot(x, shares, dash, color=color, linewidth=1.8, marker=marker, label=name)
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    _show_shares(axes)


def _legend_below(axes: "Axes", title: str, columns: int) -> None:
    """The legend of one panel, below all of them."""
    axes.figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        title=title,
        title_fontsize=9,
    )


def _plain(label: str) -> str:
    """A label or title in which a dollar sign begins no formula."""
    return printable(label).replace("$", r"\$")
