"""An evaluation on one page: rates, what the answers are like, and some of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.data.order import first_of_each
from jaxalign.evaluation.eval_folder import Judged, read_evaluation
from jaxalign.evaluation.eval_plots import Panel, plot_rates
from jaxalign.evaluation.page import escape, image, page
from jaxalign.evaluation.run_folder import KINDS, split_answer

SHOWN = 3
"""Answers of each kind that the page shows, of each suite and attack: the first ones."""

# What is measured, in words, and which way is better.
_LABELS = {
    ("refused", "harmful"): ("▲", "harmful refused"),
    ("refused", "benign"): ("▼", "benign refused"),
    ("refused", "lookalike"): ("▼", "look-alike refused"),
    ("harmful_answer", "harmful"): ("▼", "harmful answers"),
    ("attack_success", "harmful"): ("▼", "attacks that succeed"),
}
_PANELS = {
    "Harmful requests refused  ▲ higher is better": (("refused", "harmful"),),
    "Harmless requests refused  ▼ lower is better": (
        ("refused", "benign"),
        ("refused", "lookalike"),
    ),
    "Harmful answers, and attacks that succeed  ▼ lower is better": (
        ("harmful_answer", "harmful"),
        ("attack_success", "harmful"),
    ),
}


def label_of(rate: Mapping[str, Any]) -> str:
    """What a rate is of, behind an arrow in the direction that is wanted."""
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
    ]


def panels(series: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Panel]:
    """Fields for `plot_rates`, from rates that each series (a judge, a model) has.

    Where a series has several judges, the lines name them.
    """
    several = any(len({rate["judge"] for rate in rates}) > 1 for rates in series.values())
    found = []
    for title, measures in _PANELS.items():
        rows: dict[str, dict[str, Mapping[str, Any]]] = {}
        for name, rates in series.items():
            for rate in rates:
                if (rate["measure"], rate["kind"]) in measures:
                    label = f"{name_of(rate)}\n{KINDS[rate['kind']].lower()}"
                    label += f" ({rate['judge']})" if several else ""
                    rows.setdefault(label, {})[name] = rate
        if rows:
            found.append(Panel(title, rows))
    return found


def write_eval_report(folder: Path) -> Path:
    """Writes `report.html` and `rates.png` into the folder of an evaluation.

    Raises:
      InputError: as `jaxalign.evaluation.eval_folder.read_evaluation`.
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


def interval(rate: Mapping[str, Any]) -> str:
    """Its 95% interval."""
    return f"{rate['low']:.1%} – {rate['high']:.1%}"


def _settings(settings: Mapping[str, Any]) -> str:
    rows = [(name, value) for name, value in settings.items()]
    inner = table(("setting", "value"), rows, texts=2)
    return f"<details><summary>Settings</summary>{inner}</details>"


def _rates(rates: Sequence[Mapping[str, Any]]) -> str:
    several = any("at_least_once" in rate for rate in rates)
    headings = ["suite", "measure", "judge", "rate", "95% interval", "prompts"]
    rows = []
    details = []
    for rate in rates:
        row = [name_of(rate), label_of(rate), rate["judge"], percent(rate), interval(rate)]
        row.append(str(rate["n"]))
        if several:
            once = rate.get("at_least_once")
            row.append(percent(once) if once else "–")
        rows.append(row)
        if len(rate["by_category"]) > 1:
            parts = [
                (category, percent(part), interval(part), part["n"])
                for category, part in rate["by_category"].items()
            ]
            title = escape(f"{name_of(rate)}: {label_of(rate)} ({rate['judge']}) by category")
            inner = table(("category", "rate", "95% interval", "prompts"), parts, texts=1)
            details.append(f"<details><summary>{title}</summary>{inner}</details>")
    if several:
        headings.append("unwanted once or more")
    return table(headings, rows, texts=3) + "\n".join(details)


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
