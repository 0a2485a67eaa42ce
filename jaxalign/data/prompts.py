"""Prompts: what one is, our own set of them, and the batches that training takes from a set."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from jaxalign.data.order import evenly, grouped, walk
from jaxalign.data.yaml_files import OWN
from jaxalign.host.errors import InputError
from jaxalign.host.json_files import fingerprint
from jaxalign.records import KINDS

Kind = Literal["harmful", "benign", "lookalike"]

#: Twelve hazard categories, and "general" for a benign prompt that is close to none of them.
CATEGORIES: tuple[str, ...] = (
    "violent_crime",
    "non_violent_crime",
    "sexual_crime",
    "child_exploitation",
    "weapons",
    "self_harm",
    "hate",
    "privacy",
    "intellectual_property",
    "disinformation",
    "elections",
    "sexual_content",
    "general",
)


class Turn(NamedTuple):
    """One turn of a chat; the role is "system", "user" or "assistant"."""

    role: str
    content: str


Asked = str | tuple[Turn, ...]
"""What a model is asked: a text, or a chat that ends with the user's turn."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A text to answer, whatever it may be.

    Attributes:
      id: a name for reports; unique among our own prompts, as the source has it in a user's data.
      text: the request itself, without any chat template.
      kind: as of a `Prompt`; None if unknown.
      category: as of a `Prompt`; None if unknown.
      conversation: the turns before it; the first may be the system's.
    """

    id: str
    text: str
    kind: Kind | None
    category: str | None
    conversation: tuple[Turn, ...] = dataclasses.field(default=(), kw_only=True)

    @property
    def asked(self) -> Asked:
        """The text, or with a conversation all turns."""
        return asked(self.text, self.conversation)


def asked(text: str, conversation: tuple[Turn, ...] = ()) -> Asked:
    """A text, or with the turns before it a chat."""
    return (*conversation, Turn("user", text)) if conversation else text


def conversation_field(conversation: Sequence[Turn]) -> dict[str, list[dict[str, str]]]:
    """The field `conversation` of a row of output, as messages; none without turns."""
    turns = [turn._asdict() for turn in conversation]
    return {"conversation": turns} if turns else {}


@dataclasses.dataclass(frozen=True)
class Prompt(Request):
    """A request of which it is known how it should be answered.

    Attributes, besides those of a `Request`:
      kind: "harmful" (to be refused), "benign" or "lookalike" (both to be answered).
      category: one of `CATEGORIES`, or whatever a user's own data calls it.
      target: how a harmful answer to it would begin, where the data has that, as AdvBench does.
      pair: a name that it shares with prompts of other kinds in the same frame, if there are any.
    """

    kind: Kind
    category: str
    target: str | None = None
    pair: str | None = dataclasses.field(default=None, kw_only=True)

    @property
    def is_harmful(self) -> bool:
        """Whether the right answer is a refusal."""
        return self.kind == "harmful"


def builtin_prompts(split: Literal["train", "heldout"]) -> list[Prompt]:
    """Returns our own prompts of one split: harmful, benign, look-alike, each in file order.

    Raises:
      InputError: the split is neither "train" nor "heldout".
    """
    if split not in ("train", "heldout"):
        raise InputError(f"builtin split {split!r} does not exist; use 'train' or 'heldout'")
    texts = [(OWN / f"{kind}.jsonl").read_text(encoding="utf-8") for kind in KINDS]
    rows = [json.loads(line) for text in texts for line in text.splitlines()]
    return [
        Prompt(row["id"], row["prompt"], row["kind"], row["category"], pair=row.get("pair"))
        for row in rows
        if row["split"] == split
    ]


def prompts_digest(prompts: Sequence[Request]) -> str:
    """A fingerprint of prompts, so that a resumed run notices another file; without targets."""
    return fingerprint([(x.id, x.text, x.kind, x.category, *x.conversation) for x in prompts])


def of_each_kind(prompts: Sequence[Prompt], limit: int) -> list[Prompt]:
    """At most `limit` prompts of each kind, evenly spread over it."""
    kinds = grouped(prompts, lambda prompt: prompt.kind).values()
    return [prompt for those in kinds for prompt in evenly(those, limit)]


def mislabel(prompts: Sequence[Prompt], share: float, *, seed: int) -> list[Prompt]:
    """Noise of the labels: the same prompts in the same order, some of them with a wrong kind.

    Of the n harmful prompts `round(share · n)` become benign, and as large a share of the others
    harmful; the seed says which ones.
    """
    wrong = set()
    for side in (True, False):
        there = [index for index, prompt in enumerate(prompts) if prompt.is_harmful is side]
        count = round(share * len(there))
        if count:
            order = walk(len(there), 0, count=count, seed=(seed, int(side)))
            wrong |= {there[place] for place in order}
    return [
        dataclasses.replace(prompt, kind="benign" if prompt.is_harmful else "harmful")
        if index in wrong
        else prompt
        for index, prompt in enumerate(prompts)
    ]


def batch_at(
    prompts: Sequence[Prompt], step: int, *, counts: Mapping[Kind, int], seed: int
) -> list[Prompt]:
    """Returns the prompts of one training step: the data cursor is the step number itself.

    Each kind is walked by itself, counts[kind] prompts a step (0 of a kind left out), in the order
    of `jaxalign.data.order.walk`; that depends on (seed, kind, epoch) alone. The prompts must be in
    the same order at every step.

    Returns:
      sum(counts) prompts: harmful first, then benign, then look-alike.

    Raises:
      InputError: `counts` asks for nothing, for a kind that does not exist or that has no prompts,
        or for a negative number.
      ValueError: `step` or `seed` is negative.
    """
    if step < 0 or seed < 0:
        raise ValueError(f"step and seed must be at least 0, got {step} and {seed}")
    for kind, count in counts.items():
        if kind not in KINDS:
            raise InputError(f"counts: unknown kind {kind!r}; use {', '.join(KINDS)}")
        if count < 0:
            raise InputError(f"counts: {kind} is {count}; use 0 or more")
    if not sum(counts.values()):
        raise InputError("counts: a batch of no prompts; ask for at least one of some kind")
    batch = []
    for number, kind in enumerate(KINDS):
        count = counts.get(kind, 0)
        if not count:
            continue
        pool = [prompt for prompt in prompts if prompt.kind == kind]
        if not pool:
            raise InputError(
                f"counts: {kind} is {count}, but the data has no {kind} prompts; "
                f"add some or set it to 0"
            )
        batch += [pool[i] for i in walk(len(pool), step, count=count, seed=(seed, number))]
    return batch
