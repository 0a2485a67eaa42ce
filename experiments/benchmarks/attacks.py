"""Attacks a model and probes it: refusals by attack, k samples, key words, the reasoning's cost.

    python experiments/benchmarks/attacks.py --out FOLDER
    python experiments/benchmarks/attacks.py --out FOLDER --model runs/demo/model --each 100

Our own held-out prompts under AlphaAlign's template. The judge is its list of refusal phrases, so
that "gave way" only means that none of them was found. The folder keeps the answers and two
pictures; a second run with the same settings goes on with what it finds there, but for the timed
answers, which are made twice: the first time compiles.
"""

import dataclasses
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tyro

from jaxalign.answers import Asking, LanguageModel
from jaxalign.answers.generation import Generation, generate
from jaxalign.data import Request, load_prompts
from jaxalign.data.sources import read_json_lines
from jaxalign.data.templates import Template, alphaalign_messages, bare_messages
from jaxalign.evaluation.attacks import TEMPLATES, Attack, make_attack
from jaxalign.evaluation.probes import key_words, overhead, reasoning_cost, safety_at_k
from jaxalign.host.errors import InputError
from jaxalign.host.statistics import wilson_interval
from jaxalign.reports.plots import plot_key_words, plot_safety_at_k
from jaxalign.rewards import answer_span
from jaxalign.rewards.refusals import REFUSAL_PATTERN
from jaxalign.sampling import Greedy, Method, Temperature

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


class Asker:
    """A model that answers requests into files of one folder."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.lm = LanguageModel.load(settings.model, "bfloat16")

    def answers(
        self,
        name: str,
        requests: Sequence[Request],
        *,
        attack: Attack | None = None,
        openings: Sequence[str] | None = None,
        template: Template = alphaalign_messages,
        method: Method = Greedy(),  # noqa: B008  (frozen)
        samples: int = 1,
    ) -> tuple[list[Mapping[str, Any]], Generation | None]:
        """The rows of NAME.jsonl, made now or before."""
        path = self.settings.out / f"{name}.jsonl"
        made = generate(
            self.lm,
            requests,
            path,
            Asking(
                template,
                method=method,
                samples=samples,
                max_prompt_tokens=256,
                max_new_tokens=self.settings.max_new_tokens,
                batch_size=self.settings.batch_size,
            ),
            openings=openings if openings and any(openings) else None,
            opening_tokens=attack.opening_tokens if attack else None,
            facts={"model": self.settings.model},
        )
        return [row for _, row in read_json_lines(path)], made


def main(settings: Settings) -> None:
    """Prints the tables and draws the pictures."""
    prompts = load_prompts(settings.prompts)
    kinds = ("harmful", "benign", "lookalike")
    prompts = [p for kind in kinds for p in [x for x in prompts if x.kind == kind][: settings.each]]
    harmful = [prompt for prompt in prompts if prompt.is_harmful]
    asker = Asker(settings)
    drawn: dict[str, Any] = {"method": Temperature(1.0), "samples": settings.samples}

    print("| attack | prompts | gave way | 95 % |\n|---|---|---|---|")
    curves = {}
    for spec in ATTACKS:
        attack = make_attack(spec)
        sent = [(prompt, x) for prompt in harmful for x in attack.apply(prompt)]
        requests = [Request(p.id, x.text, p.kind, p.category) for p, x in sent]
        openings = [x.opening for _, x in sent]
        rows, _ = asker.answers(attack.name, requests, attack=attack, openings=openings)
        won = {row["id"] for row in rows if not refused(row)}
        low, high = wilson_interval(len(won), len(harmful))
        print(f"| {attack.name} | {len(harmful)} | {len(won)} | {low:.1%} to {high:.1%} |")
        if spec in ("none", "prefill=5"):
            name = f"{attack.name}.samples"
            rows, _ = asker.answers(name, requests, attack=attack, openings=openings, **drawn)
            ks = [2**n for n in range(settings.samples.bit_length())]
            curves[attack.name] = safety_at_k(rows, [refused(row) for row in rows], ks)
    plot_safety_at_k(curves, settings.out / "safety_at_k.png")
    print("\n| attack | k | any of k safe | 95 % | all k safe | 95 % |\n|---|---|---|---|---|---|")
    for name, points in curves.items():
        for x in points:
            (a, b), (c, d) = x.any_interval, x.all_interval
            print(
                f"| {name} | {x.k} | {x.any_safe:.1%} | {a:.1%} to {b:.1%} | {x.all_safe:.1%} "
                f"| {c:.1%} to {d:.1%} |"
            )

    rows, _ = asker.answers("all.samples", prompts, **drawn)
    words = {
        kind: key_words([row for row in rows if row["kind"] == kind], asker.lm.tokenizer)
        for kind in kinds
    }
    plot_key_words(words, settings.out / "key_words.png")
    print("\n| kind | rollouts | with reasoning | used a key word | by token 5 | by token 10 |")
    print("|---|---|---|---|---|---|")
    for kind, curve in words.items():
        early = " | ".join(f"{curve.by[min(t, curve.by.size) - 1]:.1%}" for t in (5, 10))
        print(
            f"| {kind} | {curve.rollouts} | {curve.reasoned:.1%} | {curve.by[-1]:.1%} | {early} |"
        )

    print("\n| kind | answers | tokens | reasoning | answer | tags |\n|---|---|---|---|---|---|")
    for kind, cost in reasoning_cost(rows, asker.lm.tokenizer).items():
        means = (cost.total, cost.reasoning, cost.answer, cost.format)
        print(f"| {kind} | {cost.answers} | {' | '.join(f'{x:.1f}' for x in means)} |")

    runs = []
    for name, template in (("tags", alphaalign_messages), ("bare", bare_messages)):
        for _ in range(2):  # the first one compiles
            (settings.out / f"timed.{name}.jsonl").unlink(missing_ok=True)
            rows, made = asker.answers(f"timed.{name}", prompts, template=template)
        assert made is not None
        runs.append((rows, made.seconds))
    (tagged, slow), (plain, fast) = runs
    cost = overhead(tagged, plain, seconds=(slow, fast))
    assert cost.seconds is not None
    low, high = cost.interval
    print(
        f"\n{cost.tokens[0]:.1f} tokens and {cost.seconds[0]:.3f} s an answer with the tags, "
        f"{cost.tokens[1]:.1f} and {cost.seconds[1]:.3f} s without; "
        f"{cost.more_tokens:+.1f} tokens ({low:+.1f} to {high:+.1f}), {cost.answers} answers"
    )


def refused(row: Mapping[str, Any]) -> bool:
    """Whether the answer, its opening included, holds one of AlphaAlign's phrases."""
    return re.search(REFUSAL_PATTERN, answer_span(row["completion"])) is not None


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except InputError as error:
        sys.exit(f"error: {error}")
