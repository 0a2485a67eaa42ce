"""The folder of an evaluation, as `jaxalign eval` leaves it, of answers that are given."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxalign.data.prompts import Prompt, conversation_field
from jaxalign.evaluation.attacks import make_attack
from jaxalign.evaluation.judges import make_judge
from jaxalign.evaluation.measure import judge_all
from jaxalign.evaluation.rates import answers_by_prompt, apply_attack

SETTINGS = {"template": "bare", "samples": 1, "dtype": "float32", "judge": ["phrases", "guard=a"]}
SETTINGS |= {"wording": "ab"}


def write_evaluation(
    folder: Path,
    prompts: Sequence[Prompt],
    completions: Iterable[str],
    *,
    suite: str = "plans",
    samples: int = 1,
    settings: Any = SETTINGS,
    judges: Sequence[str] = ("phrases",),
    consulted: Sequence[bool] = (),
) -> Path:
    """Writes answers, verdicts and results; completions "" were too long to ask.

    Args:
      folder: new, or with the pace of its answers in it.
      prompts: what was asked.
      completions: `samples` of each prompt.
      suite: its name.
      samples: answers to each prompt.
      settings: of results.json.
      judges: as for `make_judge`.
      consulted: of each answer whether it called a tool; nothing without one.
    """
    asked = apply_attack(suite, prompts, make_attack("none"))
    given, calls = iter(completions), iter(consulted)
    rows = [
        {"id": p.id, "prompt": p.text, "kind": p.kind, "sample": n, "completion": text}
        | {"tokens": len(text), "finished": True}
        | conversation_field(p.conversation)
        | ({"consulted": next(calls)} if consulted else {})
        for p in prompts
        for n in range(samples)
        if (text := next(given))
    ]
    answers = folder / "answers"
    answers.mkdir(parents=True, exist_ok=True)
    (answers / f"{suite}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows))
    answered = [(asked, answers_by_prompt(asked, rows, samples))]
    judged = judge_all(answered, [make_judge(judge) for judge in judges], folder)
    results = {"model": f"<i>{folder.name}</i>", "weights": "0", "date": "2026-11-27"}
    results |= {"hardware": "paper", "settings": settings, **judged}
    results |= {"key_words": [], "cost": []}
    (folder / "results.json").write_text(json.dumps(results))
    return folder
