"""Tool turns inside the sampling loop: a row asks, the answer's tokens are appended, it goes on.

A row calls by generating `<consult>category</consult>`. From the next step on its tokens are not
drawn but taken from the answer, one a step, like any other token of the completion: later tokens
attend to them, and they are marked as not generated, so that nothing trains on them. The other rows
go on generating meanwhile; every row calls when and where it likes.

Only generated tokens are read: a prompt or an answer with the same tags calls nothing.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from jaxalign.rewards.parts import CALL_TAGS, RULE_TAGS
from jaxalign.text.automaton import compile_pattern
from jaxalign.text.encoding import encode_text
from jaxalign.text.matcher import Reader, Tokenizer, token_bytes


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Tool:
    """Calls and their answers as tables; made by `consultation`. A pytree.

    Attributes:
      reader: automata that accept a call of each of the K arguments, and a last one for any call.
      answers: `[K + 1, R]` int32 tokens, the last row for an unknown argument; if `by_call`,
        `[B·max_calls, R]`, one row for each call of each row of the batch.
      lengths: int32, as many as there are answers. A row that gets an answer of length 0 stops
        there: the answer is not known yet.
      max_calls: how many calls of a row are answered; later ones are plain text.
      by_call: how `answers` are laid out.
    """

    reader: Reader
    answers: jax.Array
    lengths: jax.Array
    max_calls: int = dataclasses.field(metadata={"static": True})
    by_call: bool = dataclasses.field(default=False, metadata={"static": True})


def consultation(
    rules: Mapping[str, str],
    tokenizer: Tokenizer,
    *,
    max_calls: int = 1,
    call_tags: tuple[str, str] = CALL_TAGS,
    answer_tags: tuple[str, str] = RULE_TAGS,
) -> Tool:
    r"""The tool of ASCL: `<consult>category</consult>` is answered by `\n<rules>text</rules>\n`.

    The category is what follows the last opening tag; space around it does not matter. An unknown
    one is answered by the list of those there are. A call is complete with the token that completes
    its closing tag; what else this token holds stays before the answer. An answer that passes the
    last token is cut off there.

    Source: ASCL (arXiv 2602.13562) states the tool; its form is ours.

    Args:
      rules: category to text, as in `jaxalign.data.RuleBook.rules`.
      tokenizer: a fast Hugging Face tokenizer. Answers are encoded as plain text, without special
        tokens.
      max_calls: as in `Tool`, at least 1.
      call_tags: what opens and closes a call.
      answer_tags: what opens and closes an answer.

    Raises:
      ValueError: no rules, max_calls below 1, an empty tag, or a tokenizer that can't spell an
        answer.
    """
    if not rules:
        raise ValueError("rules must have at least one category")
    check_calls(max_calls, call_tags, answer_tags)
    opening, closing = map(re.escape, call_tags)
    calls = [rf"{opening}\s*{re.escape(category)}\s*{closing}" for category in rules]
    # None is no category, so its answer is the one to every unknown argument.
    texts = [rule_answer(rules, category, answer_tags) for category in (*rules, None)]
    encoded = encode_answers(tokenizer, texts)
    answers = np.zeros((len(encoded), max(map(len, encoded))), np.int32)
    for row, tokens in zip(answers, encoded, strict=True):
        row[: len(tokens)] = tokens
    patterns = [*calls, f"{opening}.*{closing}"]
    return Tool(
        reader=Reader.build([compile_pattern(pattern) for pattern in patterns], tokenizer),
        answers=jnp.asarray(answers),
        lengths=jnp.asarray([len(tokens) for tokens in encoded], jnp.int32),
        max_calls=max_calls,
    )


def check_calls(max_calls: int, *tags: tuple[str, str]) -> None:
    """Refuses a tool that answers no call, or that has an empty tag, by a `ValueError`."""
    if max_calls < 1:
        raise ValueError(f"max_calls must be at least 1, got {max_calls}")
    if not all(tag for pair in tags for tag in pair):
        raise ValueError(f"tags must not be empty, got {' and '.join(map(str, tags))}")


def rule_answer(
    rules: Mapping[str, str],
    category: str | None,
    answer_tags: tuple[str, str] = RULE_TAGS,
) -> str:
    """The text that answers a call: a rule, or for an unknown category the list of categories."""
    unknown = f"There is no such category. Categories: {', '.join(rules)}."
    text = unknown if category is None else rules.get(category, unknown)
    return f"\n{answer_tags[0]}{text}{answer_tags[1]}\n"


def encode_answers(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Tokens that spell each text and nothing else, in the middle of other text.

    Raises:
      ValueError: the tokenizer can't spell one of them.
    """
    table, lengths = token_bytes(tokenizer)
    encoded = []
    for text in texts:
        ids = encode_text(tokenizer, text)
        spelled = [table[i, : lengths[i]].tobytes() for i in ids]
        if b"".join(spelled) == b" " + text.encode() and spelled[0] == b" ":
            ids, spelled = ids[1:], spelled[1:]  # the space that sentencepiece begins a text with
        if b"".join(spelled) != text.encode():
            raise ValueError(f"the tokenizer can't spell the answer {text!r}")
        encoded.append(ids)
    return encoded


@struct.dataclass
class Turns:
    """Where each of B rows stands with the tool.

    Attributes:
      states: the automata's, as `Reader.start` has them.
      answer: `[B]` int32, the answer that is being appended, −1 for none.
      place: `[B]` int32, how many of its tokens are.
      calls: `[B]` int32, answered calls.
    """

    states: jax.Array
    answer: jax.Array
    place: jax.Array
    calls: jax.Array

    @classmethod
    def start(cls, tool: Tool, batch: int) -> Turns:
        """Nothing read yet."""
        zero = jnp.zeros((batch,), jnp.int32)
        return cls(tool.reader.start(batch), zero - 1, zero, zero)

    def force(self, tool: Tool, drawn: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The next tokens `[B]`, the answer's where there is one, and which `[B]` are drawn."""
        taken = tool.answers[jnp.maximum(self.answer, 0), self.place]
        return jnp.where(self.answer < 0, drawn, taken), self.answer < 0

    def advance(self, tool: Tool, tokens: jax.Array, reading: jax.Array) -> Turns:
        """After tokens `[B]` were written; `reading` `[B]` are those that were drawn and go on."""
        place = jnp.where(self.answer < 0, 0, self.place + 1)
        length = tool.lengths[jnp.maximum(self.answer, 0)]
        over = (self.answer >= 0) & (place >= length) & (length > 0)
        answer = jnp.where(over, -1, self.answer)
        states = tool.reader.advance(self.states, tokens, reading)
        accepted = tool.reader.accepted(states)
        called = accepted[:, -1] & reading
        answered = called & (self.calls < tool.max_calls)
        if tool.by_call:
            found = jnp.arange(tokens.shape[0]) * tool.max_calls + self.calls
        else:
            # The last automaton accepts every call, so an unknown argument finds itself.
            found = jnp.argmax(accepted, axis=1)
        return Turns(
            states=jnp.where(called[:, None, None], tool.reader.start(tokens.shape[0]), states),
            answer=jnp.where(answered, found.astype(jnp.int32), answer),
            place=jnp.where(over | answered, 0, place),
            calls=self.calls + answered,
        )

    def waiting(self, tool: Tool) -> jax.Array:
        """`[B]` bool, rows whose call has an answer that is not known yet."""
        return (self.answer >= 0) & (tool.lengths[jnp.maximum(self.answer, 0)] == 0)
