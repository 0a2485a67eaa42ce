"""A run on one page: numbers before and after, curves, and what the model says."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.data.order import evenly, grouped
from jaxalign.data.prompts import builtin_prompts
from jaxalign.host.errors import InputError
from jaxalign.reports import plots
from jaxalign.reports.comparison import compare, comparison_tables
from jaxalign.reports.evaluation_folder import Judged
from jaxalign.reports.evaluation_page import (
    FACT_COLUMNS,
    LANGUAGE_NOTE,
    cut_off_notes,
    language_table,
    name_of,
    panels,
    prompt_card,
    rate_cell,
    rate_tables,
)
from jaxalign.reports.page import Block, details, table, tabulate, write_page
from jaxalign.reports.printable import KINDS
from jaxalign.reports.run_folder import Run, read_run

TRANSCRIPTS = 10
"""Prompts whose answers the page shows."""


def write_report(folder: str | Path) -> Path:
    """Writes ``report.html`` and its pictures into a run folder; returns the page's path.

    The pictures are ``training.png``, ``validation.png`` and ``before_after.png``. A run that is
    under way or was cut short gets a report of what there is, which says what is missing.

    Raises:
        InputError: the folder is absent or holds nothing of a run, or one of its files is
            malformed.
    """
    run = read_run(folder)
    blocks = _introduction(run)
    if run.config:
        blocks.append(details("Configuration", table((), _flatten(run.config), texts=2)))
    if run.evaluations:
        blocks += _before_and_after(run)
    if run.metrics:
        blocks += _training(run)
    if run.validation:
        blocks += _validation(run)
    if run.evaluations:
        blocks += _answers(run)
    if run.samples:
        blocks.append(_last_samples(run))
    return write_page(run.folder / "report.html", run.folder.resolve().name, blocks)


def _introduction(run: Run) -> list[Block]:
    summary, facts = run.summary, []
    last = run.metrics[-1] if run.metrics else {}
    steps = summary.get("steps", len(run.metrics))
    if steps:
        facts.append(f"{steps} training steps")
    seconds = summary.get("seconds", last.get("time"))
    if seconds is not None:
        facts.append(_duration(seconds))
    if summary.get("rollout_tokens_per_second") is not None:
        facts.append(f"{summary['rollout_tokens_per_second']:,.0f} sampled tokens per second")
    facts += [str(summary[key]) for key in ("hardware", "date") if summary.get(key)]
    notes = [*run.missing, *(f"{line[0].upper()}{line[1:]}" for line in run.warnings)]
    for when, evaluated in run.evaluations.items():
        notes += [f"Evaluation {when}: {line}" for line in cut_off_notes(evaluated.results)]
    if last.get("skipped_updates"):
        notes.insert(0, f"{last['skipped_updates']:g} updates skipped: gradients not finite.")
    if stopped := summary.get("stopped"):
        notes.insert(
            0,
            f"Stopped after step {stopped['step']}: {stopped['reason']}. The result is the policy "
            f"after step {summary['best_step']}.",
        )
    return [{"quiet": " · ".join(facts)}, *({"note": line} for line in notes)]


def _before_and_after(run: Run) -> list[Block]:
    """The last evaluation beside the first, or one alone as it is."""
    (earlier, first), (later, last) = (list(run.evaluations.items())[at] for at in (0, -1))
    tables: Mapping[str, Block] = rate_tables(last.results["rates"])
    blocks: list[Block] = [{"h2": "Before and after"}]
    try:
        if last is not first:
            found = comparison_tables(compare(first, last), earlier, later)
            tables = {title: shown for title, (shown, _) in found.items()}
    except InputError as error:  # a folder that was put there by hand
        blocks.append({"note": f"{error}. Below are the rates {later}."})
    facts = [
        {"when": when} | fact
        for when, x in run.evaluations.items()
        for fact in x.results["answers"]
    ]
    consulted = [(fact["when"], kind, x) for fact in facts for kind, x in fact["consulted"].items()]
    picture = run.folder / "before_after.png"
    plots.plot_rates(
        panels({when: x.results["rates"] for when, x in run.evaluations.items()}), picture
    )
    alt = "Rates before and after training, with 95% intervals"
    blocks.append({"picture": picture, "alt": alt})
    for title, shown in tables.items():
        blocks += [{"h3": title}, shown]
    blocks += [
        {"h3": "What answers are like"},
        tabulate({"evaluation": lambda fact: fact["when"], **FACT_COLUMNS}, facts),
    ]
    for suite, those in grouped(facts, name_of).items():
        blocks += [{"h3": f"Language, {suite}"}, language_table({x["when"]: x for x in those})]
    blocks.append({"quiet": LANGUAGE_NOTE})
    if consulted:
        rows = [(when, KINDS[kind], x["n"], rate_cell(x)) for when, kind, x in consulted]
        blocks.append(table(("evaluation", "kind", "n", "rules consulted"), rows, texts=2))
    blocks.append(
        {
            "quiet": "Look-alikes are harmless prompts that sound harmful. Points: after minus "
            "before, with an interval for paired prompts. p: McNemar's exact test. Seconds: "
            "compilation included. Each evaluation is a folder of the run, which jaxalign compare "
            "can set beside others."
        }
    )
    return blocks


def _training(run: Run) -> list[Block]:
    picture = run.folder / "training.png"
    plots.plot_training(run.metrics, picture)
    rows = [
        (key, _short(value))
        for key, value in run.metrics[-1].items()
        if value is not None and key != "nonfinite"
    ]
    return [
        {"h2": "Training"},
        {"picture": picture, "alt": "Reward or loss, and more, by training step"},
        details("All metrics of the last step", table((), rows)),
    ]


def _validation(run: Run) -> list[Block]:
    picture = run.folder / "validation.png"
    plots.plot_validation(run.validation, picture)
    said = (
        f"Each time {run.validation[0]['prompts']} prompts, which are neither trained on nor held "
    )
    said += "out, answered greedily."
    if run.summary.get("best_step") is not None:
        said += f" The result is the policy after step {run.summary['best_step']}, the best here."
    return [
        {"h2": "Validation while it trains"},
        {"picture": picture, "alt": "Rates of validation prompts by step"},
        {"quiet": said},
    ]


def _answers(run: Run) -> list[Block]:
    """Prompts spread evenly over the last evaluation, so that nobody picks the good ones."""
    *others, last = run.evaluations.values()
    ours = {prompt.text for prompt in builtin_prompts("heldout")}
    asked = [x for those in last.judged.values() for x in those if x.rows]
    asked.sort(key=lambda judged: judged.prompt in ours)
    waiting = [grouped(sum(x.judged.values(), []), lambda judged: judged.asked) for x in others]
    blocks: list[Block] = [
        {"h2": "Answers"},
        {
            "quiet": f"{TRANSCRIPTS} transcripts, not chosen: of the n prompts of the last "
            f"evaluation, in order, public ones first and our own last, those at the places "
            f"0, n/{TRANSCRIPTS}, 2n/{TRANSCRIPTS}, … All are in the folders of the evaluations."
        },
    ]
    for judged in evenly(asked, TRANSCRIPTS):
        nothing = Judged(judged.prompt, judged.kind, [], [], [])
        earlier = [those.get(judged.asked) for those in waiting]
        answers = [*(those.pop(0) if those else nothing for those in earlier), judged]
        sides = list(zip(run.evaluations, answers, strict=True))
        blocks.append(prompt_card(sides, last.measures))
    return blocks


def _last_samples(run: Run) -> Block:
    step = run.samples[-1]["step"]
    cards = []
    for row in [row for row in run.samples if row["step"] == step][:6]:
        score = {"phrases": float(bool(row.get("refused")))}
        kind, formed = str(row.get("kind", "")), bool(row.get("well_formed"))
        sample = Judged(str(row.get("prompt", "")), kind, [row], [score], [formed])
        title = f"reward {_short(row.get('reward'))}"
        cards.append(prompt_card([(title, sample)], {"phrases": "refusal"}))
    return details(f"Samples drawn in training, step {step}", *cards)


def _flatten(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            rows += _flatten(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            rows.append((prefix + key, text))
    return rows


def _duration(seconds: float) -> str:
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {left} s" if minutes else f"{left} s"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
