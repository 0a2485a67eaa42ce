"""Asks a model a set of prompts and measures what it refuses."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from jaxalign.answers.asking import Asking, LanguageModel, Progress, answer_batches, in_order
from jaxalign.answers.completing import short_enough
from jaxalign.data.order import grouped
from jaxalign.data.prompts import KINDS, Kind, Prompt
from jaxalign.data.templates import encode_requests
from jaxalign.evaluation.rates import distinct_answers, distinct_reasonings, rate
from jaxalign.host.errors import InputError
from jaxalign.rewards import CONSULTING_FORMAT_PATTERN, STRICT_FORMAT_PATTERN, verdict_of
from jaxalign.sampling import Stage


@dataclasses.dataclass(frozen=True)
class EvaluationRow:
    """One prompt and what the model made of it.

    Attributes:
      id: the prompt's.
      prompt: the request's text.
      kind: "harmful", "benign" or "lookalike".
      category: the prompt's.
      completion: the model's text and a tool's answers, special tokens left out.
      well_formed: whether it has the strict format (`rewards.STRICT_FORMAT_PATTERN`, with a tool
        `rewards.CONSULTING_FORMAT_PATTERN`).
      refused: whether its answer holds a refusal phrase (`rewards.REFUSAL_PHRASES`).
      finished: whether the model ended it; if not, it was cut off at `max_new_tokens`.
      consulted: whether it called the tool; None where there was none.
    """

    id: str
    prompt: str
    kind: Kind
    category: str
    completion: str
    well_formed: bool
    refused: bool
    finished: bool
    consulted: bool | None = None


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured.

    Attributes:
      rows: one per prompt asked, in the order of the prompts.
      skipped: ids of the prompts that were too long to ask.
      seconds: wall time, compilation included.
    """

    rows: tuple[EvaluationRow, ...]
    skipped: tuple[str, ...] = ()
    seconds: float = 0.0

    def summary(self) -> dict[str, Any]:
        """Rates over the rows, with 95% intervals (`wilson_interval`), ready for JSON.

        Returns:
          - `harmful_refused`, `benign_refused`, `lookalike_refused`: share of the kind's rows that
            refuse; absent where there is no such row.
          - `harmful_consulted`, `benign_consulted`, `lookalike_consulted`: share of the kind's rows
            that called the tool; absent where there was no tool.
          - `well_formed`, `finished`: shares of all rows.
          - `distinct_reasonings`: how many different texts stand between the reasoning tags; rows
            without them do not count. One recited sentence gives 1.
          - `distinct_answers`: how many different answers (`rewards.answer_span`) there are.
          - `n`: how many rows there are of each kind, and under `well_formed` of all.
          - `skipped`: how many prompts were too long to ask.
          - `intervals`: [low, high] of each of the rates above.
          - `by_category`: category -> {rate, low, high, n}, of harmful rows that refuse.
        """
        groups = grouped(self.rows, lambda row: row.kind)
        kinds = {kind: groups[kind] for kind in KINDS if kind in groups}
        outcomes = {f"{kind}_refused": [x.refused for x in rows] for kind, rows in kinds.items()}
        if any(row.consulted is not None for row in self.rows):
            for kind, rows in kinds.items():
                outcomes[f"{kind}_consulted"] = [bool(row.consulted) for row in rows]
        outcomes["well_formed"] = [row.well_formed for row in self.rows]
        outcomes["finished"] = [row.finished for row in self.rows]
        rates = {name: rate([[x] for x in values]) for name, values in outcomes.items()}
        harmful = grouped(kinds.get("harmful", []), lambda row: row.category)
        texts = [row.completion for row in self.rows]
        return {
            **{name: found["rate"] for name, found in rates.items()},
            "distinct_reasonings": distinct_reasonings(texts),
            "distinct_answers": distinct_answers(texts),
            "n": {
                **{kind: len(rows) for kind, rows in kinds.items()},
                "well_formed": len(self.rows),
            },
            "skipped": len(self.skipped),
            "intervals": {name: [found["low"], found["high"]] for name, found in rates.items()},
            "by_category": {
                category: rate([[row.refused] for row in rows])
                for category, rows in harmful.items()
            },
        }

    def to_json(self) -> dict[str, Any]:
        """The content of `evaluation_before.json` and `evaluation_after.json` of a run folder."""
        return {
            "rates": self.summary(),
            "rows": [dataclasses.asdict(row) for row in self.rows],
            "skipped": list(self.skipped),
            "seconds": self.seconds,
        }


def evaluate(
    lm: LanguageModel,
    prompts: Sequence[Prompt],
    asking: Asking,
    *,
    openings: Mapping[str, Sequence[int]] | None = None,
    progress: Progress = lambda done, total: None,
) -> Evaluation:
    """Asks every prompt and judges the completions (`rewards.verdict_of`).

    All batches have one shape, as wide as `asking.max_prompt_tokens` where it is given, so there is
    one compilation, which a later call with the same sizes uses again. Longer prompts are skipped
    and listed.

    Args:
      lm: the model.
      prompts: what to ask.
      asking: how they are asked.
      openings: prompt id -> token ids that its answer is made to begin with, as a prefilling attack
        does; they count as part of the prompt, and the verdict is of what the model adds.
      progress: called after each batch with the number of prompts done and of all to be done.

    Raises:
      InputError: no prompts, none of them short enough, or prompt and completion together longer
        than the model's context.
    """
    start = time.monotonic()
    if not prompts:
        raise InputError("no prompts to evaluate; give at least one")
    texts = [prompt.text for prompt in prompts]
    prefix, rows = encode_requests(lm.tokenizer, asking.template, texts)
    if openings:
        rows = [
            [*row, *openings.get(prompt.id, ())] for row, prompt in zip(rows, prompts, strict=True)
        ]
    fitting, long = short_enough(rows, asking.max_prompt_tokens)
    asked = [prompts[index] for index in fitting]
    questions = in_order(prefix, [rows[index] for index in fitting], asking)
    questions.check_positions(lm.model, asking.max_new_tokens)
    pattern = CONSULTING_FORMAT_PATTERN if asking.tool else STRICT_FORMAT_PATTERN
    found: list[EvaluationRow] = []
    for batch in answer_batches(lm, questions, asking, Stage.HELDOUT):
        for answer in batch:
            prompt = asked[answer.request]
            formed, refused = verdict_of(lm.text(answer.tokens), pattern)
            found.append(
                EvaluationRow(
                    id=prompt.id,
                    prompt=prompt.text,
                    kind=prompt.kind,
                    category=prompt.category,
                    completion=lm.text(answer.written),
                    well_formed=formed,
                    refused=refused,
                    finished=answer.finished,
                    consulted=answer.consulted if asking.tool else None,
                )
            )
        progress(len(found) // asking.samples, len(asked))
    skipped = tuple(prompts[index].id for index in long)
    return Evaluation(tuple(found), skipped, time.monotonic() - start)
