"""An evaluation on one page: rates, what the answers are like, and some of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.data.order import first_of_each
from jaxalign.evaluation.probes import KeyWords, SafetyAtK
from jaxalign.reports.evaluation_folder import Judged, read_evaluation
from jaxalign.reports.evaluation_plots import Panel, plot_rates
from jaxalign.reports.page import escape, image, page
from jaxalign.reports.plots import plot_key_words, plot_safety_at_k
from jaxalign.reports.run_folder import KINDS, split_answer

SHOWN = 3
"""Answers of each kind that the page shows, of each suite and attack: the first ones."""

# What is measured, in words, and which way is better.
_LABELS = {
    ("refused", "harmful"): ("▲", "harmful refused"),
    ("refused", "benign"): ("▼", "benign refused"),
    ("refused", "lookalike"): ("▼", "look-alike refused"),
    ("harmful_answer", "harmful"): ("▼", "harmful answers"),
}
_PANELS = {
    "refused, harmful": "Harmful requests refused  ▲ higher is better",
    "refused": "Harmless requests refused  ▼ lower is better",
    "harmful_answer": "Harmful answers to harmful requests  ▼ lower is better",
}


def label_of(rate: Mapping[str, Any]) -> str:
    """What a rate is of, behind an arrow in the direction that is wanted."""
    if rate["measure"] == "attack_success":
        return f"▼ {rate['attack']} succeeds"
    return " ".join(_LABELS[rate["measure"], rate["kind"]])


def name_of(rate: Mapping[str, Any]) -> str:
    """The suite, with the attack if there is one."""
    attacked = rate["attack"] != "none"
    return f"{rate['suite']} + {rate['attack']}" if attacked else str(rate["suite"])


ANSWER_HEADINGS = (
    "suite",
    "skipped",
    "well-formed",
    "finished",
    "different reasonings",
    "different answers",
    "mean tokens",
    "mean seconds",
)


def answer_cells(fact: Mapping[str, Any]) -> list[str]:
    """What the answers to a suite are like, below `ANSWER_HEADINGS`."""
    return [
        name_of(fact),
        str(fact["skipped"]),
        percent(fact["well_formed"]),
        percent(fact["finished"]),
        str(fact["distinct_reasonings"]),
        f"{fact['distinct_answers']} of {fact['answers']}",
        f"{fact['mean_tokens'] or 0:.1f}",
        seconds_cell(fact.get("mean_seconds")),
    ]


def seconds_cell(seconds: float | None) -> str:
    """Seconds of an answer; a dash where they are not known."""
    return "–" if seconds is None else f"{seconds:.3g}"


def rate_tables(rates: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[str], list[list[str]]]]:
    """For each suite headings and rows of text: what is measured, n, a column for each judge."""
    found: dict[str, tuple[list[str], list[list[str]]]] = {}
    for suite in dict.fromkeys(rate["suite"] for rate in rates):
        those = [rate for rate in rates if rate["suite"] == suite]
        judges = list(dict.fromkeys(rate["judge"] for rate in those))
        lines: dict[str, dict[str, Mapping[str, Any]]] = {}
        for rate in those:
            lines.setdefault(label_of(rate), {})[rate["judge"]] = rate
        rows = [
            [label, str(max(rate["n"] for rate in line.values()))]
            + [short(line[judge]) if judge in line else "–" for judge in judges]
            for label, line in lines.items()
        ]
        found[suite] = ["share of answers", "n", *judges], rows
    return found


SAFETY_HEADINGS = ("suite", "judge", "k", "any safe", "all safe")


def safety_cells(point: Mapping[str, Any]) -> list[str]:
    """Safety of k answers as text, below `SAFETY_HEADINGS`."""
    shares = (
        {"rate": point[name]} | dict(zip(("low", "high"), point[ends], strict=True))
        for name, ends in (("any_safe", "any_interval"), ("all_safe", "all_interval"))
    )
    return [name_of(point), point["judge"], str(point["k"]), *map(short, shares)]


def panels(series: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Panel]:
    """Fields for `plot_rates`, from rates that each series (a judge, a model) has.

    Attacks have a field for each suite. Where a series has several judges, the lines name them.
    """
    several = any(len({rate["judge"] for rate in rates}) > 1 for rates in series.values())
    found: dict[str, dict[str, dict[str, Mapping[str, Any]]]] = {x: {} for x in _PANELS.values()}
    for name, rates in series.items():
        for rate in rates:
            label = rate["suite"]
            if rate["measure"] == "attack_success":
                title = f"{rate['suite']}: attacks that succeed  ▼ lower is better"
                label = rate["attack"]
            elif (rate["measure"], rate["kind"]) == ("refused", "harmful"):
                title = _PANELS["refused, harmful"]
            else:
                title = _PANELS[rate["measure"]]
                if rate["kind"] != "harmful":
                    label += f", {KINDS[rate['kind']].lower()}"
            label += f" ({rate['judge']})" if several else ""
            found.setdefault(title, {}).setdefault(label, {})[name] = rate
    return [Panel(title, rows) for title, rows in found.items() if rows]


def write_eval_report(folder: Path) -> Path:
    """Writes `report.html` and its pictures into the folder of an evaluation.

    The pictures are `rates.png`, and where there is something to show `safety_at_k.png` and
    `key_words.png`.

    Raises:
      InputError: as `jaxalign.reports.evaluation_folder.read_evaluation`.
    """
    evaluated = read_evaluation(folder)
    results = evaluated.results
    by_judge: dict[str, list[Mapping[str, Any]]] = {}
    for rate in results["rates"]:
        by_judge.setdefault(rate["judge"], []).append(rate)
    picture = folder / "rates.png"
    plot_rates(panels(by_judge), picture)
    facts = [f"judged by {', '.join(by_judge)}", results["hardware"], results["date"]]
    body = [
        f'<p class="quiet">{" · ".join(map(escape, facts))}</p>',
        _settings(results["settings"]),
        "<h2>Rates</h2>",
        image(picture, "Rates with 95% intervals"),
        _rates(results["rates"]),
        _safety(folder, results["safety_at_k"]),
        _reasoning(folder, results),
        "<h2>Answers</h2>",
        _answers(results["answers"]),
        f'<p class="quiet">Below are the first {SHOWN} prompts of each kind, not selected; all '
        "answers are in the folder <code>answers</code>, all verdicts in <code>verdicts</code>. "
        "A judge's score is 1 for a sure refusal, or a sure harmful answer.</p>",
        *(_examples(*key, judged) for key, judged in evaluated.judged.items()),
    ]
    path = folder / "report.html"
    path.write_text(page(f"{results['model']}: evaluation", "\n".join(body)), encoding="utf-8")
    return path


def table(headings: Sequence[str], rows: Sequence[Sequence[object]], *, texts: int) -> str:
    """An HTML table of plain text; the first `texts` columns are words, the others numbers."""

    def line(cells: Sequence[object], tag: str) -> str:
        styles = [""] * texts + [' class="number"'] * (len(cells) - texts)
        inner = (f"<{tag}{x}>{escape(y)}</{tag}>" for x, y in zip(styles, cells, strict=True))
        return f"<tr>{''.join(inner)}</tr>"

    return f"<table>{line(headings, 'th')}{''.join(line(row, 'td') for row in rows)}</table>"


def percent(rate: Mapping[str, Any]) -> str:
    """The rate, or a dash where there is none."""
    return "–" if rate["rate"] is None else f"{rate['rate']:.1%}"


def short(rate: Mapping[str, Any]) -> str:
    """A rate with its 95% interval in percent."""
    return f"{percent(rate)} ({100 * rate['low']:.0f}–{100 * rate['high']:.0f})"


def _settings(settings: Mapping[str, Any]) -> str:
    rows = [(name, value) for name, value in settings.items()]
    inner = table(("setting", "value"), rows, texts=2)
    return f"<details><summary>Settings</summary>{inner}</details>"


def _rates(rates: Sequence[Mapping[str, Any]]) -> str:
    parts = ['<p class="quiet">In brackets 95% intervals.</p>']
    for suite, (headings, rows) in rate_tables(rates).items():
        parts += [f"<h3>{escape(suite)}</h3>", table(headings, rows, texts=1)]
        plain = [x for x in rates if (x["suite"], x["attack"]) == (suite, "none")]
        for rate in (x for x in plain if len(x["by_category"]) > 1):
            lines = [(name, part["n"], short(part)) for name, part in rate["by_category"].items()]
            title = escape(f"{label_of(rate)} ({rate['judge']}) by category")
            inner = table(("category", "n", "rate"), lines, texts=1)
            parts.append(f"<details><summary>{title}</summary>{inner}</details>")
    return "\n".join(parts)


def _safety(folder: Path, points: Sequence[Mapping[str, Any]]) -> str:
    """Several answers to a prompt; nothing where there is one."""
    if not points:
        return ""
    curves: dict[str, list[SafetyAtK]] = {}
    for point in points:
        label = f"{name_of(point)}, {point['judge']}"
        fields = {x.name: point[x.name] for x in dataclasses.fields(SafetyAtK)}
        curves.setdefault(label, []).append(SafetyAtK(**fields))
    picture = folder / "safety_at_k.png"
    plot_safety_at_k(_first(curves), picture)
    return "\n".join(
        [
            "<h2>Several answers to harmful requests</h2>",
            "<p>The chance that at least one of k answers is safe (AlphaAlign's pass@k), and that "
            "all are: an attacker may try k times.</p>",
            image(picture, "Safety of k answers"),
            table(SAFETY_HEADINGS, [safety_cells(point) for point in points], texts=2),
        ]
    )


def _reasoning(folder: Path, results: Mapping[str, Any]) -> str:
    """Key words and costs; nothing where no answer reasons in tags."""
    parts = []
    curves = {}
    for x in results["key_words"]:
        by, low, high = (np.array(x[name]) for name in ("by", "low", "high"))
        at = np.diff(by, prepend=0.0)  # not drawn
        curves[name_of(x)] = KeyWords(at, by, low, high, x["reasoned"], x["rollouts"])
    if curves:
        picture = folder / "key_words.png"
        plot_key_words(_first(curves), picture)
        parts.append(
            "<p>How soon the reasoning about harmful requests uses a word such as harmful or "
            "illegal, in negation too.</p>" + image(picture, "Key words by token")
        )
    if results["cost"]:
        headings = ("suite", "kind", "answers", "tokens", "reasoning", "answer", "format")
        rows = [
            (name_of(x), x["kind"], x["answers"])
            + tuple(f"{x[y]:.1f}" for y in ("total", "reasoning", "answer", "format"))
            for x in results["cost"]
        ]
        parts.append("<p>Mean tokens of an answer, by where they stand.</p>")
        parts.append(table(headings, rows, texts=2))
    return "\n".join(["<h2>Reasoning</h2>", *parts]) if parts else ""


def _first(curves: Mapping[str, Any]) -> dict[str, Any]:
    """As many as a picture can tell apart."""
    return dict(list(curves.items())[:5])


def _answers(facts: Sequence[Mapping[str, Any]]) -> str:
    return table(ANSWER_HEADINGS, [answer_cells(fact) for fact in facts], texts=1)


def _examples(suite: str, attack: str, judged: Sequence[Judged]) -> str:
    cards = [
        card(x.prompt, x.kind, [("", x.rows[0], x.scores[0])])
        for x in first_of_each([x for x in judged if x.rows], lambda x: x.kind, SHOWN)
    ]
    title = name_of({"suite": suite, "attack": attack})
    return f"<details><summary>{escape(title)}</summary>{''.join(cards)}</details>"


def card(
    prompt: str,
    kind: str,
    sides: Sequence[tuple[str, Mapping[str, Any] | None, Mapping[str, float]]],
) -> str:
    """A prompt and answers to it, side by side."""
    parts = []
    for title, row, scores in sides:
        badges = "".join(
            f'<span class="badge neutral">{escape(judge)} {score:.2g}</span>'
            for judge, score in scores.items()
        )
        text = '<p class="quiet">no answer</p>'
        if row is not None:
            reasoning, answer = split_answer(str(row["completion"]))
            shown = f'<p class="text reasoning">{escape(reasoning)}</p>' if reasoning else ""
            sent = str(row["prompt"])
            asked = "" if sent == prompt else f'<p class="text quiet">Asked: {escape(sent)}</p>'
            text = f'{asked}{shown}<p class="text">{escape(answer)}</p>'
        parts.append(f"<div><small>{escape(title)}</small><p>{badges}</p>{text}</div>")
    label = escape(KINDS.get(kind, kind))
    head = f'<p class="text"><b>{escape(prompt)}</b> <small>{label}</small></p>'
    return f'<div class="card">{head}<div class="sides">{"".join(parts)}</div></div>'
