"""Tools that are Python functions on the host, on the split path: same turns, same masks.

A rollout under jit cannot wait for Python, so it is taken in rounds. A row that calls stops; when
all rows have ended or stopped, the host answers the calls, and the same program with the same key
runs again, now with these answers. Tokens depend on the key, the step and what stands before them,
so every row comes to its call as it did before, and goes on. That costs up to `max_calls` + 1
rollouts, and compiles one program.
"""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
import re
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.host.processes import fetch
from jaxalign.models.transformer import Transformer
from jaxalign.records import Params, Rollout
from jaxalign.rewards.parts import CALL_TAGS, RULE_TAGS
from jaxalign.sampling.sampler import sample
from jaxalign.sampling.tools import Tool, check_calls, encode_answers
from jaxalign.text.automaton import compile_pattern
from jaxalign.text.encoding import decode
from jaxalign.text.matcher import Reader, Tokenizer

Function = Callable[[str], str] | Callable[[str], Awaitable[str]]


@dataclasses.dataclass(frozen=True)
class HostTool:
    """A Python function that completions may call.

    A call that raises, returns something else than a string, or takes too long is answered by a
    line that says so: the model sees it and goes on.

    Attributes:
      function: from the text between the call's tags, space around it stripped, to the answer's
        text; plain or `async`. The calls of one round run at the same time: plain functions in
        threads, so they must be safe for that, and one that hangs keeps its thread.
      timeout: seconds that the calls of one round may take.
      max_calls: how many calls of a row are answered; later ones are plain text.
      call_tags: what opens and closes a call.
      answer_tags: what opens and closes an answer.

    Raises:
      ValueError: timeout or max_calls is not positive, or a tag is empty.
    """

    function: Function
    timeout: float = 10.0
    max_calls: int = 1
    call_tags: tuple[str, str] = CALL_TAGS
    answer_tags: tuple[str, str] = RULE_TAGS

    def __post_init__(self) -> None:
        if not self.timeout > 0:
            raise ValueError(f"timeout must be above 0 seconds, got {self.timeout}")
        check_calls(self.max_calls, self.call_tags, self.answer_tags)


def sample_with_host_tool(
    model: Transformer,
    params: Params,
    prompts: jax.Array,
    prompt_mask: jax.Array,
    key: jax.Array,
    *,
    tool: HostTool,
    tokenizer: Tokenizer,
    samples_per_prompt: int,
    max_new_tokens: int,
    **rest: Any,
) -> Rollout:
    """`jaxalign.sampling.sample` with a tool on the host; not for use under jit.

    With a function that looks up `rules` it returns what `sample` does with `consultation(rules)`.

    Args, besides those of `sample`:
      tool: what rows may call.
      tokenizer: a fast Hugging Face tokenizer. Answers are encoded as plain text.
      max_new_tokens: T, answers included. An answer that passes it is cut off there, and the row is
        marked `cut`; a call that leaves no room at all is not made.
      rest: `method`, `stop` and `prefix`, as for `sample`.

    Raises:
      ValueError: the tokenizer cannot spell English.
      RuntimeError: a row did not come to its call again: the device's arithmetic is not
        reproducible, so give it another one.
    """
    rows, calls = prompts.shape[0] * samples_per_prompt, tool.max_calls
    opening, closing = map(re.escape, tool.call_tags)
    reader = Reader.build([compile_pattern(f"{opening}.*{closing}")], tokenizer)
    answers = np.zeros((rows * calls, max_new_tokens), np.int32)
    lengths = np.zeros(rows * calls, np.int32)
    answered = np.zeros(rows, np.int32)
    unspeakable = _encode(tool, tokenizer, UNSPEAKABLE)
    earlier: Rollout | None = None
    while True:
        samples = sample(
            model,
            params,
            prompts,
            prompt_mask,
            key,
            samples_per_prompt=samples_per_prompt,
            max_new_tokens=max_new_tokens,
            tool=Tool(reader, jnp.asarray(answers), jnp.asarray(lengths), calls, by_call=True),
            **rest,
        )
        seen = fetch(samples)
        if earlier is not None:
            _check_continues(earlier, seen)
        waiting = np.flatnonzero(_waiting(seen)).tolist()
        if not waiting:
            return samples
        arguments = [_argument(tool, tokenizer, seen, row) for row in waiting]
        for row, text in zip(waiting, _call(tool, arguments), strict=True):
            try:
                tokens = _encode(tool, tokenizer, text)[:max_new_tokens]
            except ValueError:  # letters that the vocabulary lacks, lone surrogates
                tokens = unspeakable[:max_new_tokens]
            place = row * calls + answered[row]
            answers[place, : len(tokens)] = tokens
            lengths[place] = len(tokens)
            answered[row] += 1
        earlier = seen


def _check_continues(earlier: Rollout, later: Rollout) -> None:
    """Every token of the earlier run must stand in the later one."""
    same = np.array_equal(earlier.tokens[earlier.present], later.tokens[earlier.present])
    if not same or (earlier.present & ~later.present).any():
        raise RuntimeError(
            "a second run of a rollout gave other tokens: tools on the host need a device whose "
            "arithmetic is reproducible"
        )


def _waiting(seen: Rollout) -> np.ndarray:
    """`[B]` bool, rows that stopped at a call and have room for an answer."""
    used = seen.present.sum(axis=1)
    last = np.maximum(used - 1, 0)  # what is present has no holes
    called = seen.mask[np.arange(len(last)), last]
    return np.asarray(seen.cut & called & (used < seen.present.shape[1]))


def _argument(tool: HostTool, tokenizer: Tokenizer, seen: Rollout, row: int) -> str:
    """What a waiting row asks for: the text of its last call."""
    # The space is for an opening tag that has one: decoding may drop a text's first.
    text = " " + decode(tokenizer, np.asarray(seen.tokens[row]), np.asarray(seen.mask[row]))
    opening, closing = tool.call_tags
    return text.rpartition(closing)[0].rpartition(opening)[2].strip()


UNSPEAKABLE = "The tool failed: its answer cannot be spelled."


def _encode(tool: HostTool, tokenizer: Tokenizer, text: str) -> list[int]:
    opening, closing = tool.answer_tags
    return encode_answers(tokenizer, [f"\n{opening}{text}{closing}\n"])[0]


def _call(tool: HostTool, arguments: Sequence[str]) -> list[str]:
    """The answers to calls made at the same time, each an answer or a line on what went wrong."""
    late = f"The tool failed: no answer within {tool.timeout:g} seconds."
    answers = [late] * len(arguments)

    def call(argument: str) -> Any:
        try:
            return tool.function(argument)
        except BaseException as error:
            return error

    async def settle(index: int, result: Any) -> None:
        try:
            result = await result if inspect.isawaitable(result) else result
        except BaseException as error:
            result = error
        if isinstance(result, BaseException):
            result = f"The tool failed: {type(result).__name__}."
        elif not isinstance(result, str):
            result = f"The tool failed: it returned {type(result).__name__}, not a string."
        answers[index] = result

    async def settle_all() -> None:
        await asyncio.gather(*(settle(*made) for made in enumerate(map(call, arguments))))

    def settle_one(index: int, argument: str) -> None:
        asyncio.run(settle(index, call(argument)))  # called outside the loop, it may run its own

    # Daemons: a call that hangs must not keep the process from ending.
    if inspect.iscoroutinefunction(tool.function):
        threads = [threading.Thread(target=asyncio.run, args=(settle_all(),), daemon=True)]
    else:
        threads = [
            threading.Thread(target=settle_one, args=asked, daemon=True)
            for asked in enumerate(arguments)
        ]
    deadline = time.monotonic() + tool.timeout
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    return list(answers)  # a copy: a late thread may still write into its own
