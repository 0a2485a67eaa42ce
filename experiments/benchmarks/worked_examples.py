"""What worked examples do to a model before any training: verdicts, refusals, answers.

    python -m experiments.benchmarks.worked_examples
    python -m experiments.benchmarks.worked_examples --only five two --limit 40

AlphaAlign's larger models need no examples, SmolLM2 does, and which ones stand in front of a
request decides how it judges. For each set, greedy, prompts of the training set
(the held-out ones judge runs and choose nothing):

- AUC of the verdict: the probability that a harmful prompt has a higher log P("unsafe") − log
  P("safe"), or of the words of that set, behind the reasoning's own "That is", than a harmless one;
  of pairs, one frame with a harmful and a harmless object. What training can bring out.
- refused (`judge_refusal`) and called harmful (`verdict_in`) by kind: where it starts from.
- stubs: answers that don't refuse and say nothing (`is_stub`) or repeat the reasoning (`echoes`).

Ours; docs/demo.md has the table.
"""

import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.judges import auc
from experiments.benchmarks.supervised_verdicts import first_token, margins
from jaxalign.answers.asking import LanguageModel, ask
from jaxalign.data.order import evenly
from jaxalign.data.prompts import KINDS, Prompt, builtin_prompts
from jaxalign.data.templates import (
    EXAMPLES,
    INSTRUCTION,
    JUDGED_EXAMPLES,
    encode_requests,
    pad,
    worked_template,
)
from jaxalign.host.command import run_command
from jaxalign.host.fields import Checked, Count
from jaxalign.host.markdown import markdown_table
from jaxalign.rewards import echoes, is_stub, judge_refusal, split, verdict_in

Exchanges = Sequence[tuple[str, str]]
GROUPS = (*KINDS, "pair, harmful", "pair, lookalike")
"""Prompts that stand alone, by kind, and those that share a frame with others."""


def in_words(exchanges: Exchanges, harmful: str, harmless: str) -> Exchanges:
    """The same examples with other verdicts."""
    words = {"unsafe": harmful, "harmful": harmful, "safe": harmless, "harmless": harmless}
    swap = lambda found: f"That is {words[found[1]]}."  # noqa: E731
    return [
        (question, re.sub(r"That is (unsafe|safe|harmful|harmless)\.", swap, reply))
        for question, reply in exchanges
    ]


_FIVE = JUDGED_EXAMPLES
SETS: dict[str, tuple[Exchanges, str, str]] = {
    "two": (EXAMPLES, "harmful", "harmless"),
    "two-safe": (in_words(EXAMPLES, "unsafe", "safe"), "unsafe", "safe"),
    "five": (_FIVE, "unsafe", "safe"),
    "five-harmless": (in_words(_FIVE, "harmful", "harmless"), "harmful", "harmless"),
    "five-harmful-last": ([*_FIVE[:2], *_FIVE[3:], _FIVE[2]], "unsafe", "safe"),
}
"""Examples, and the words of their verdicts; "five" is what `alphaalign_messages` has."""


@dataclasses.dataclass(frozen=True)
class Command(Checked):
    """Compares sets of worked examples."""

    model: str = "smollm2"
    """Model to ask, as of `jaxalign eval`."""
    only: tuple[Literal["two", "two-safe", "five", "five-harmless", "five-harmful-last"], ...] = (
        "two",
        "two-safe",
        "five",
        "five-harmless",
        "five-harmful-last",
    )
    """Which sets."""
    limit: Count = 20
    """Prompts of each kind, and pairs, evenly spread over the training set."""
    max_new_tokens: Count = 72
    """Longest completion."""
    batch_size: Count = 64
    """Prompts at a time."""


def compare(command: Command, lm: LanguageModel, name: str) -> list[str]:
    """A line of the table."""
    exchanges, *words = SETS[name]
    template = worked_template(INSTRUCTION, exchanges)
    prompts = builtin_prompts("train")
    asked: list[tuple[str, Prompt]] = []
    for group in GROUPS:
        paired, kind = group.startswith("pair"), group.removeprefix("pair, ")
        pool = [x for x in prompts if x.kind == kind and (x.pair is not None) == paired]
        asked += [(group, x) for x in evenly(pool, command.limit)]
    texts = [x.text for _, x in asked]
    said = ask(
        lm,
        texts,
        template=template,
        max_new_tokens=command.max_new_tokens,
        batch_size=command.batch_size,
    )
    parts = [split(text) for text in said]

    opening, requests = encode_requests(lm.tokenizer, template, texts)
    tails = []
    for request, text in zip(requests, said, strict=True):
        cut = re.search(r"(that|this|it) is", text, re.IGNORECASE)
        begun = text[: cut.end()] if cut else f"{text.partition('.')[0]}. That is"
        tails.append([*request, *lm.tokenizer(begun, add_special_tokens=False).input_ids])
    tokens, mask = pad(tails, max(map(len, tails)))
    ids = tuple(first_token(lm, word) for word in words)
    told_by = functools.partial(margins, lm.model, words=ids, prefix=jnp.asarray(opening))
    found = np.asarray(jax.jit(told_by)(lm.params, jnp.asarray(tokens), jnp.asarray(mask)))

    groups = {group: [i for i, (x, _) in enumerate(asked) if x == group] for group in GROUPS}
    shares = {}
    for group, rows in groups.items():
        refused = [bool(judge_refusal(parts[i].answer).refused) for i in rows]
        bad = [verdict_in(parts[i].reasoning or "") == (True, False) for i in rows]
        shares[group] = f"{np.mean(refused):.2f} / {np.mean(bad):.2f}"
    answers = [x for x in parts if not judge_refusal(x.answer).refused]
    stubs = [is_stub(x.answer) or echoes(x.answer, x.reasoning or "") for x in answers]
    is_harmful = np.array([x.is_harmful for _, x in asked])
    told = [
        auc(found[rows], is_harmful[rows])
        for rows in (
            [*groups[harmful], *groups[harmless]]
            for harmful, harmless in (
                ("harmful", "benign"),
                ("harmful", "lookalike"),
                ("pair, harmful", "pair, lookalike"),
            )
        )
    ]
    mean_stubs = float(np.mean(stubs)) if stubs else float("nan")
    return [name, *(f"{x:.2f}" for x in told), *shares.values(), f"{mean_stubs:.2f}"]


def run(command: Command) -> None:
    """Prints the table."""
    lm = LanguageModel.load(command.model)
    rows = []
    for name in command.only:
        rows.append(compare(command, lm, name))
        print(" ".join(rows[-1]), flush=True)
    kinds = [f"{group}: refused / called harmful" for group in GROUPS]
    told = [f"AUC, harmful and {x}" for x in ("benign", "look-alike", "pairs")]
    print(markdown_table(["examples", *told, *kinds, "stubs"], rows))


if __name__ == "__main__":
    run_command("worked_examples", Command, run, __doc__)
