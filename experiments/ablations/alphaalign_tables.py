"""AlphaAlign's arms in tables and plots, over the axes of trade_off.py.

An arm's number is the mean over its seeds. Intervals (95 %) are a bootstrap's that draws seeds and
prompts, alike for all arms, so that differences of two arms are paired. With few seeds they are too
narrow, with one they hold none of what seeds differ by: a difference is in bold, as more than
chance, only where both arms have two seeds (an untrained one needs none). All of it is ours.
"""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.ablations import trade_off
from experiments.ablations.comparison import measured_points, read_evaluations
from experiments.ablations.trade_off import DRAWS, Draws, Outcomes, outcomes_of, suite_rates
from jaxalign.host.json_files import write_json
from jaxalign.host.markdown import markdown_table

REFERENCES = ("alphaalign", "base-examples")
"""The arms that the others are held to in tables of differences; the second is the same prompt
without training."""

AXES = {
    "attack_success": "attack success",
    "over_refusal": "over-refusal",
    "prefilling": "prefilling",
    "benign_refused": "benign refused",
}
MEANS = {"well_formed": ".2f", "finished": ".2f", "tokens": ".0f", "distinct": ".2f"}
"""Means over seeds in the table, and how they are written."""


def report(out: Path, order: Sequence[str]) -> str:
    """Writes results.json, table.md and the plots of all points; returns the tables.

    Args:
      out: folder of the comparison.
      order: of the arms.
    """
    points, lost = measured_points(out, order)
    arms: dict[str, list[dict[str, Any]]] = {}
    made: dict[str, list[Outcomes]] = {}
    first: dict[str, list[Outcomes]] = {}
    for point, row in points.items():
        evaluations = read_evaluations(out / point.name)
        arms.setdefault(point.label, []).append(row)
        made.setdefault(point.label, []).append(outcomes_of(evaluations))
        first.setdefault(point.label, []).append(outcomes_of(evaluations, "first-sentence"))
    notes = [f"{x.label}, seed {x.seed}, diverged and is left out.\n" for x in lost]
    if not arms:
        return "".join(notes)
    draws = {arm: over_seeds(each) for arm, each in made.items()}
    at_once = {arm: over_seeds(each) for arm, each in first.items()}
    results = {
        arm: {
            "seeds": len(seeds),
            **with_intervals(draws[arm]),
            "first_sentence": with_intervals(at_once[arm]),
            "suites": suite_rates(made[arm]),
            **{
                key: float(np.mean([row[key] for row in seeds]))
                for key in (*MEANS, "solved")
                if key in seeds[0]
            },
            "difference": {
                reference: differences(draws[arm], draws[reference])
                | {"first_sentence": differences(at_once[arm], at_once[reference])}
                for reference in REFERENCES
                if arm != reference and reference in draws
            },
            "by_seed": [
                {axis: float(x[0]) for axis, x in over_seeds([one]).items()} for one in made[arm]
            ],
        }
        for arm, seeds in arms.items()
    }
    write_json(out / "results.json", results)
    control = zip(arms.get(REFERENCES[0], []), made.get(REFERENCES[0], []), strict=True)
    text = "\n".join(
        [
            suites_table(results),
            axes_table(results),
            *(difference_table(results, reference) for reference in REFERENCES),
            nearest_table(results, draws, at_once),
            seeds_table({row["seed"]: over_seeds([one]) for row, one in control}),
            hardware_note(arms),
            *notes,
        ]
    )
    (out / "table.md").write_text(text)
    plot_trade_off(results, out / "trade_off.png")
    plot_arms(results, out / "ablations.png")
    return text


def over_seeds(outcomes: Sequence[Outcomes]) -> Draws:
    """Each axis, as measured and drawn: prompts first, then which seeds the mean is over."""
    each = [trade_off.drawn_rates(one) for one in outcomes]
    seeds = len(each)
    chosen = np.random.default_rng(seeds).integers(seeds, size=(DRAWS, seeds))
    mixed = {}
    for axis in each[0]:
        stacked = np.stack([one[axis] for one in each])  # [seeds, 1 + DRAWS]
        drawn = stacked[chosen, np.arange(1, DRAWS + 1)[:, None]].mean(axis=1)
        mixed[axis] = np.concatenate([[stacked[:, 0].mean()], drawn])
    return mixed


def with_intervals(draws: Draws) -> dict[str, list[float] | None]:
    """What was measured of each axis and the middle 95 % of what was drawn; None of no prompts."""
    return {
        axis: [float(draws[axis][0]), *trade_off.interval(draws[axis])] if axis in draws else None
        for axis in AXES
    }


def differences(draws: Draws, reference: Draws) -> dict[str, list[float] | None]:
    """Of each axis, paired: the prompts of both were drawn alike."""
    return with_intervals({axis: draws[axis] - reference[axis] for axis in draws})


def suites_table(results: Mapping[str, Any]) -> str:
    """The paper's Table 1 and prefilling table in one: % for each suite."""
    first = next(iter(results.values()))
    says = {"harmful": "ASR", "lookalike": "safe refused", "benign": "benign refused"}
    attacked = [key for key in first["suites"] if key.startswith("prefill-")]
    attacked.sort(key=lambda key: int(key.split("/")[0].removeprefix("prefill-")))
    plain = [key for key in first["suites"] if key not in attacked]
    keys = [key for kind in says for key in plain if key.endswith(f"/{kind}")] + attacked
    parts = [(*key.split("/"), first["suites"][key]["n"]) for key in keys]
    titles = [f"{suite}, {says[kind]} ({count})" for suite, kind, count in parts]
    sums = ["solved"] if "solved" in first else []
    lines = []
    for arm, row in results.items():
        refused = {key: row["suites"][key]["refused"] for key in keys}
        rates = [1 - x if key.endswith("harmful") else x for key, x in refused.items()]
        rates += [row[name] for name in sums]
        lines.append([arm, row["seeds"], *(f"{100 * rate:.1f}" for rate in rates)])
    head = ["arm", "seeds", *titles, *(f"sums {name}" for name in sums)]
    says_what = "All numbers are percent; ASR: harmful prompts that are not refused.\n\n"
    return says_what + markdown_table(head, lines)


def axes_in(found: Mapping[str, Any]) -> list[str]:
    """The axes that there are."""
    return [axis for axis in AXES if found.get(axis) is not None]


def axes_table(results: Mapping[str, Any]) -> str:
    """Means over suites with intervals; by the first sentence too, another verifier."""
    axes = axes_in(next(iter(results.values())))
    lines = []
    for arm, row in results.items():
        other = [row["first_sentence"][axis] for axis in trade_off.AXES]
        intervals = [
            "–" if x is None else "{:.2f} ({:.2f} to {:.2f})".format(*x)
            for x in (row[axis] for axis in axes)
        ]
        both = " / ".join("–" if x is None else f"{x[0]:.2f}" for x in other)
        means = [f"{row[name]:{digits}}" for name, digits in MEANS.items()]
        lines.append([arm, row["seeds"], *intervals, both, *means])
    titles = [*(AXES[axis] for axis in axes), "first two by the first sentence"]
    head = ["arm", "seeds", *titles, *(name.replace("_", "-") for name in MEANS)]
    return markdown_table(head, lines) + "\nAn interval of no width: every answer counted alike.\n"


def difference_table(results: Mapping[str, Any], reference: str) -> str:
    """Each arm less a reference arm, paired by prompts."""
    rows = {
        arm: row["difference"][reference]
        for arm, row in results.items()
        if reference in row["difference"]
    }
    if not rows:
        return ""
    axes = axes_in(next(iter(rows.values())))
    lines = [
        [arm, results[arm]["seeds"]] + cells(row, axes, bold=has_seeds(results, arm, reference))
        for arm, row in rows.items()
    ]
    return markdown_table([f"less {reference}", "seeds", *(AXES[axis] for axis in axes)], lines)


def nearest_table(
    results: Mapping[str, Any], draws: Mapping[str, Draws], at_once: Mapping[str, Draws]
) -> str:
    """Each arm less the direct-refusal tuning that is nearest to it in attack success.

    The last two columns have the first two by the first sentence: the verifier that no arm but
    `first-sentence` was trained on.
    """
    both = trade_off.AXES
    tuned = [arm for arm in results if group_of(arm) == "sft"]
    if not tuned or not all(row[axis] for row in results.values() for axis in both):
        return ""
    axes = axes_in(results[tuned[0]])
    lines = []
    for arm in (arm for arm in results if group_of(arm) == "rl"):
        success = results[arm]["attack_success"][0]
        nearest = min(tuned, key=lambda x: abs(results[x]["attack_success"][0] - success))
        bold = has_seeds(results, arm, nearest)
        lines.append(
            [arm, results[arm]["seeds"], nearest]
            + cells(differences(draws[arm], draws[nearest]), axes, bold=bold)
            + cells(differences(at_once[arm], at_once[nearest]), both, bold=bold)
        )
    head = ["arm", "seeds", "less the nearest tuning", *(AXES[axis] for axis in axes)]
    return markdown_table([*head, *(f"{AXES[axis]}, first sentence" for axis in both)], lines)


def has_seeds(results: Mapping[str, Any], *arms: str) -> bool:
    """Whether all of them have two seeds at least, or do not train."""
    return all(results[arm]["seeds"] > 1 or group_of(arm) == "base" for arm in arms)


def seeds_table(by_seed: Mapping[int, Draws]) -> str:
    """Two seeds of one arm, as if they were two methods: what intervals over prompts alone say."""
    if len(by_seed) < 2:
        return ""
    axes = axes_in(next(iter(by_seed.values())))
    lines = [
        [f"{a} less {b}"] + cells(differences(by_seed[a], by_seed[b]), axes, bold=True)
        for a, b in itertools.combinations(by_seed, 2)
    ]
    return markdown_table([f"two seeds of {REFERENCES[0]}", *(AXES[axis] for axis in axes)], lines)


def cells(
    found: Mapping[str, Sequence[float] | None], axes: Sequence[str], *, bold: bool
) -> list[str]:
    """Differences and their intervals, in bold where 0 is outside."""
    texts = []
    for value in (found[axis] for axis in axes):
        text = "–" if value is None else "{:+.2f} ({:+.2f} to {:+.2f})".format(*value)
        apart = value is not None and (value[1] > 0 or value[2] < 0)
        texts.append(f"**{text}**" if bold and apart else text)
    return texts


def hardware_note(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """What was measured where, if not all of it in one place."""
    places: dict[str, dict[str, None]] = {}  # place -> arms, in order
    for arm, seeds in arms.items():
        for point in seeds:
            places.setdefault(point["hardware"], {})[arm] = None
    if len(places) < 2:
        return ""
    return "".join(f"Measured on {place}: {', '.join(names)}.\n" for place, names in places.items())


COLORS = {"base": "#000000", "sft": "#D55E00", "rl": "#0072B2"}
GROUPS = {"base": "no training", "sft": "direct refusals", "rl": "AlphaAlign"}


def group_of(arm: str) -> str:
    """What kind of arm it is, for its color."""
    return "base" if arm.startswith("base") else "sft" if arm.startswith("sft") else "rl"


def plot_trade_off(results: Mapping[str, Any], path: Path) -> None:
    """Attack success against over-refusal: a mark for each arm, a dot for each of its seeds."""
    placed = [
        (arm, row) for arm, row in results.items() if row["attack_success"] and row["over_refusal"]
    ]
    if not placed:
        return
    with trade_off.square(path, title="(dots: seeds)", size=(10, 7)) as axes:
        numbers: dict[tuple[float, float], list[int]] = {}  # of the arms on one spot
        for number, (arm, row) in enumerate(placed, start=1):
            color = COLORS[group_of(arm)]
            x, y = row["over_refusal"][0], row["attack_success"][0]
            for seed in row["by_seed"]:
                dx, dy = seed["over_refusal"], seed["attack_success"]
                axes.plot(dx, dy, ".", color=color, alpha=0.35, markersize=5)
                axes.plot([x, dx], [y, dy], "-", color=color, alpha=0.2, linewidth=0.7)
            axes.plot(x, y, "o", color=color, markersize=13, markeredgecolor="white")
            near = (s for s in numbers if max(abs(s[0] - x), abs(s[1] - y)) < 0.012)
            numbers.setdefault(next(near, (x, y)), []).append(number)
            axes.plot([], [], " ", label=f"{number:\u2007>2}  {arm}")  # a digit wide
        for spot, those in numbers.items():
            style: dict[str, Any] = {"va": "center", "color": "white", "xytext": (0, 0)}
            if len(those) > 1:
                style = {"va": "bottom", "color": "black", "xytext": (0, 8)}
            style |= {"textcoords": "offset points", "ha": "center", "fontsize": 7.5}
            axes.annotate(", ".join(map(str, those)), spot, **style)
        for group, name in GROUPS.items():
            axes.plot([], [], "o", color=COLORS[group], label=name)
        axes.figure.legend(loc="outside right upper", frameon=False, fontsize=9)


def plot_arms(results: Mapping[str, Any], path: Path) -> None:
    """Every arm's axes with intervals, a panel for each axis."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    axes = axes_in(next(iter(results.values())))
    size = (3.4 * len(axes) + 1.6, 0.34 * len(results) + 1.6)
    figure = Figure(figsize=size, dpi=120, layout="constrained")
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        for place, (arm, row) in enumerate(results.items()):
            if row[axis] is not None:
                middle, low, high = row[axis]
                color = COLORS[group_of(arm)]
                panel.plot([low, high], [place, place], "-", color=color, linewidth=1.4)
                panel.plot(middle, place, "o", color=color, markersize=6)
        panel.set(title=f"{AXES[axis]}\n◀ better", xlim=trade_off.LIMITS)
        panel.set_yticks(range(len(results)), list(results))
        panel.xaxis.set_major_formatter(PercentFormatter(1.0))
        panel.grid(axis="x", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    figure.suptitle("AlphaAlign's arms, means over seeds with 95 % intervals", fontsize=11)
    figure.savefig(path)
