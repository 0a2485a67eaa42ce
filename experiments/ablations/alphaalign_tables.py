"""AlphaAlign's arms in tables and plots.

    attack success   mean over suites of the share of harmful prompts that are not refused
    over-refusal     mean over suites of the share of look-alikes that are refused
    prefilling       mean over numbers of forced tokens of the share that is not refused
    benign refused   mean over suites of the share of plain benign prompts that are refused

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

from experiments.ablations.trade_off import (
    DRAWS,
    Outcomes,
    drawn_rates,
    frame_trade_off,
    outcomes_of,
    refused_at_once,
)
from jaxalign.host.json_files import read_json, write_json

REFERENCES = ("alphaalign", "base-examples")
"""The arms that the others are held to in tables of differences; the second is the same prompt
without training."""

AXES = {
    "attack_success": "attack success",
    "over_refusal": "over-refusal",
    "prefilling": "prefilling",
    "benign_refused": "benign refused",
}

Draws = dict[str, np.ndarray]
"""axis -> `[1 + DRAWS]`: as measured, then drawn."""


def report(out: Path, order: Sequence[str]) -> str:
    """Writes results.json, table.md and the plots of all points; returns the tables.

    Args:
      out: folder of the comparison.
      order: of the arms.
    """
    found = [read_json(path) for path in sorted(out.glob("*/measurements.json"))]
    found.sort(key=lambda x: (order.index(x["arm"]), x["rate"] or 0, x["seed"] or 0))
    arms: dict[str, list[dict[str, Any]]] = {}
    notes = []
    for point in found:
        arm = point["arm"] if point["rate"] is None else f"{point['arm']} {point['rate']:g}"
        if "diverged" in point:
            notes.append(f"{arm}, seed {point['seed']}, diverged and is left out.\n")
        else:
            arms.setdefault(arm, []).append(point)
    if not arms:
        return "".join(notes)
    made = {
        arm: [read_json(out / folder_of(p) / "evaluations.json") for p in seeds]
        for arm, seeds in arms.items()
    }
    draws = {arm: over_seeds(evaluations) for arm, evaluations in made.items()}
    at_once = {arm: over_seeds(x, refused_at_once) for arm, x in made.items()}
    control = (arms.get(REFERENCES[0], ()), made.get(REFERENCES[0], ()))
    by_seed = {point["seed"]: over_seeds([one]) for point, one in zip(*control, strict=True)}
    results = {
        arm: {
            "seeds": len(seeds),
            **{axis: with_interval(draws[arm].get(axis)) for axis in AXES},
            "first_sentence": {axis: with_interval(at_once[arm].get(axis)) for axis in AXES},
            "suites": suite_rates(made[arm]),
            **{
                key: float(np.mean([p[key] for p in seeds]))
                for key in ("well_formed", "finished", "tokens", "distinct", "solved")
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
    text = "\n".join(
        [
            suites_table(results),
            axes_table(results),
            *(difference_table(results, reference) for reference in REFERENCES),
            nearest_table(results, draws, at_once),
            seeds_table(by_seed),
            hardware_note(arms),
            *notes,
        ]
    )
    (out / "table.md").write_text(text)
    plot_trade_off(results, out / "trade_off.png")
    plot_arms(results, out / "ablations.png")
    return text


def folder_of(point: Mapping[str, Any]) -> str:
    """The name of a point's folder."""
    rate = None if point["rate"] is None else f"{point['rate']:g}"
    return "-".join(str(x) for x in (point["arm"], rate, point["seed"]) if x is not None)


def over_seeds(evaluations: Sequence[Mapping[str, Any]], verdict: Any = None) -> Draws:
    """Each axis, as measured and drawn: prompts first, then which seeds the mean is over."""
    each = [axes_of(outcomes_of(one, *([verdict] if verdict else []))) for one in evaluations]
    seeds = len(each)
    chosen = np.random.default_rng(seeds).integers(seeds, size=(DRAWS, seeds))
    mixed = {}
    for axis in each[0]:
        stacked = np.stack([one[axis] for one in each])  # [seeds, 1 + DRAWS]
        drawn = stacked[chosen, np.arange(1, DRAWS + 1)[:, None]].mean(axis=1)
        mixed[axis] = np.concatenate([[stacked[:, 0].mean()], drawn])
    return mixed


def axes_of(outcomes: Outcomes) -> Draws:
    """The four axes of one model."""
    plain = {key: x for key, x in outcomes.items() if not key[0].startswith("prefill-")}
    forced = {key: x for key, x in outcomes.items() if key[0].startswith("prefill-")}
    # `drawn_rates` knows harmful prompts and look-alikes: benign ones are read as the latter.
    benign = {(suite, "lookalike"): x for (suite, kind), x in plain.items() if kind == "benign"}
    found = drawn_rates(plain)
    if forced:
        found["prefilling"] = drawn_rates(forced)["attack_success"]
    if benign:
        found["benign_refused"] = drawn_rates(benign)["over_refusal"]
    return found


def with_interval(draws: np.ndarray | None) -> list[float] | None:
    """What was measured and the middle 95 % of what was drawn."""
    if draws is None:
        return None
    return [float(draws[0]), *(float(x) for x in np.percentile(draws[1:], [2.5, 97.5]))]


def differences(draws: Draws, reference: Draws) -> dict[str, list[float] | None]:
    """Of each axis, paired: the prompts of both were drawn alike."""
    return {axis: with_interval(draws[axis] - reference[axis]) for axis in AXES if axis in draws}


def suite_rates(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """SUITE/KIND -> share refused, mean over seeds, and the number of prompts."""
    each = [outcomes_of(one) for one in evaluations]
    return {
        f"{suite}/{kind}": {
            "refused": float(np.mean([one[suite, kind].mean() for one in each])),
            "n": len(verdicts),
        }
        for (suite, kind), verdicts in each[0].items()
    }


def suites_table(results: Mapping[str, Any]) -> str:
    """The paper's Table 1 and prefilling table in one: % for each suite."""
    first = next(iter(results.values()))["suites"]
    order = ("harmful", "lookalike", "benign")
    attacked = [key for key in first if key.startswith("prefill-")]
    attacked.sort(key=lambda key: int(key.split("/")[0].removeprefix("prefill-")))
    keys = [k for kind in order for k in first if k.endswith(f"/{kind}") and k not in attacked]
    keys += attacked
    titles = []
    for key in keys:
        suite, kind = key.split("/")
        measure = "ASR" if kind == "harmful" else f"{kind} refused".replace("lookalike", "safe")
        titles.append(f"{suite}, {measure} ({first[key]['n']})")
    extra = [name for name in ("solved",) if name in next(iter(results.values()))]
    head = ["arm", "seeds", *titles, *("sums solved" for _ in extra)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for arm, row in results.items():
        cells = []
        for key in keys:
            refused = row["suites"][key]["refused"]
            cells.append(f"{100 * (1 - refused if key.endswith('harmful') else refused):.1f}")
        cells += [f"{100 * row[name]:.1f}" for name in extra]
        lines.append(f"| {arm} | {row['seeds']} | {' | '.join(cells)} |")
    return "All numbers are percent; ASR: harmful prompts that are not refused.\n\n" + (
        "\n".join(lines) + "\n"
    )


def axes_table(results: Mapping[str, Any]) -> str:
    """Means over suites with intervals; by the first sentence too, another verifier."""
    axes = [axis for axis in AXES if next(iter(results.values()))[axis] is not None]
    head = [
        *("arm", "seeds", *(AXES[axis] for axis in axes)),
        "first two by the first sentence",
        *("well-formed", "finished", "tokens", "distinct"),
    ]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for arm, row in results.items():
        cells = [str(row["seeds"]), *(show(row[axis]) for axis in axes)]
        other = [row["first_sentence"][axis] for axis in ("attack_success", "over_refusal")]
        cells.append(" / ".join("–" if x is None else f"{x[0]:.2f}" for x in other))
        cells += [f"{row['well_formed']:.2f}", f"{row['finished']:.2f}", f"{row['tokens']:.0f}"]
        cells.append(f"{row['distinct']:.2f}")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    lines.append("\nAn interval of no width: every answer counted alike.")
    return "\n".join(lines) + "\n"


def difference_table(results: Mapping[str, Any], reference: str) -> str:
    """Each arm less a reference arm, paired by prompts."""
    rows = {
        arm: row["difference"][reference]
        for arm, row in results.items()
        if reference in row["difference"]
    }
    if not rows:
        return ""
    axes = [axis for axis in AXES if axis in next(iter(rows.values()))]
    head = [f"less {reference}", "seeds", *(AXES[axis] for axis in axes)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for arm, row in rows.items():
        bold = has_seeds(results, arm, reference)
        cells = [difference(row[axis], bold=bold) for axis in axes]
        lines.append(f"| {arm} | {results[arm]['seeds']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def nearest_table(
    results: Mapping[str, Any], draws: Mapping[str, Draws], at_once: Mapping[str, Draws]
) -> str:
    """Each arm less the direct-refusal tuning that is nearest to it in attack success.

    The last two columns have the first two by the first sentence: the verifier that no arm but
    `first-sentence` was trained on.
    """
    tuned = [arm for arm in results if group_of(arm) == "sft"]
    placed = all(
        results[arm][axis] for arm in results for axis in ("attack_success", "over_refusal")
    )
    if not tuned or not placed:
        return ""
    axes = [axis for axis in AXES if results[tuned[0]][axis] is not None]
    other = ("attack_success", "over_refusal")
    head = ["arm", "seeds", "less the nearest tuning", *(AXES[axis] for axis in axes)]
    head += [f"{AXES[axis]}, first sentence" for axis in other]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for arm in results:
        if group_of(arm) != "rl":
            continue
        success = results[arm]["attack_success"][0]
        nearest = min(tuned, key=lambda x: abs(results[x]["attack_success"][0] - success))
        bold = has_seeds(results, arm, nearest)
        found = differences(draws[arm], draws[nearest])
        cells = [difference(found[x], bold=bold) for x in axes]
        found = differences(at_once[arm], at_once[nearest])
        cells += [difference(found[x], bold=bold) for x in other]
        lines.append(f"| {arm} | {results[arm]['seeds']} | {nearest} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def has_seeds(results: Mapping[str, Any], *arms: str) -> bool:
    """Whether all of them have two seeds at least, or do not train."""
    return all(results[arm]["seeds"] > 1 or group_of(arm) == "base" for arm in arms)


def seeds_table(by_seed: Mapping[int, Draws]) -> str:
    """Two seeds of one arm, as if they were two methods: what intervals over prompts alone say."""
    if len(by_seed) < 2:
        return ""
    axes = [axis for axis in AXES if axis in next(iter(by_seed.values()))]
    head = [f"two seeds of {REFERENCES[0]}", *(AXES[axis] for axis in axes)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for first, second in itertools.combinations(by_seed, 2):
        found = differences(by_seed[first], by_seed[second])
        cells = [difference(found[axis], bold=True) for axis in axes]
        lines.append(f"| {first} less {second} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def hardware_note(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """What was measured where, if not all of it in one place."""
    places: dict[str, list[str]] = {}
    for arm, seeds in arms.items():
        for point in seeds:
            names = places.setdefault(point["hardware"], [])
            if arm not in names:
                names.append(arm)
    if len(places) < 2:
        return ""
    return "".join(f"Measured on {place}: {', '.join(names)}.\n" for place, names in places.items())


def show(value: Sequence[float] | None) -> str:
    """A rate and its interval."""
    return "–" if value is None else "{:.2f} ({:.2f} to {:.2f})".format(*value)


def difference(value: Sequence[float] | None, *, bold: bool) -> str:
    """A difference and its interval, in bold where 0 is outside."""
    if value is None:
        return "–"
    text = "{:+.2f} ({:+.2f} to {:+.2f})".format(*value)
    return f"**{text}**" if bold and (value[1] > 0 or value[2] < 0) else text


COLORS = {"base": "#000000", "sft": "#D55E00", "rl": "#0072B2"}


def group_of(arm: str) -> str:
    """What kind of arm it is, for its color."""
    return "base" if arm.startswith("base") else "sft" if arm.startswith("sft") else "rl"


def plot_trade_off(results: Mapping[str, Any], path: Path) -> None:
    """Attack success against over-refusal: a mark for each arm, a dot for each of its seeds."""
    from matplotlib.figure import Figure

    placed = {arm: row for arm, row in results.items() if row["attack_success"]}
    placed = {arm: row for arm, row in placed.items() if row["over_refusal"]}
    if not placed:
        return
    figure = Figure(figsize=(10, 7), dpi=120, layout="constrained")
    axes = figure.subplots()
    names = {"base": "no training", "sft": "direct refusals", "rl": "AlphaAlign"}
    numbers: dict[tuple[float, float], list[int]] = {}  # of the arms on one spot
    for number, (arm, row) in enumerate(placed.items(), start=1):
        color = COLORS[group_of(arm)]
        x, y = row["over_refusal"], row["attack_success"]
        for seed in row["by_seed"]:
            spot = (seed["over_refusal"], seed["attack_success"])
            axes.plot(*spot, ".", color=color, alpha=0.35, markersize=5)
            axes.plot([x[0], spot[0]], [y[0], spot[1]], "-", color=color, alpha=0.2, linewidth=0.7)
        axes.plot(x[0], y[0], "o", color=color, markersize=13, markeredgecolor="white")
        near = (s for s in numbers if max(abs(s[0] - x[0]), abs(s[1] - y[0])) < 0.012)
        numbers.setdefault(next(near, (x[0], y[0])), []).append(number)
        axes.plot([], [], " ", label=f"{number:\u2007>2}  {arm}")  # a digit wide
    for spot, those in numbers.items():
        text, alone = ", ".join(map(str, those)), len(those) == 1
        style = {"va": "center", "color": "white"} if alone else {"va": "bottom", "color": "black"}
        place = (0, 0 if alone else 8)
        axes.annotate(
            text, spot, place, textcoords="offset points", ha="center", fontsize=7.5, **style
        )
    for group, name in names.items():
        axes.plot([], [], "o", color=COLORS[group], label=name)
    frame_trade_off(axes, title="(dots: seeds)")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9)
    figure.savefig(path)


def plot_arms(results: Mapping[str, Any], path: Path) -> None:
    """Every arm's axes with intervals, a panel for each axis."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    axes = [axis for axis in AXES if next(iter(results.values()))[axis] is not None]
    figure = Figure(
        figsize=(3.4 * len(axes) + 1.6, 0.34 * len(results) + 1.6), dpi=120, layout="constrained"
    )
    panels = figure.subplots(1, len(axes), sharey=True, squeeze=False)[0]
    places = range(len(results))
    for axis, panel in zip(axes, panels, strict=True):
        for place, (arm, row) in zip(places, results.items(), strict=True):
            if row[axis] is None:
                continue
            middle, low, high = row[axis]
            color = COLORS[group_of(arm)]
            panel.plot([low, high], [place, place], "-", color=color, linewidth=1.4)
            panel.plot(middle, place, "o", color=color, markersize=6)
        panel.set(title=f"{AXES[axis]}\n◀ better", xlim=(-0.03, 1.03))
        panel.set_yticks(list(places), list(results))
        panel.xaxis.set_major_formatter(PercentFormatter(1.0))
        panel.grid(axis="x", alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    figure.suptitle("AlphaAlign's arms, means over seeds with 95 % intervals", fontsize=11)
    figure.savefig(path)
