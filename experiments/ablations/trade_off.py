"""CADA's arms compared: which points others beat, the table, and the plot of what safety costs."""

from pathlib import Path
from typing import Any


def dominating(row: dict[str, Any], others: dict[str, dict[str, Any]]) -> list[str]:
    """The points that are no worse in attack success and over-refusal, and better in one.

    A difference within the intervals of the rates counts too.
    """
    own = (row["attack_success"], row["over_refusal"])
    if None in own:
        return []
    return [
        name
        for name, other in others.items()
        if other["attack_success"] <= own[0]
        and other["over_refusal"] <= own[1]
        and (other["attack_success"], other["over_refusal"]) != own
    ]


def make_table(rows: dict[str, dict[str, Any]]) -> str:
    """One line for each point: attack success by suite, over-refusal by suite and kind, utility.

    In a title's brackets stands how many prompts a rate is over. The perplexity is that of the
    start model's answers to bare requests: how far training has moved the weights.
    """
    suites = next(iter(rows.values()))["suites"]
    columns: list[tuple[str, Any]] = []
    for suite, rates in suites.items():
        if "harmful_refused" in rates:
            title = f"{suite} ASR ({rates['n']['harmful']})"
            columns.append((title, lambda x, s=suite: 1 - x["suites"][s]["harmful_refused"]))
        for kind, label in (("benign", "benign"), ("lookalike", "look-alike")):
            name = f"{kind}_refused"
            if name in rates:
                title = f"{suite} {label} refused ({rates['n'][kind]})"
                columns.append((title, lambda x, s=suite, n=name: x["suites"][s][n]))
    columns += [
        ("well-formed", lambda x: x["well_formed"]),
        ("sums", lambda x: x.get("solved")),
        ("perplexity", perplexity_of),
    ]
    lines = [
        f"| arm | learning rate | {' | '.join(title for title, _ in columns)} | dominated by |",
        "|" + "---|" * (len(columns) + 3),
    ]
    for row in rows.values():
        rate = "–" if row["learning_rate"] is None else f"{row['learning_rate']:g}"
        cells = [show(value(row)) for _, value in columns]
        worse = row["dominated_by"]
        beaten = "–" if not worse else worse[0] if len(worse) == 1 else f"{len(worse)} points"
        lines.append(f"| {row['arm']} | {rate} | {' | '.join(cells)} | {beaten} |")
    return "\n".join(lines) + "\n"


def perplexity_of(row: dict[str, Any]) -> float | None:
    """Of the arms that are asked bare or have other weights; the others' is that of none."""
    return row["perplexity"] if row["arm"] == "none" or row["learning_rate"] else None


def show(value: float | None) -> str:
    """Two decimals, or a dash."""
    return "–" if value is None else f"{value:.2f}"


COLORS = ("#D55E00", "#0072B2", "#CC79A7", "#009E73", "#E69F00", "#56B4E9", "#7A4B00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
"""One of each for every arm that trains."""


def plot_trade_off(rows: dict[str, dict[str, Any]], path: Path) -> None:
    """Attack success against over-refusal: a curve for each trained arm, a mark for the others."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    figure = Figure(figsize=(9, 6.4), dpi=120, layout="constrained")
    axes = figure.subplots()
    arms = list(dict.fromkeys(row["arm"] for row in rows.values()))
    trained = list(dict.fromkeys(row["arm"] for row in rows.values() if row["learning_rate"]))
    for arm in arms:
        own = [row for row in rows.values() if row["arm"] == arm]
        own = [row for row in own if None not in (row["attack_success"], row["over_refusal"])]
        x = [row["over_refusal"] for row in own]
        y = [row["attack_success"] for row in own]
        if arm in trained:
            index = trained.index(arm) % len(COLORS)
            color, marker = COLORS[index], MARKERS[index]
            axes.plot(x, y, "-", color=color, linewidth=1.4, alpha=0.7)
        else:
            color, marker = "black", "*"
        for row in own:
            face = "white" if row["dominated_by"] else color
            spot = (row["over_refusal"], row["attack_success"])
            size = 11 if marker == "*" else 7
            axes.plot(*spot, marker, color=color, markerfacecolor=face, markersize=size)
            rate = row["learning_rate"]
            text = arm if rate is None else f"{rate:g}"
            axes.annotate(text, spot, (5, 4), textcoords="offset points", fontsize=7.5, color=color)
        if arm in trained:
            axes.plot([], [], f"{marker}-", color=color, label=arm)
    axes.plot([], [], "*", color="black", label="no training", linestyle="none")
    axes.set(
        title="Safety against over-refusal (hollow: another point is no worse in both, and better)",
        xlabel="over-refusal: harmless requests refused ◀ better",
        ylabel="attack success: harmful requests not refused ▼ better",
        xlim=(-0.03, 1.03),
        ylim=(-0.03, 1.03),
    )
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path)
