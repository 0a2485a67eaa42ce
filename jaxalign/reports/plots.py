"""The pictures of a report, in colours that colour-blind readers can tell apart (Okabe and Ito)."""

import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxalign.reports.run_folder import (
    KINDS,
    MEASURES,
    Pair,
    Rate,
    get_rate,
    measures,
    printable,
    split_answer,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

    from jaxalign.evaluation.probes import KeyWords, SafetyAtK

BLUE, RED, GREEN, PURPLE, GREY = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#8C8C8C"
KIND_COLORS = {"harmful": RED, "benign": BLUE, "lookalike": PURPLE}
_COLORS = (RED, BLUE, PURPLE, GREEN, "black")
_DASHES = ("-", "--", "-.", ":", "-")
# Lines differ by dash as well as by colour.
_LINES = {"harmful": "-", "benign": "--", "lookalike": "-."}


def plot_training(metrics: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws reward, form, refusals, and consultations, answer likelihood or entropy by step.

    Of a run with a critic also its loss and how much of the returns' variance it explains.
    Faint points are the single steps, lines their moving average. ``metrics`` is not empty.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    critic = series(metrics, "value_loss")[0].size > 0
    rows = 3 if critic else 2
    figure = Figure(figsize=(12, 3.7 * rows), dpi=120, layout="constrained")
    axes = list(figure.subplots(rows, 2, gridspec_kw={"wspace": 0.06, "hspace": 0.08}).flat)
    _steps(figure, axes, metrics)
    reward, form, refusals, last, *of_critic = axes

    reward.set(title="Reward", ylabel="mean reward")
    _draw(reward, metrics, "reward", "all prompts", "black", "-")
    _draw(reward, metrics, "reward_harmful", "harmful", RED, _LINES["harmful"])
    _draw(reward, metrics, "reward_benign", "benign", BLUE, _LINES["benign"])

    form.set(title="Well-formed answers ▲", ylabel="share of samples", ylim=(-0.04, 1.04))
    _draw(form, metrics, "well_formed", None, GREEN, "-")

    refusals.set(title="Refusals", ylabel="share of samples refused", ylim=(-0.04, 1.04))
    for kind, label in KINDS.items():
        arrow = next(m.arrow for m in MEASURES if m.kind == kind)
        name = f"{kind}_refused"
        _draw(refusals, metrics, name, f"{label.lower()} {arrow}", KIND_COLORS[kind], _LINES[kind])

    consulting = [kind for kind in KINDS if series(metrics, f"{kind}_consulted")[0].size]
    if consulting:
        last.set(title="Consultations", ylabel="share of samples", ylim=(-0.04, 1.04))
        for kind in consulting:
            name, color, dash = f"{kind}_consulted", KIND_COLORS[kind], _LINES[kind]
            _draw(last, metrics, name, KINDS[kind].lower(), color, dash)
    else:
        titles = {
            "answer_likelihood": (
                "Likelihood of the answers under the start model",
                "nats per token",
            ),
            "answer_score": ("Helpfulness score of the answers ▲", "score"),
            "entropy": ("Entropy", "nats per token"),
        }
        name = next((name for name in titles if series(metrics, name)[0].size), "entropy")
        title, unit = titles[name]
        last.set(title=title, ylabel=unit)
        _draw(last, metrics, name, None, GREEN, "-")

    if critic:
        of_critic[0].set(title="Critic's loss ▼", ylabel="half the mean squared error")
        _draw(of_critic[0], metrics, "value_loss", None, GREEN, "-")
        of_critic[1].set(
            title="What the critic explains ▲", ylabel="share of the returns' variance"
        )
        of_critic[1].set_ylim(-1.04, 1.04)  # far below where the returns hardly vary
        _draw(of_critic[1], metrics, "explained_variance", None, GREEN, "-")

    for panel in (form, refusals, *([last] if consulting else [])):
        panel.yaxis.set_major_formatter(PercentFormatter(1.0))
    for panel in axes:
        if not panel.lines:
            panel.text(0.5, 0.5, "not recorded", transform=panel.transAxes, ha="center")
        elif panel in (reward, refusals) or (panel is last and consulting):
            panel.legend(loc="best", framealpha=0.6, edgecolor="none")
    save_figure(figure, path)


def plot_tuning(metrics: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws a tuning run by step: its loss, and with pairs of answers how many are preferred.

    Faint points are the single steps, lines their moving average. ``metrics`` is not empty.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    pairs = series(metrics, "preferred")[0].size > 0
    figure = Figure(figsize=(12 if pairs else 7, 4), dpi=120, layout="constrained")
    axes = list(figure.subplots(1, 2 if pairs else 1, squeeze=False).flat)
    _steps(figure, axes, metrics)
    axes[0].set(title="Loss ▼", ylabel="nats a pair" if pairs else "nats per token")
    _draw(axes[0], metrics, "loss", None, GREEN, "-")
    if pairs:
        axes[1].set(title="Chosen answers preferred ▲", ylabel="share of pairs", ylim=(-0.04, 1.04))
        axes[1].yaxis.set_major_formatter(PercentFormatter(1.0))
        _draw(axes[1], metrics, "preferred", None, BLUE, "-")
    save_figure(figure, path)


def plot_before_after(before: Mapping[str, Any], after: Mapping[str, Any], path: Path) -> None:
    """Draws the evaluated rates as grouped bars with 95% intervals and the desired direction."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    shown_measures = measures(before, after)
    width = max(9.5, 2.0 * len(shown_measures))
    figure = Figure(figsize=(width, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    for section, label, color, shift in (
        (before, "before", "#BDBDBD", -0.2),
        (after, "after", BLUE, 0.2),
    ):
        rates = {x + shift: get_rate(section, measure) for x, measure in enumerate(shown_measures)}
        shown = [rate.rate if rate else 0.0 for rate in rates.values()]
        axes.bar(list(rates), shown, 0.38, color=color, label=label)
        for x, rate in rates.items():
            _annotate(axes, x, rate)
    axes.set_xticks(
        range(len(shown_measures)),
        [
            f"{m.label}\n{m.wish}{'' if m.higher_is_better is None else ' is better'}"
            for m in shown_measures
        ],
    )
    axes.set(ylim=(0, 1.14), ylabel="share of held-out prompts")
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("Before and after training (whiskers: 95% intervals)", pad=26)
    axes.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    save_figure(figure, path)


def plot_answers(pairs: Sequence[Pair], path: Path) -> None:
    """Draws a table of prompts with the answers before and after training; long text is cut."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    # All lengths are in inches; a row is as high as its longest cell.
    line, pad, gap, header = 0.165, 0.12, 0.06, 0.42
    lefts, widths = (0.1, 2.6, 6.5), (2.4, 3.8, 3.8)
    rows = [(_describe_prompt(x), _describe(x.before), _describe(x.after)) for x in pairs]
    heights = [line * (1 + max(len(body) for _, body in row)) + 2 * pad + gap for row in rows]
    size = (10.4, header + sum(heights) + 0.1)
    figure = Figure(figsize=size, dpi=120)
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, size[0]), ylim=(size[1], 0))
    axes.axis("off")

    def write(x: float, y: float, text: str, **style: Any) -> "Text":
        # parse_math=False: a dollar sign in a model's answer is no formula.
        style |= {"va": "top", "fontsize": 8.5, "linespacing": 1.3, "parse_math": False}
        return axes.text(x, y, text, **style)

    for x, title in zip(lefts, ("Prompt", "Before training", "After training"), strict=True):
        write(x + 0.16, 0.14, title, weight="bold")
    top = header
    for pair, row, height in zip(pairs, rows, heights, strict=True):
        for left, width, (head, body) in zip(lefts, widths, row, strict=True):
            cell = Rectangle((left, top), width, height - gap, facecolor="#F6F6F6")
            axes.add_patch(cell)
            write(left + 0.16, top + 0.09, head, weight="bold", color="#444444")
            text = write(left + 0.16, top + pad + line, "\n".join(body), clip_on=True)
            text.set_clip_path(cell)  # wide letters may outrun the wrapped width
        color = KIND_COLORS.get(pair.kind, GREY)
        axes.add_patch(Rectangle((lefts[0], top), 0.06, height - gap, facecolor=color))
        top += height
    save_figure(figure, path)


def plot_key_words(curves: Mapping[str, "KeyWords"], path: Path) -> None:
    """Draws the share of rollouts that have used a safety key word by each token, with intervals.

    ``curves`` is not empty: label -> curve, at most five.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(7.5, 4.3), dpi=120, layout="constrained")
    axes = figure.subplots()
    for (label, curve), color, dash in zip(curves.items(), _COLORS, _DASHES, strict=False):
        x = np.arange(1, curve.by.size + 1)
        name = f"{label} (n = {curve.rollouts})"
        axes.plot(x, curve.by, dash, color=color, linewidth=1.8, label=name)
        axes.fill_between(x, curve.low, curve.high, color=color, alpha=0.15, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(1, max(2, *(curve.by.size for curve in curves.values())))
    axes.set(title="Safety key words in the reasoning", xlabel="token of the reasoning")
    _shares(axes, "share of rollouts that have used one", "bands: 95% intervals")
    save_figure(figure, path)


def plot_safety_at_k(curves: Mapping[str, Sequence["SafetyAtK"]], path: Path) -> None:
    """Draws the chance that any, and that all, of k answers are safe, by k, with intervals.

    ``curves`` is not empty: label -> one or more k, at most five labels.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), dpi=120, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    ks = sorted({point.k for points in curves.values() for point in points})
    for number, (label, points) in enumerate(curves.items()):
        color, dash = _COLORS[number], _DASHES[number]
        x = np.array([point.k for point in points])
        for panel, shares, intervals in (
            (panels[0], [p.any_safe for p in points], [p.any_interval for p in points]),
            (panels[1], [p.all_safe for p in points], [p.all_interval for p in points]),
        ):
            low, high = np.array(intervals).T
            name = f"{label} ({points[0].prompts} prompts)"
            panel.plot(x, shares, dash, marker="o", color=color, linewidth=1.8, label=name)
            panel.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)
    panels[0].set(title="At least one of k answers is safe ▲", xlabel="k")
    panels[1].set(title="All k answers are safe ▲", xlabel="k")
    for panel in panels:
        panel.set_xticks(ks)
    _shares(panels[0], "share of prompts")
    _shares(panels[1], "")
    lines, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        lines,
        labels,
        loc="outside lower center",
        ncols=2,
        frameon=False,
        title="bands: 95% intervals",
        title_fontsize=9,
    )
    save_figure(figure, path)


def _shares(axes: "Axes", label: str, legend: str | None = None) -> None:
    """A vertical axis from 0 to 100 %, and where `legend` is its title a legend."""
    from matplotlib.ticker import PercentFormatter

    axes.set(ylim=(-0.04, 1.04), ylabel=label)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if legend is not None:
        axes.legend(loc="best", framealpha=0.6, edgecolor="none", title=legend, title_fontsize=9)


def series(metrics: Sequence[Mapping[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps [S] at which a metric has a number, and the numbers [S]; both float64."""
    points = [(row["step"], row[name]) for row in metrics if isinstance(row.get(name), int | float)]
    steps, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return steps, values


def moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """Averages each value [S] over a centred window of odd length, which shrinks at both ends."""
    half = window // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(values.size)
    low, high = np.maximum(index - half, 0), np.minimum(index + half + 1, values.size)
    return (sums[high] - sums[low]) / (high - low)


def _steps(figure: "Figure", axes: Sequence["Axes"], metrics: Sequence[Mapping[str, Any]]) -> None:
    """Lets every panel run over the training steps, and says what points and lines are."""
    from matplotlib.ticker import MaxNLocator

    figure.supxlabel("points: single steps; lines: their moving average", fontsize=9)
    steps = [row["step"] for row in metrics]
    margin = max(1.0, 0.02 * (steps[-1] - steps[0]))
    for panel in axes:
        panel.set_xlim(steps[0] - margin, steps[-1] + margin)
        panel.grid(alpha=0.3)
        panel.set_xlabel("training step")
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.spines[["top", "right"]].set_visible(False)


def _draw(
    axes: "Axes",
    metrics: Sequence[Mapping[str, Any]],
    name: str,
    label: str | None,
    color: str,
    dash: str,
) -> None:
    steps, values = series(metrics, name)
    if not steps.size:
        return
    axes.plot(steps, values, ".", color=color, alpha=0.25, markersize=5)
    smooth = moving_average(values, max(3, values.size // 15 | 1))
    axes.plot(steps, smooth, dash, color=color, linewidth=1.8, label=label)


def _annotate(axes: "Axes", x: float, rate: Rate | None) -> None:
    """Adds the whisker and the value over it, or says that there is no value."""
    if rate is None:
        axes.text(x, 0.02, "n/a", ha="center", fontsize=9, color="#666666")
        return
    top = rate.rate
    if rate.low is not None and rate.high is not None:
        top = max(top, rate.high)
        axes.vlines(x, rate.low, rate.high, color="black", linewidth=1.3)
        axes.hlines([rate.low, rate.high], x - 0.05, x + 0.05, color="black", linewidth=1.3)
    axes.text(x, top + 0.015, f"{rate.rate:.1%}", ha="center", va="bottom", fontsize=9)


def _describe_prompt(pair: Pair) -> tuple[str, list[str]]:
    """Returns the kind and the wrapped prompt."""
    return KINDS.get(pair.kind, printable(pair.kind)), _wrap(pair.prompt, 30, 8)


def _describe(row: Mapping[str, Any] | None) -> tuple[str, list[str]]:
    """Returns a cell's status line and its wrapped text."""
    if row is None:
        return "not evaluated", []
    form = "✓ well-formed" if row.get("well_formed") else "✗ not well-formed"
    reasoning, answer = split_answer(str(row.get("completion", "")))
    lines = _wrap(f"Answer: {answer}" if reasoning is not None else answer, 54, 5)
    if reasoning is not None:
        lines = [*_wrap(f"Reasoning: {reasoning}", 54, 5), *lines]
    return f"{'refused' if row.get('refused') else 'answered'}   {form}", lines


def _wrap(text: str, width: int, lines: int) -> list[str]:
    return textwrap.wrap(printable(text), width, max_lines=lines, placeholder=" …")


def save_figure(figure: "Figure", path: Path) -> None:
    """Writes a PNG file on white."""
    with warnings.catch_warnings():
        # Model output may hold characters that the font lacks; they are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph")
        figure.savefig(path, format="png", facecolor="white")
