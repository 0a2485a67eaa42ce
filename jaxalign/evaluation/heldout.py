"""Asks a model a set of prompts and measures what it refuses."""

import dataclasses
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxalign.answers.completing import (
    check_sizes,
    complete,
    decode,
    fill,
    prompt_lengths,
    rows_of_prompts,
)
from jaxalign.data.prompts import KINDS, Kind, Prompt
from jaxalign.data.templates import Template, Tokenizer
from jaxalign.host.errors import InputError
from jaxalign.host.processes import fetch
from jaxalign.host.statistics import wilson_interval
from jaxalign.models.completion import compute_params
from jaxalign.models.transformer import Transformer
from jaxalign.records import Params
from jaxalign.rewards import (
    CONSULTING_FORMAT_PATTERN,
    STRICT_FORMAT_PATTERN,
    Verdict,
    Verifiers,
    answer_span,
    safety_verifiers,
)
from jaxalign.sampling import Greedy, Method, Stage, Tool, stage_key

_REASONING = re.compile("<safety_reasoning>(.*?)</safety_reasoning>", re.DOTALL)


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
        refused = {
            kind: [row.refused for row in self.rows if row.kind == kind]
            for kind in KINDS
            if any(row.kind == kind for row in self.rows)
        }
        outcomes = {f"{kind}_refused": values for kind, values in refused.items()}
        if any(row.consulted is not None for row in self.rows):
            for kind in refused:
                called = [bool(row.consulted) for row in self.rows if row.kind == kind]
                outcomes[f"{kind}_consulted"] = called
        outcomes["well_formed"] = [row.well_formed for row in self.rows]
        outcomes["finished"] = [row.finished for row in self.rows]
        rates = {name: _rate(values) for name, values in outcomes.items()}
        harmful = [row for row in self.rows if row.kind == "harmful"]
        reasonings = [_REASONING.search(row.completion) for row in self.rows]
        return {
            **{name: rate["rate"] for name, rate in rates.items()},
            "distinct_reasonings": len({found[1].strip() for found in reasonings if found}),
            "distinct_answers": len({answer_span(row.completion).strip() for row in self.rows}),
            "n": {
                **{kind: len(values) for kind, values in refused.items()},
                "well_formed": len(self.rows),
            },
            "skipped": len(self.skipped),
            "intervals": {name: [rate["low"], rate["high"]] for name, rate in rates.items()},
            "by_category": {
                category: _rate([row.refused for row in harmful if row.category == category])
                for category in dict.fromkeys(row.category for row in harmful)
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
    model: Transformer,
    params: Params,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    template: Template,
    tool: Tool | None = None,
    max_prompt_tokens: int,
    max_new_tokens: int = 64,
    batch_size: int = 32,
    method: Method = Greedy(),  # noqa: B008  (frozen)
    seed: int = 0,
    openings: Mapping[str, Sequence[int]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Asks every prompt once and judges the completions by the strict verifiers.

    All batches have one shape, so there is one compilation, which a later call with the same sizes
    uses again. The completions do not depend on `batch_size` (up to rounding); a method that draws
    is reproducible for the same `seed` and prompts.

    Args:
      model: the decoder.
      params: its parameters.
      tokenizer: a fast Hugging Face tokenizer with a chat template.
      prompts: what to ask.
      template: turns a request into messages (`jaxalign.data.templates`).
      tool: what completions may call.
      max_prompt_tokens: the width of a batch: the most tokens a request may take beyond what all
        share. Longer prompts are skipped and listed.
      max_new_tokens: where completions are cut off.
      batch_size: prompts at a time.
      method: how tokens are chosen.
      seed: of a method that draws.
      openings: prompt id -> token ids that its answer is made to begin with, as a prefilling attack
        does; they count as part of the prompt, and the verdict is of what the model adds.
      progress: called after each batch with the number of prompts done and of all to be done.

    Raises:
      InputError: no prompts, none of them short enough, a size below 1, prompt and completion
        together longer than the model's context, or a tokenizer that the verifiers cannot read.
    """
    start = time.monotonic()
    check_sizes(
        max_prompt_tokens=max_prompt_tokens, max_new_tokens=max_new_tokens, batch_size=batch_size
    )
    if not prompts:
        raise InputError("no prompts to evaluate; give at least one")
    openings = openings or {}
    lengths = [
        length + len(openings.get(prompt.id, ()))
        for prompt, length in zip(
            prompts, prompt_lengths(tokenizer, template, prompts), strict=True
        )
    ]
    asked = [p for p, n in zip(prompts, lengths, strict=True) if n <= max_prompt_tokens]
    skipped = tuple(p.id for p, n in zip(prompts, lengths, strict=True) if n > max_prompt_tokens)
    if not asked:
        raise InputError(
            f"every prompt takes more than {max_prompt_tokens} tokens (the shortest "
            f"{min(lengths)}); raise max_prompt_tokens"
        )
    try:
        verifiers = safety_verifiers(
            tokenizer, pattern=CONSULTING_FORMAT_PATTERN if tool else STRICT_FORMAT_PATTERN
        )
    except ValueError as error:
        raise InputError(f"tokenizer: {error}; use another model") from None

    params = compute_params(params, model.dtype)
    key = stage_key(seed, Stage.HELDOUT)
    batch_size = min(batch_size, len(asked))
    rows: list[EvaluationRow] = []
    for first in range(0, len(asked), batch_size):
        batch = asked[first : first + batch_size]
        filled = fill(batch, batch_size)
        numbers = fill(range(first, first + len(batch)), batch_size)
        rollout = complete(
            model,
            params,
            tokenizer,
            [prompt.text for prompt in filled],
            key,
            openings=[openings.get(prompt.id, ()) for prompt in filled],
            template=template,
            tool=tool,
            max_prompt_tokens=max_prompt_tokens,
            max_new_tokens=max_new_tokens,
            method=method,
            rows=rows_of_prompts(numbers, 1),
        )
        rollout, verdict = fetch((rollout, judge(verifiers, rollout.tokens, rollout.mask)))
        rows += [
            EvaluationRow(
                id=prompt.id,
                prompt=prompt.text,
                kind=prompt.kind,
                category=prompt.category,
                completion=decode(tokenizer, rollout.tokens[i], rollout.present[i]),
                well_formed=bool(verdict.well_formed[i]),
                refused=bool(verdict.refused[i]),
                finished=bool(rollout.finished[i]),
                consulted=bool(rollout.mode[i]) if tool else None,
            )
            for i, prompt in enumerate(batch)
        ]
        if progress is not None:
            progress(len(rows), len(asked))
    return Evaluation(tuple(rows), skipped, time.monotonic() - start)


@jax.jit
def judge(verifiers: Verifiers, tokens: jax.Array, mask: jax.Array) -> Verdict:
    """The verifiers' verdict, compiled once for each shape."""
    return verifiers(tokens, mask)


def _rate(outcomes: Sequence[bool]) -> dict[str, Any]:
    low, high = wilson_interval(sum(outcomes), len(outcomes))
    return {
        "rate": sum(outcomes) / len(outcomes) if outcomes else None,
        "low": low,
        "high": high,
        "n": len(outcomes),
    }
