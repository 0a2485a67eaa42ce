"""A run on one page: numbers before and after, curves, and what the model says."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.data.order import grouped
from jaxalign.reports import plots
from jaxalign.reports.page import Block, details, table, write_page
from jaxalign.reports.run_folder import (
    KINDS,
    Run,
    first_of_each_kind,
    get_rate,
    measures,
    percent,
    read_run,
)

ANSWERS_PER_KIND = 4  # in the page; the picture shows half of them


def write_report(folder: str | Path) -> Path:
    """Writes ``report.html`` and its pictures into a run folder.

    The pictures are ``training.png``, ``before_after.png`` and ``answers.png``. A run that is under
    way or was cut short gets a report of what there is, which says what is missing.

    Args:
        folder: the run folder: any of ``config.json``, ``metrics.jsonl``, ``samples.jsonl``,
            ``summary.json``, ``evaluation_before.json`` and ``evaluation_after.json``.

    Returns:
        The path of ``report.html``.

    Raises:
        InputError: the folder is absent or holds nothing of a run, or one of its files is
            malformed.
    """
    run = read_run(folder)
    blocks = _introduction(run)
    if run.config:
        blocks.append(details("Configuration", table((), _flatten(run.config), texts=2)))
    if run.before or run.after:
        blocks += _before_and_after(run)
    if run.metrics:
        blocks += _training(run)
    if run.pairs:
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
    notes = list(run.missing)
    if last.get("skipped_updates"):
        notes.insert(0, f"{last['skipped_updates']:g} updates skipped: gradients not finite.")
    return [{"quiet": " · ".join(facts)}, *({"note": line} for line in notes)]


def _before_and_after(run: Run) -> list[Block]:
    rows: list[list[object]] = []
    drawn = {}
    for measure in measures(run.before, run.after):
        before, after = get_rate(run.before, measure), get_rate(run.after, measure)
        both = before and after
        change = f"{100 * (after['rate'] - before['rate']):+.1f} points" if both else "–"
        n = after.get("n") or before.get("n") or "–"
        rows.append([measure.label, measure.wish, _cell(before), _cell(after), change, n])
        drawn[f"{measure.label}  {measure.wish}"] = {"before": before, "after": after}
    distinct = [section.get("distinct_reasonings") for section in (run.before, run.after)]
    if distinct != [None, None]:
        counts = ["–" if count is None else count for count in distinct]
        rows.append(["Distinct reasonings", "▲ higher", *counts, "", ""])
    picture = run.folder / "before_after.png"
    plots.plot_rates({"Shares of held-out prompts, and which way is better": drawn}, picture)
    headings = ("", "Better", "Before", "After", "Change", "Prompts")
    return [
        {"h2": "Before and after"},
        table(headings, rows, texts=2),
        {
            "quiet": "Shares of held-out prompts; 95% intervals in brackets. Look-alikes are "
            "harmless prompts that sound harmful. Few distinct reasonings mean that the model "
            "recites instead of judging."
        },
        {"picture": picture, "alt": "Rates before and after training"},
    ]


def _training(run: Run) -> list[Block]:
    picture = run.folder / "training.png"
    if any("reward" in row for row in run.metrics):
        plots.plot_training(run.metrics, picture)
        alt = "Reward, form, refusals and helpfulness by training step"
    else:
        plots.plot_tuning(run.metrics, picture)
        alt = "Loss by training step"
    rows = [
        (key, _short(value))
        for key, value in run.metrics[-1].items()
        if value is not None and key != "nonfinite"
    ]
    return [
        {"h2": "Training"},
        {"picture": picture, "alt": alt},
        details("All metrics of the last step", table((), rows)),
    ]


def _answers(run: Run) -> list[Block]:
    picture = run.folder / "answers.png"
    plots.plot_answers(first_of_each_kind(run.pairs, ANSWERS_PER_KIND // 2), picture)
    blocks: list[Block] = [
        {"h2": "Answers before and after"},
        {
            "quiet": f"The first {ANSWERS_PER_KIND} held-out prompts of each kind, not selected; "
            "the complete list is in the evaluation files of the run folder."
        },
    ]
    shown = grouped(first_of_each_kind(run.pairs, ANSWERS_PER_KIND), lambda pair: pair.kind)
    for kind, pairs in shown.items():
        blocks.append({"h3": KINDS.get(kind, kind)})
        for pair in pairs:
            sides = [_side("Before", pair.before, kind), _side("After", pair.after, kind)]
            blocks.append({"card": pair.prompt, "kind": "", "sides": sides})
    alt = "Sample answers before and after training"
    return [*blocks, details("As a picture", {"picture": picture, "alt": alt})]


def _last_samples(run: Run) -> Block:
    step = run.samples[-1]["step"]
    cards = []
    for row in [row for row in run.samples if row["step"] == step][:6]:
        side = _side(f"reward {_short(row.get('reward'))}", row, row.get("kind"))
        cards.append({"card": row.get("prompt", ""), "kind": "", "sides": [side]})
    return details(f"Samples drawn in training, step {step}", *cards)


def _side(title: str, row: Mapping[str, Any] | None, kind: str | None) -> dict[str, Any]:
    """A completion and what the verifiers say of it."""
    if row is None:
        return {"title": title, "completion": None}
    refused, formed = bool(row.get("refused")), bool(row.get("well_formed"))
    style = "neutral" if kind not in KINDS else _wanted(refused == (kind == "harmful"))
    badges = [
        ("refused" if refused else "answered", style),
        ("well-formed" if formed else "not well-formed", _wanted(formed)),
    ]
    return {"title": title, "badges": badges, "completion": str(row.get("completion", ""))}


def _wanted(is_wanted: bool) -> str:
    return "wanted" if is_wanted else "unwanted"


def _cell(rate: Mapping[str, Any]) -> str | tuple[str, str]:
    share, low, high = (rate.get(name) for name in ("rate", "low", "high"))
    if low is None or high is None:
        return percent(share)
    return percent(share), f"[{percent(low)}, {percent(high)}]"


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
