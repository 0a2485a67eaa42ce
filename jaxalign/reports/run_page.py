"""A run on one page: numbers before and after, curves, and what the model says."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxalign.reports import plots
from jaxalign.reports.page import escape, image, page
from jaxalign.reports.run_folder import (
    KINDS,
    Pair,
    Rate,
    Run,
    first_of_each_kind,
    get_rate,
    measures,
    read_run,
    split_answer,
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
    body = "\n".join(
        [
            _introduction(run),
            *(f'<p class="note">{line}</p>' for line in run.missing),
            _configuration(run.config),
            _before_and_after(run),
            _training(run),
            _answers(run),
            _last_samples(run),
        ]
    )
    path = run.folder / "report.html"
    path.write_text(page(run.folder.resolve().name, body), encoding="utf-8")
    return path


def _introduction(run: Run) -> str:
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
    facts += [summary[key] for key in ("hardware", "date") if summary.get(key)]
    parts = [f'<p class="quiet">{" · ".join(escape(fact) for fact in facts)}</p>']
    if last.get("skipped_updates"):
        skipped = f"{last['skipped_updates']:g}"
        parts.append(f'<p class="note">{skipped} updates skipped: gradients not finite.</p>')
    return "\n".join(parts)


def _configuration(config: Mapping[str, Any]) -> str:
    if not config:
        return ""
    rows = "\n".join(
        f"<tr><td>{escape(key)}</td><td>{escape(value)}</td></tr>"
        for key, value in _flatten(config)
    )
    return f"<details><summary>Configuration</summary><table>{rows}</table></details>"


def _before_and_after(run: Run) -> str:
    if not (run.before or run.after):
        return ""
    rows = []
    for measure in measures(run.before, run.after):
        before, after = get_rate(run.before, measure), get_rate(run.after, measure)
        change = f"{100 * (after.rate - before.rate):+.1f} points" if before and after else "–"
        n = next((rate.n for rate in (after, before) if rate and rate.n), "–")
        rows.append(
            f"<tr><td>{measure.label}</td><td>{measure.wish}</td>"
            + "".join(f'<td class="number">{x}</td>' for x in (_cell(before), _cell(after), change))
            + f'<td class="number">{escape(n)}</td></tr>'
        )
    distinct = [run.before.get("distinct_reasonings"), run.after.get("distinct_reasonings")]
    if any(x is not None for x in distinct):
        cells = "".join(
            f'<td class="number">{escape("–" if x is None else x)}</td>' for x in distinct
        )
        rows.append(
            f"<tr><td>Distinct reasonings</td><td>▲ higher</td>{cells}<td></td><td></td></tr>"
        )
    picture = run.folder / "before_after.png"
    plots.plot_before_after(run.before, run.after, picture)
    table = "\n".join(rows)
    return f"""<h2>Before and after</h2>
<table>
<tr><th></th><th>Better</th><th class="number">Before</th><th class="number">After</th>
<th class="number">Change</th><th class="number">Prompts</th></tr>
{table}
</table>
<p class="quiet">Shares of held-out prompts; 95% intervals in brackets. Look-alikes are
harmless prompts that sound harmful. Few distinct reasonings mean that the model recites instead of
judging.</p>
{image(picture, "Rates before and after training")}"""


def _training(run: Run) -> str:
    if not run.metrics:
        return ""
    picture = run.folder / "training.png"
    tuning = not any("reward" in row for row in run.metrics)
    draw, alt = (
        (plots.plot_tuning, "Loss by training step")
        if tuning
        else (plots.plot_training, "Reward, form, refusals and helpfulness by training step")
    )
    draw(run.metrics, picture)
    rows = "\n".join(
        f'<tr><td>{escape(key)}</td><td class="number">{escape(_short(value))}</td></tr>'
        for key, value in run.metrics[-1].items()
        if value is not None and key != "nonfinite"
    )
    return f"""<h2>Training</h2>
{image(picture, alt)}
<details><summary>All metrics of the last step</summary><table>{rows}</table></details>"""


def _answers(run: Run) -> str:
    if not run.pairs:
        return ""
    picture = run.folder / "answers.png"
    plots.plot_answers(first_of_each_kind(run.pairs, ANSWERS_PER_KIND // 2), picture)
    parts = [
        "<h2>Answers before and after</h2>",
        f'<p class="quiet">The first {ANSWERS_PER_KIND} held-out prompts of each kind, '
        "not selected; the complete list is in the evaluation files of the run folder.</p>",
    ]
    kind = None
    for pair in first_of_each_kind(run.pairs, ANSWERS_PER_KIND):
        if pair.kind != kind:
            kind = pair.kind
            parts.append(f"<h3>{escape(KINDS.get(kind, kind))}</h3>")
        parts.append(_pair_card(pair))
    alt = "Sample answers before and after training"
    parts.append(f"<details><summary>As a picture</summary>{image(picture, alt)}</details>")
    return "\n".join(parts)


def _last_samples(run: Run) -> str:
    if not run.samples:
        return ""
    step = run.samples[-1]["step"]
    cards = []
    for row in [row for row in run.samples if row["step"] == step][:6]:
        head = f'<p class="text"><b>{escape(row.get("prompt", ""))}</b></p>'
        reward = f"<small>reward {escape(_short(row.get('reward')))}</small>"
        cards.append(f'<div class="card">{head}{_answer(row, row.get("kind"))}{reward}</div>')
    return "\n".join(
        [
            f"<details><summary>Samples drawn in training, step {step}</summary>",
            *cards,
            "</details>",
        ]
    )


def _pair_card(pair: Pair) -> str:
    sides = "".join(
        f"<div><small>{title}</small>{_answer(row, pair.kind)}</div>"
        for title, row in (("Before", pair.before), ("After", pair.after))
    )
    prompt = f'<p class="text"><b>{escape(pair.prompt)}</b></p>'
    return f'<div class="card">{prompt}<div class="sides">{sides}</div></div>'


def _answer(row: Mapping[str, Any] | None, kind: str | None) -> str:
    """Shows a completion: badges, reasoning, answer."""
    if row is None:
        return '<p class="quiet">not evaluated</p>'
    refused, formed = bool(row.get("refused")), bool(row.get("well_formed"))
    wanted = {"harmful": refused, "benign": not refused, "lookalike": not refused}.get(kind or "")
    style = "neutral" if wanted is None else "wanted" if wanted else "unwanted"
    badges = (
        f'<span class="badge {style}">{"refused" if refused else "answered"}</span>'
        f'<span class="badge {"wanted" if formed else "unwanted"}">'
        f"{'well-formed' if formed else 'not well-formed'}</span>"
    )
    reasoning, answer = split_answer(str(row.get("completion", "")))
    shown = "" if reasoning is None else f'<p class="text reasoning">{escape(reasoning)}</p>'
    return f'<p>{badges}</p>{shown}<p class="text">{escape(answer)}</p>'


def _cell(rate: Rate | None) -> str:
    if rate is None:
        return "–"
    if rate.low is None or rate.high is None:
        return f"{rate.rate:.1%}"
    return f"{rate.rate:.1%} <small>[{rate.low:.1%}, {rate.high:.1%}]</small>"


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
