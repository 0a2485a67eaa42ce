"""An evaluation on one page: rates, what the answers are like, and some of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.data.order import first_of_each, grouped
from jaxalign.evaluation.language import LIKELIER, read_answer, says_nothing, warnings_of
from jaxalign.reports.evaluation_folder import Evaluated, Judged, read_evaluation
from jaxalign.reports.page import Block, Columns, details, table, tabulate, write_page
from jaxalign.reports.plots import plot_key_words, plot_rates, plot_safety_at_k
from jaxalign.reports.printable import KINDS, percent
from jaxalign.rewards import verdict_in

SHOWN = 3
"""Answers of each kind that the page shows, of each suite and attack: the first ones."""

FEW_FINISHED = 0.9
"""Where fewer answers than this share end by themselves, rates are of what was cut off too."""

# The panels of the picture, in this order, by measure and whether it is over harmful requests.
_TITLES = {
    ("refused", True): "Harmful requests refused  ▲ higher is better",
    ("refused", False): "Harmless requests refused  ▼ lower is better",
    ("harmful_answer", True): "Harmful answers to harmful requests  ▼ lower is better",
}


def label_of(rate: Mapping[str, Any]) -> str:
    """What a rate is of, behind an arrow in the direction that is wanted."""
    if rate["measure"] == "attack_success":
        return f"▼ {rate['attack']} succeeds"
    if rate["measure"] == "harmful_answer":
        return "▼ harmful answers"
    return f"{'▲' if rate['kind'] == 'harmful' else '▼'} {KINDS[rate['kind']].lower()} refused"


def name_of(rate: Mapping[str, Any]) -> str:
    """The suite, with the attack if there is one."""
    attacked = rate["attack"] != "none"
    return f"{rate['suite']} + {rate['attack']}" if attacked else str(rate["suite"])


def seconds_cell(seconds: float | None) -> str:
    """Seconds of an answer; a dash where they are not known."""
    return "–" if seconds is None else f"{seconds:.3g}"


def _with_interval(share: float | None, low: float, high: float) -> str:
    return f"{percent(share)} ({100 * low:.0f}–{100 * high:.0f})"


def rate_cell(rate: Mapping[str, Any]) -> str:
    """A rate with its interval."""
    return _with_interval(rate["rate"], rate["low"], rate["high"])


def cut_off_notes(results: Mapping[str, Any]) -> list[str]:
    """A line for each suite and attack of an evaluation whose answers were often cut off."""
    return [
        f"{name_of(fact)}: only {percent(share)} of the answers finished; judges read the others "
        "cut off: raise --max-new-tokens"
        for fact in results["answers"]
        if (share := fact["finished"]["rate"]) is not None and share < FEW_FINISHED
    ]


FACT_COLUMNS: Columns = {
    "skipped": lambda fact: fact["skipped"],
    "well-formed": lambda fact: percent(fact["well_formed"]["rate"]),
    "finished": lambda fact: percent(fact["finished"]["rate"]),
    "different answers": lambda fact: f"{fact['distinct_answers']} of {fact['answers']}",
    "mean tokens": lambda fact: f"{fact['mean_tokens'] or 0:.1f}",
    "mean seconds": lambda fact: seconds_cell(fact.get("mean_seconds")),
}
"""What answers are like."""

LANGUAGE_ROWS = {
    "▲ different reasonings": "distinct_reasonings",
    "▲ different reasonings, subject masked": "masked_reasonings",
    "▲ reasonings that name the subject": "subject_named",
    "▼ … that name another prompt's": "subject_named_shuffled",
    "▲ verdicts that the answer acts on": "verdict_agrees",
    "▲ whole refusals, of refusals": "whole_refusals",
    "▼ stubs, echoes and evasions, of answers": "stubs",
    "▼ answers that recur, subject masked": "repeated_answers",
    "▼ answers that begin with the commonest word": "same_opening",
    "▲ answers likelier after their own request": LIKELIER,
    "▲ pairs with both sides right": "both_sides_right",
}
"""What there is to say of the language of answers, and which fact says it."""

LANGUAGE_NOTE = (
    "Answers here are those that don't refuse; where they recur, begin alike or are likelier, "
    "those to harmless prompts. Likelier: under the model that training began with, than after "
    "another's request. Masked: without the words that name what was asked for, so that one "
    "sentence about everything counts once. Where reasonings name another prompt's subject as "
    "often as their own, the check says nothing. A refusal that is not whole is a fragment. "
    "Pairs: prompts of one frame, one harmful and one harmless. Refusals here are those of the "
    "judge called refusals."
)

ANSWER_COLUMNS: Columns = {"suite": name_of, **FACT_COLUMNS}

SAFETY_COLUMNS: Columns = {
    "suite": name_of,
    "judge": lambda point: point["judge"],
    "k": lambda point: point["k"],
    "any safe": lambda point: _with_interval(point["any_safe"], *point["any_interval"]),
    "all safe": lambda point: _with_interval(point["all_safe"], *point["all_interval"]),
}
"""Safety of k answers."""


def rate_tables(rates: Sequence[Mapping[str, Any]]) -> dict[str, Block]:
    """For each suite: what is measured, n, a column for each judge."""
    found = {}
    for suite, those in grouped(rates, lambda rate: rate["suite"]).items():
        judges = list(grouped(those, lambda rate: rate["judge"]))
        rows = []
        for label, line in grouped(those, label_of).items():
            cells = {rate["judge"]: rate_cell(rate) for rate in line}
            n = max(rate["n"] for rate in line)
            rows.append([label, n, *(cells.get(judge, "–") for judge in judges)])
        found[suite] = table(["share of answers", "n", *judges], rows)
    return found


def language_table(facts: Mapping[str, Mapping[str, Any]]) -> Block:
    """A row for each of `LANGUAGE_ROWS`, a column for each of some facts of `results["answers"]`.

    A dash stands for what there is nothing of, or what an older evaluation doesn't say.
    """
    rows = [
        [label, *(_language_cell(fact, name) for fact in facts.values())]
        for label, name in LANGUAGE_ROWS.items()
    ]
    return table(["language", *facts], rows)


def _language_cell(fact: Mapping[str, Any], name: str) -> str:
    found = fact.get(name)
    if isinstance(found, Mapping):
        return "–" if found["rate"] is None else rate_cell(found)
    if not found:
        return "–"
    return f"{found} of {fact['reasonings']}" if "reasonings" in fact else str(found)


def panels(
    series: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, dict[str, dict[str, Mapping[str, Any]]]]:
    """Panels for `plot_rates`, from rates that each series (a judge, a model) has.

    Attacks have a panel for each suite. Where a series has several judges, the lines name them.
    """
    several = any(len({rate["judge"] for rate in rates}) > 1 for rates in series.values())
    found: dict[str, dict[str, dict[str, Mapping[str, Any]]]] = {x: {} for x in _TITLES.values()}
    for name, rates in series.items():
        for rate in rates:
            if rate["measure"] == "attack_success":
                title = f"{rate['suite']}: attacks that succeed  ▼ lower is better"
                label = rate["attack"]
            else:
                is_harmful = rate["kind"] == "harmful"
                title, label = _TITLES[rate["measure"], is_harmful], rate["suite"]
                if not is_harmful:
                    label += f", {KINDS[rate['kind']].lower()}"
            label += f" ({rate['judge']})" if several else ""
            found.setdefault(title, {}).setdefault(label, {})[name] = rate
    return {title: lines for title, lines in found.items() if lines}


def write_eval_report(folder: Path) -> Path:
    """Writes `report.html` and its pictures into the folder of an evaluation.

    The pictures are `rates.png`, and where there is something to show `safety_at_k.png` and
    `key_words.png`.

    Raises:
      InputError: as `jaxalign.reports.evaluation_folder.read_evaluation`.
    """
    evaluated = read_evaluation(folder)
    results = evaluated.results
    by_judge = grouped(results["rates"], lambda rate: rate["judge"])
    picture = folder / "rates.png"
    plot_rates(panels(by_judge), picture)
    facts = [f"judged by {', '.join(by_judge)}", results["hardware"], results["date"]]
    settings = [(name, str(value)) for name, value in results["settings"].items()]
    blocks: list[Block] = [
        {"quiet": " · ".join(map(str, facts))},
        details("Settings", table(("setting", "value"), settings, texts=2)),
        *({"note": line} for line in (*warnings_of(results), *cut_off_notes(results))),
        {"h2": "Rates"},
        {"picture": picture, "alt": "Rates with 95% intervals"},
        {"quiet": "In brackets 95% intervals."},
        *_rates(results["rates"]),
        *_safety(folder, results["safety_at_k"]),
        *_reasoning(folder, results),
        {"h2": "Language"},
        language_table({name_of(fact): fact for fact in results["answers"]}),
        {"quiet": LANGUAGE_NOTE},
        {"h2": "Answers"},
        tabulate(ANSWER_COLUMNS, results["answers"]),
        {
            "quiet": f"Below are the first {SHOWN} prompts of each kind, not selected; all answers "
            "are in the folder answers, all verdicts in verdicts. In brackets how sure a judge is, "
            "from 0 to 1, of a refusal or of harm."
        },
        *(_examples(evaluated, *key) for key in evaluated.judged),
    ]
    return write_page(folder / "report.html", f"{results['model']}: evaluation", blocks)


def _rates(rates: Sequence[Mapping[str, Any]]) -> list[Block]:
    blocks: list[Block] = []
    for suite, shares in rate_tables(rates).items():
        blocks += [{"h3": suite}, shares]
        for rate in rates:
            parts = rate["by_category"]
            if (rate["suite"], rate["attack"]) == (suite, "none") and len(parts) > 1:
                lines = [(name, part["n"], rate_cell(part)) for name, part in parts.items()]
                title = f"{label_of(rate)} ({rate['judge']}) by category"
                blocks.append(details(title, table(("category", "n", "rate"), lines)))
    return blocks


def _safety(folder: Path, points: Sequence[Mapping[str, Any]]) -> list[Block]:
    """Several answers to a prompt; nothing where there is one."""
    if not points:
        return []
    curves = grouped(points, lambda point: f"{name_of(point)}, {point['judge']}")
    picture = folder / "safety_at_k.png"
    plot_safety_at_k(curves, picture)
    return [
        {"h2": "Several answers to harmful requests"},
        {
            "plain": "The chance that at least one of k answers is safe (AlphaAlign's pass@k), and "
            "that all are: an attacker may try k times."
        },
        {"picture": picture, "alt": "Safety of k answers"},
        tabulate(SAFETY_COLUMNS, points, texts=2),
    ]


def _reasoning(folder: Path, results: Mapping[str, Any]) -> list[Block]:
    """Key words and costs; nothing where no answer reasons in tags."""
    blocks: list[Block] = []
    if results["key_words"]:
        picture = folder / "key_words.png"
        plot_key_words({name_of(x): x for x in results["key_words"]}, picture)
        blocks += [
            {
                "plain": "How soon the reasoning about harmful requests uses a word such as "
                "harmful or illegal, in negation too."
            },
            {"picture": picture, "alt": "Key words by token"},
        ]
    if results["cost"]:
        headings = ("suite", "kind", "answers", "tokens", "reasoning", "answer", "format")
        rows = [
            (name_of(x), x["kind"], x["answers"])
            + tuple(f"{x[y]:.1f}" for y in ("total", "reasoning", "answer", "format"))
            for x in results["cost"]
        ]
        blocks.append({"plain": "Mean tokens of an answer, by where they stand."})
        blocks.append(table(headings, rows, texts=2))
    return [{"h2": "Reasoning"}, *blocks] if blocks else []


def _examples(evaluated: Evaluated, suite: str, attack: str) -> Block:
    answered = [x for x in evaluated.judged[suite, attack] if x.rows]
    shown = first_of_each(answered, lambda x: x.kind, SHOWN)
    cards = [prompt_card([("", x)], evaluated.measures) for x in shown]
    return details(name_of({"suite": suite, "attack": attack}), *cards)


def prompt_card(sides: Sequence[tuple[str, Judged]], measures: Mapping[str, str]) -> Block:
    """A prompt and the first answers to it side by side, with what judges say of them.

    The sides are titles and answers to one prompt, none where it was too long to ask; `measures` is
    judge -> "refusal" or "harm", of those that are to be shown.
    """
    first = sides[0][1]
    return {
        "card": first.asked,
        "kind": KINDS.get(first.kind, first.kind),
        "sides": [
            {
                "title": title,
                "badges": _badges(judged, measures),
                "completion": str(judged.rows[0]["completion"]) if judged.rows else None,
                "asked": sent if (sent := _sent(judged)) != first.prompt else "",
            }
            for title, judged in sides
        ],
    }


def _sent(judged: Judged) -> str:
    return str(judged.rows[0]["prompt"]) if judged.rows else judged.prompt


def _badges(judged: Judged, measures: Mapping[str, str]) -> list[tuple[str, str]]:
    """Of the first answer: text and style."""
    badges = _language_badges(judged)
    for judge, score in judged.scores[0].items() if judged.rows else ():
        said = score >= 0.5
        if measures.get(judge) == "refusal":
            text, wanted = ("refused" if said else "answered"), said == (judged.kind == "harmful")
        elif judge in measures:
            text, wanted = ("harm" if said else "no harm"), not said
        else:
            continue
        sure = f" ({score:.2g})" if 0 < score < 1 else ""
        badges.append(_rightly(f"{judge}: {text}{sure}", judged.kind, wanted))
    if judged.rows:
        formed = judged.well_formed[0]
        badges.append(("well-formed", "wanted") if formed else ("not well-formed", "neutral"))
    return badges


def _language_badges(judged: Judged) -> list[tuple[str, str]]:
    """Of a first answer with a reasoning: its verdict, where it is one, and what it lacks."""
    said = read_answer(judged.rows[0]) if judged.rows else None
    if said is None or said.reasoning is None:
        return []
    badges, verdict = [], verdict_in(said.reasoning)
    if verdict.harmful != verdict.harmless:
        text = f"verdict: {'harmful' if verdict.harmful else 'harmless'}"
        right = bool(verdict.harmful) == (judged.kind == "harmful")
        badges.append(_rightly(text, judged.kind, right))
    if said.refused and not said.whole:
        badges.append(("fragment", "unwanted"))
    if not said.refused and says_nothing(said, judged.prompt):
        badges.append(("stub or echo", "unwanted"))
    return badges


def _rightly(text: str, kind: str, is_right: bool) -> tuple[str, str]:
    """A badge that says whether it is right, of a prompt whose kind is known."""
    if kind not in KINDS:
        return text, "neutral"
    return (f"{text}, right", "wanted") if is_right else (f"{text}, wrong", "unwanted")
