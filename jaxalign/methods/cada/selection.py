"""CADA's training data (arXiv 2601.08000): the model's own reasoning, filtered, without the code.

1. Every harmful request is answered with the code, or code and cases, in context
   (`jaxalign.methods.cada.self_generation`).
2. What is well-formed and ended is kept; of it what has the right outcome, a refusal by the
   verifier or by a judge of the caller's.
3. No text twice for one request, and at most `cap` of each hazard category.
4. The model is trained on the bare request with that answer: the code is no longer in context.

The steps are the authors'; the numbers and the outcome filter by phrases are ours.
"""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxalign.data.prompts import Asked
from jaxalign.data.templates import Template, encode_requests
from jaxalign.engine.dpo import Pair
from jaxalign.host.markdown import markdown_table
from jaxalign.methods.cada.self_generation import Generated
from jaxalign.text.encoding import encode_text

DIRECT_REFUSAL = "I'm sorry, I can't help with that."
"""What the arm without reasoning learns to say; ours, the words of the worked examples."""

YIELD_COLUMNS = (
    "sampled",
    "cut off",
    "malformed",
    "complied",
    "repeated",
    "over the cap",
    "kept",
)


Judge = Callable[[str, str], bool]
"""`(request, completion) -> whether the completion refuses`."""


def choose(
    made: Sequence[Generated], *, cap: int, refuses: Judge | None = None
) -> tuple[list[Generated], dict[str, dict[str, int]]]:
    """Filters: ended, well-formed, refused; no text twice for a request; a cap on each category.

    A category takes one of each request, in the order of the prompts, before a second of any, so
    that a cap costs variety last. `refuses` decides the outcome of what is well-formed, by default
    the refusal verifier.

    Returns:
      the kept ones, and for each category how many were sampled, kept, and dropped why
      (`YIELD_COLUMNS`): a completion counts for the first filter that stops it.
    """
    table: dict[str, dict[str, int]] = {}
    of_request: dict[Asked, list[str]] = {}
    right: list[tuple[int, Generated]] = []
    for one in made:
        counts = table.setdefault(one.category, dict.fromkeys(YIELD_COLUMNS, 0))
        counts["sampled"] += 1
        before = of_request.setdefault(one.asked, [])
        if not one.finished:
            counts["cut off"] += 1
        elif not one.well_formed:
            counts["malformed"] += 1
        elif not (one.refused if refuses is None else refuses(one.prompt, one.completion)):
            counts["complied"] += 1
        elif one.completion in before:
            counts["repeated"] += 1
        else:
            right.append((len(before), one))
            before.append(one.completion)
    kept = []
    for _, one in sorted(right, key=lambda pair: pair[0]):
        counts = table[one.category]
        if counts["kept"] < cap:
            counts["kept"] += 1
            kept.append(one)
        else:
            counts["over the cap"] += 1
    return kept, table


def yield_table(table: dict[str, dict[str, int]]) -> str:
    """The counts of `choose` as a Markdown table with a line of sums."""
    total = {name: sum(counts[name] for counts in table.values()) for name in YIELD_COLUMNS}
    rows = [[category, *counts.values()] for category, counts in [*table.items(), ("all", total)]]
    return markdown_table(["category", *YIELD_COLUMNS], rows)


def refusal_tokens(tokenizer: Any) -> list[int]:
    """The ids of `DIRECT_REFUSAL` and of the token that ends an answer."""
    return [*encode_text(tokenizer, DIRECT_REFUSAL), tokenizer.eos_token_id]


def make_pairs(
    tokenizer: Any,
    template: Template,
    kept: Sequence[Generated],
    unsafe: Sequence[Generated] = (),
) -> tuple[list[Pair], np.ndarray]:
    """Pairs for DPO: the safe reasoning, against an answer that complies or a bare refusal.

    The template asks without code and cases. `unsafe` are the start model's completions without any
    reasoning; those of a request that do not refuse are its rejected answers, in turn. A request
    without any has `DIRECT_REFUSAL`.

    Returns:
      the pairs, and the ids that open every prompt.
    """
    complied: dict[Asked, list[list[int]]] = {}
    for one in unsafe:
        if not one.refused:
            complied.setdefault(one.asked, []).append(one.tokens)
    prefix, rows = encode_requests(tokenizer, template, [one.asked for one in kept])
    pairs, turns = [], collections.Counter[Asked]()
    for one, row in zip(kept, rows, strict=True):
        choices = complied.get(one.asked) or [refusal_tokens(tokenizer)]
        turn = turns[one.asked]
        turns[one.asked] += 1
        ids = (row, one.tokens, choices[turn % len(choices)])
        pairs.append(Pair(*(np.asarray(each, np.int32) for each in ids)))
    return pairs, prefix
