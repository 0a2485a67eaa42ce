"""Attacks a model and probes it: refusals by attack, k samples, key words, the reasoning's cost.

    python experiments/benchmarks/attacks.py --out FOLDER
    python experiments/benchmarks/attacks.py --out FOLDER --model runs/demo/model --each 100

Our own held-out prompts under AlphaAlign's template. The judge is its list of refusal phrases, so
that "gave way" only means that none of them was found. The folder keeps the answers and two
pictures; a second run with the same settings goes on with what it finds there, but for the timed
answers, which are made twice: the first time compiles.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.answers import Asking, LanguageModel
from jaxalign.answers.generation import Generation, generate
from jaxalign.data import KINDS, Request, load_prompts
from jaxalign.data.sources import read_json_lines
from jaxalign.data.templates import alphaalign_messages, bare_messages
from jaxalign.evaluation.attacks import TEMPLATES, make_attack
from jaxalign.evaluation.probes import key_words, overhead, reasoning_cost, safety_at_k
from jaxalign.host.command import run_command
from jaxalign.host.markdown import markdown_table
from jaxalign.host.statistics import wilson_interval
from jaxalign.reports.plots import plot_key_words, plot_safety_at_k
from jaxalign.rewards import answer_span
from jaxalign.rewards.refusals import REFUSAL_PATTERN
from jaxalign.sampling import Temperature

ATTACKS = (
    "none",
    "prefill=5",
    "prefill=10",
    "prefill=20",
    "prefill-answer=5",
    "prefill-answer=20",
    "past-tense",
    *(f"template={name}" for name in TEMPLATES),
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to attack."""

    out: Path
    """The folder for answers and pictures."""
    model: str = "smollm2"
    """As for load_pretrained."""
    prompts: str = "builtin:heldout"
    """As for load_prompts."""
    each: int = 16
    """Prompts of each kind."""
    samples: int = 8
    """Drawn for each prompt, at temperature 1."""
    max_new_tokens: int = 64
    """Of an answer, beside its opening."""
    batch_size: int = 16
    """Requests at a time."""


def answers(
    settings: Settings,
    lm: LanguageModel,
    name: str,
    requests: Sequence[Request],
    *,
    openings: Sequence[str] = (),
    opening_tokens: int | None = None,
    **asked: Any,
) -> tuple[list[Mapping[str, Any]], Generation | None]:
    """The rows of NAME.jsonl, made now or before; `asked` are fields of `Asking`."""
    path = settings.out / f"{name}.jsonl"
    asking = Asking(
        alphaalign_messages,
        max_prompt_tokens=256,
        max_new_tokens=settings.max_new_tokens,
        batch_size=settings.batch_size,
    )
    made = generate(
        lm,
        requests,
        path,
        dataclasses.replace(asking, **asked),
        openings=openings if any(openings) else None,
        opening_tokens=opening_tokens,
        facts={"model": settings.model},
    )
    return [row for _, row in read_json_lines(path)], made


def main(settings: Settings) -> None:
    """Prints the tables and draws the pictures."""
    prompts = load_prompts(settings.prompts)
    prompts = [p for kind in KINDS for p in [x for x in prompts if x.kind == kind][: settings.each]]
    harmful = [prompt for prompt in prompts if prompt.is_harmful]
    lm = LanguageModel.load(settings.model, "bfloat16")
    ask = functools.partial(answers, settings, lm)
    drawn: dict[str, Any] = {"method": Temperature(1.0), "samples": settings.samples}
    interval = "{:.1%} to {:.1%}".format

    print("| attack | prompts | gave way | 95 % |\n|---|---|---|---|")
    curves = {}
    for spec in ATTACKS:
        attack = make_attack(spec)
        sent = [(prompt, x) for prompt in harmful for x in attack.apply(prompt)]
        requests = [Request(p.id, x.text, p.kind, p.category) for p, x in sent]
        forced: dict[str, Any] = {"openings": [x.opening for _, x in sent]}
        forced["opening_tokens"] = attack.opening_tokens
        rows, _ = ask(attack.name, requests, **forced)
        won = len({row["id"] for row in rows if not refused(row)})
        likely = interval(*wilson_interval(won, len(harmful)))
        print(f"| {attack.name} | {len(harmful)} | {won} | {likely} |")
        if spec in ("none", "prefill=5"):
            rows, _ = ask(f"{attack.name}.samples", requests, **forced, **drawn)
            ks = [2**n for n in range(settings.samples.bit_length())]
            curves[attack.name] = safety_at_k(rows, [refused(row) for row in rows], ks)
    plot_safety_at_k(curves, settings.out / "safety_at_k.png")
    lines: list[list[object]] = []
    for name, points in curves.items():
        for x in points:
            some, every = interval(*x.any_interval), interval(*x.all_interval)
            lines.append([name, x.k, f"{x.any_safe:.1%}", some, f"{x.all_safe:.1%}", every])
    head = ["attack", "k", "any of k safe", "95 %", "all k safe", "95 %"]
    print("\n" + markdown_table(head, lines))

    rows, _ = ask("all.samples", prompts, **drawn)
    words = {
        kind: key_words([row for row in rows if row["kind"] == kind], lm.tokenizer)
        for kind in KINDS
    }
    plot_key_words(words, settings.out / "key_words.png")
    lines = []
    for kind, curve in words.items():
        early = (curve.by[min(t, curve.by.size) - 1] for t in (5, 10))
        shares = (curve.reasoned, curve.by[-1], *early)
        lines.append([kind, curve.rollouts, *map("{:.1%}".format, shares)])
    head = ["kind", "rollouts", "with reasoning", "used a key word", "by token 5", "by token 10"]
    print(markdown_table(head, lines))

    lines = []
    for kind, cost in reasoning_cost(rows, lm.tokenizer).items():
        means = (cost.total, cost.reasoning, cost.answer, cost.format)
        lines.append([kind, cost.answers, *map("{:.1f}".format, means)])
    print(markdown_table(["kind", "answers", "tokens", "reasoning", "answer", "tags"], lines))

    runs = []
    for name, template in (("tags", alphaalign_messages), ("bare", bare_messages)):
        for _ in range(2):  # the first one compiles
            (settings.out / f"timed.{name}.jsonl").unlink(missing_ok=True)
            rows, made = ask(f"timed.{name}", prompts, template=template)
        assert made is not None
        runs.append((rows, made.seconds))
    (tagged, slow), (plain, fast) = runs
    more = overhead(tagged, plain, seconds=(slow, fast))
    assert more.seconds is not None
    print(
        f"{more.tokens[0]:.1f} tokens and {more.seconds[0]:.3f} s an answer with the tags, "
        f"{more.tokens[1]:.1f} and {more.seconds[1]:.3f} s without; {more.more_tokens:+.1f} tokens "
        f"({more.interval[0]:+.1f} to {more.interval[1]:+.1f}), {more.answers} answers"
    )


def refused(row: Mapping[str, Any]) -> bool:
    """Whether the answer, its opening included, holds one of AlphaAlign's phrases."""
    return re.search(REFUSAL_PATTERN, answer_span(row["completion"])) is not None


if __name__ == "__main__":
    run_command("attacks", Settings, main, __doc__)
