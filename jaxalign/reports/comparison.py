"""Models side by side on the same prompts: differences, how sure they are, and where they are."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.data.order import evenly, grouped
from jaxalign.evaluation.probes import overhead
from jaxalign.host.errors import InputError
from jaxalign.host.statistics import mcnemar_p_value, paired_difference_interval, share
from jaxalign.reports.evaluation_folder import Evaluated, Judged
from jaxalign.reports.evaluation_page import (
    LANGUAGE_NOTE,
    label_of,
    language_table,
    panels,
    prompt_card,
    seconds_cell,
)
from jaxalign.reports.page import Block, Columns, details, tabulate, write_page
from jaxalign.reports.plots import plot_rates
from jaxalign.reports.printable import percent

SHOWN = 4
"""Prompts of each measure that the page shows of those that the models are judged apart on."""

COLUMNS: Columns = {
    "share of prompts": label_of,
    "first": lambda row: percent(row["first"]["rate"]),
    "second": lambda row: percent(row["second"]["rate"]),
    "points": lambda row: f"{100 * row['difference']:+.1f}",
    "95% interval": lambda row: f"{100 * row['low']:+.1f} to {100 * row['high']:+.1f}",
    "p": lambda row: "< 0.001" if row["p"] < 0.001 else f"{row['p']:.3f}",
    "n": lambda row: row["n"],
}
"""What `paired_rates` found."""

OVERHEAD_COLUMNS: Columns = {
    "suite": lambda row: row["suite"],
    "first": lambda row: f"{row['tokens'][0]:.1f}",
    "second": lambda row: f"{row['tokens'][1]:.1f}",
    "more tokens": lambda row: f"{row['more_tokens']:.1f}",
    "95% interval": lambda row: "{:+.1f} to {:+.1f}".format(*row["interval"]),
    "seconds": lambda row: "/".join(map(seconds_cell, row["seconds"])),
    "answers": lambda row: row["answers"],
}
"""What `token_overheads` found."""

# What the answers depend on beside the model.
_SETTINGS = (
    *("template", "wording", "chat_template", "template_date", "samples", "temperature", "seed"),
    *("max_prompt_tokens", "max_new_tokens", "stop", "dtype"),
)


def paired_rates(first: Evaluated, second: Evaluated) -> list[dict[str, Any]]:
    """Compares two evaluations on the prompts that both asked, ready for JSON.

    A prompt counts for a model where most of its answers do, as `measure` of
    `jaxalign.evaluation.rates.rates` says. `p` is of McNemar's exact test, `low` and `high` are the
    ends of `paired_difference_interval`; neither is corrected for how many there are.

    Returns:
      for each suite, attack, kind and judge that both have: `suite`, `attack`, `kind`, `judge`,
      `measure`, `n` (pairs), `first` and `second` (rate, low, high, n), `difference` (second minus
      first), `low`, `high`, `only_first`, `only_second`, `p`.

    Raises:
      InputError: they have no prompt with a judge in common.
    """
    found = []
    theirs = {_key(rate): rate for rate in second.results["rates"]}
    for rate in first.results["rates"]:
        if _key(rate) not in theirs:
            continue
        pairs = [(_counts(a, rate), _counts(b, rate)) for a, b in _pairs(first, second, rate)]
        if not pairs:
            continue
        n = len(pairs)
        only_first = sum(a and not b for a, b in pairs)
        only_second = sum(b and not a for a, b in pairs)
        low, high = paired_difference_interval(only_first, only_second, n)
        names = ("suite", "attack", "kind", "judge", "measures", "measure")
        found.append(
            {name: rate[name] for name in names}
            | {"n": n, "first": share(sum(a for a, _ in pairs), n)}
            | {"second": share(sum(b for _, b in pairs), n)}
            | {"difference": (only_second - only_first) / n, "low": low, "high": high}
            | {"only_first": only_first, "only_second": only_second}
            | {"p": mcnemar_p_value(only_first, only_second)}
        )
    if not found:
        ids = other_texts(first, second)
        raise InputError(
            f"{first.folder} and {second.folder} have no prompt with a judge in common"
            + (f" ({len(ids)} have one id and two texts, such as {ids[0]!r})" if ids else "")
            + "; evaluate "
            "both with the same --suites and --judge (a run's prompts are the suite heldout: "
            "--suites heldout=FILE)"
        )
    return found


def differing_settings(first: Evaluated, second: Evaluated) -> list[str]:
    """Settings in which two evaluations differ, a line each: the model is not all that changed."""
    ours, theirs = (x.results["settings"] for x in (first, second))
    names = [name for name in _SETTINGS if name in ours and name in theirs]
    # One wording may go by two names, and another name has another wording.
    same = "template" if ours["wording"] == theirs["wording"] else "wording"
    if ours["template"] != theirs["template"]:
        names = [name for name in names if name != same]
    if not (ours.get("temperature") or theirs.get("temperature")):  # greedy
        names = [name for name in names if name != "seed"]
    found = [(name.replace("_", " "), ours[name], theirs[name]) for name in names]
    before, after = _judges(ours), _judges(theirs)
    found += [(f"judge {name}", before[name], after[name]) for name in before if name in after]
    return [f"{name}: {a} in the first, {b} in the second" for name, a, b in found if a != b]


def _judges(settings: Mapping[str, Any]) -> dict[str, str]:
    """Name -> specification of the judges; two models may both be called guard."""
    return {
        spec.rpartition(":")[2] if ".py:" in spec else spec.partition("=")[0]: spec
        for spec in settings["judge"]
    }


def other_texts(first: Evaluated, second: Evaluated) -> list[str]:
    """Ids of prompts that have another text in the second: pairs are of one text, so none has them.

    A text that the second has under another id is a pair.
    """
    found: dict[str, None] = {}
    for key, ours in first.judged.items():
        theirs = second.judged.get(key, [])
        texts = {x.asked for x in theirs if x.rows}
        ids = {x.rows[0].get("id") for x in theirs if x.rows}
        found |= {
            str(x.rows[0]["id"]): None
            for x in ours
            if x.rows and x.asked not in texts and x.rows[0].get("id") in ids - {None}
        }
    return list(found)


def token_overheads(first: Evaluated, second: Evaluated) -> list[dict[str, Any]]:
    """How many more tokens the second's answers take, for each suite without an attack.

    As `jaxalign.evaluation.probes.overhead`, over prompts that both answered: `suite`, `answers`,
    `tokens` (first, second), `more_tokens`, `interval`; and `seconds` (first, second) of the mean
    answer to all of its prompts, None where unknown. It is what the format's tags cost where one
    asks for them and the other does not.
    """
    found = []
    paces = [
        {(x["suite"], x["attack"]): x.get("mean_seconds") for x in y.results["answers"]}
        for y in (first, second)
    ]
    for key in first.judged:
        pairs = _matched(first.judged[key], second.judged.get(key, []))
        if key[1] != "none" or not pairs:
            continue
        ours, theirs = (
            [{**row, "id": index} for index, judged in enumerate(side) for row in judged.rows]
            for side in zip(*pairs, strict=True)
        )
        cost = overhead(theirs, ours)
        seconds = tuple(pace[key] for pace in paces)
        found.append({"suite": key[0], **cost, "tokens": cost["tokens"][::-1], "seconds": seconds})
    return found


def languages(first: Evaluated, second: Evaluated) -> dict[str, list[dict[str, Any]]]:
    """Suite -> what `results.json` says of the answers of both, without attacks.

    Of all that each answered, paired or not.
    """
    ours, theirs = (
        {x["suite"]: x for x in y.results["answers"] if x["attack"] == "none"}
        for y in (first, second)
    )
    return {suite: [fact, theirs[suite]] for suite, fact in ours.items() if suite in theirs}


def compare(first: Evaluated, second: Evaluated) -> dict[str, Any]:
    """What the second is, `differing_settings`, `other_texts`, `rates`, `tokens`, `languages`."""
    return _facts(second) | {
        "differing_settings": differing_settings(first, second),
        "other_texts": other_texts(first, second),
        "rates": paired_rates(first, second),
        "tokens": token_overheads(first, second),
        "languages": languages(first, second),
    }


def remarks(found: Mapping[str, Any]) -> list[str]:
    """Of what `compare` found what makes the tables say less, a line each."""
    lines = [f"not only the model differs: {line}" for line in found["differing_settings"]]
    if ids := found["other_texts"]:
        lines.append(
            f"prompts of one id with two texts, in no figure: {len(ids)}, such as {ids[0]!r}"
        )
    return lines


def comparison_tables(
    found: Mapping[str, Any], first: str = "first", second: str = "second"
) -> dict[str, tuple[Block, list[Any]]]:
    """Title -> table and the rates in it: what `compare` found by suite and judge, then tokens.

    `first` and `second` are the headings of the models.
    """
    names = {"first": first, "second": second}
    rates, tokens = (
        {names.get(heading, heading): cell for heading, cell in columns.items()}
        for columns in (COLUMNS, OVERHEAD_COLUMNS)
    )
    parts = grouped(found["rates"], lambda rate: f"{rate['suite']}, judged by {rate['judge']}")
    return {title: (tabulate(rates, those), those) for title, those in parts.items()} | {
        "Tokens and seconds of an answer": (tabulate(tokens, found["tokens"]), [])
    }


def language_tables(found: Mapping[str, Any]) -> dict[str, Block]:
    """Title -> table: what `compare` found of the language of both."""
    return {
        f"{suite}, language": language_table(dict(zip(("first", "second"), facts, strict=True)))
        for suite, facts in found["languages"].items()
    }


def write_comparison(
    folder: Path, first: Evaluated, others: Sequence[Evaluated], found: Sequence[Mapping[str, Any]]
) -> Path:
    """Writes `comparison.json`, `comparison.html` and `comparison.png` into a folder.

    `found` is what `compare` says of each of the others and the first. Returns the page's path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = {"first": _facts(first), "others": found}
    (folder / "comparison.json").write_text(json.dumps(content, indent=1) + "\n")
    series = {str(x.folder): x.results["rates"] for x in (first, *others)}
    picture = folder / "comparison.png"
    plot_rates(panels(series), picture)
    blocks: list[Block] = [{"picture": picture, "alt": "Rates of the models with 95% intervals"}]
    for other, those in zip(others, found, strict=True):
        names = [f"{x.results['model']} ({x.folder})" for x in (first, other)]
        blocks += [{"h2": names[1]}, {"plain": f"The first is {names[0]}."}]
        blocks += [{"note": f"{line[0].upper()}{line[1:]}."} for line in remarks(those)]
        for title, (shown, rates) in comparison_tables(those).items():
            blocks += [{"h3": title}, shown]
            blocks += [block for rate in rates for block in _apart(first, other, rate)]
        for title, shown in language_tables(those).items():
            blocks += [{"h3": title}, shown, {"quiet": LANGUAGE_NOTE}]
    blocks.append(
        {
            "quiet": "n: prompts that both answered; the picture shows all that each answered. "
            "Points: second minus first, with an interval for paired prompts. p: McNemar's exact "
            "test. Neither is corrected for how many rows there are. Seconds: of a mean answer, "
            "first/second, prompts in batches and compilation included."
        }
    )
    return write_page(folder / "comparison.html", "Comparison", blocks)


def _apart(first: Evaluated, second: Evaluated, rate: Mapping[str, Any]) -> list[Block]:
    """Some of the prompts on which a judge tells the models apart, spread evenly over them."""
    pairs = [(a, b) for a, b in _pairs(first, second, rate) if _counts(a, rate) != _counts(b, rate)]
    cards = []
    for pair in evenly(pairs, SHOWN):
        sides = [(str(x.folder), judged) for x, judged in zip((first, second), pair, strict=True)]
        cards.append(prompt_card(sides, {rate["judge"]: rate["measures"]}))
    title = f"{label_of(rate)}: {len(pairs)} prompts judged apart"
    return [details(title, *cards)] if pairs else []


def _key(rate: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(rate[x] for x in ("suite", "attack", "kind", "judge", "measure"))


def _pairs(
    first: Evaluated, second: Evaluated, rate: Mapping[str, Any]
) -> list[tuple[Judged, Judged]]:
    """Prompts of the rate's suite, attack and kind that both answered."""
    key = rate["suite"], rate["attack"]
    sides = ([x for x in y.judged[key] if x.kind == rate["kind"]] for y in (first, second))
    return _matched(*sides)


def _matched(first: Sequence[Judged], second: Sequence[Judged]) -> list[tuple[Judged, Judged]]:
    """Prompts that both answered; a text that stands twice is matched in its order."""
    waiting = grouped((x for x in second if x.rows), lambda x: x.asked)
    return [(x, waiting[x.asked].pop(0)) for x in first if x.rows and waiting.get(x.asked)]


def _counts(judged: Judged, rate: Mapping[str, Any]) -> bool:
    """Whether most answers to a prompt are what the measure says; a tie is no refusal, or harm."""
    said = float(np.mean([scores[rate["judge"]] >= 0.5 for scores in judged.scores]))
    if rate["measures"] == "harm":
        return said >= 0.5
    return said <= 0.5 if rate["measure"] == "attack_success" else said > 0.5


def _facts(evaluated: Evaluated) -> dict[str, Any]:
    results = evaluated.results
    names = ("model", "weights", "date", "hardware", "settings")
    return {"folder": str(evaluated.folder)} | {name: results[name] for name in names}
