"""Traces that begin with a consultation made for the model, so that it can learn how to make one.

A small start model opens a call and puts prose into it: no trace of its own consults a rule that
exists. Where a prompt's hazard is known, the call and its answer can be written for it; the model
goes on from there by itself, and what it makes of the rule decides whether the trace is kept. Ours.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.prompts import Prompt
from jaxalign.errors import InputError
from jaxalign.models.transformer import Params, Transformer
from jaxalign.sampling import Rollout, rule_answer
from jaxalign.sampling.tools import encode_answers
from jaxalign.training.step import Algorithm, Batch, rollout


@dataclasses.dataclass(frozen=True)
class Call:
    """A call and its answer.

    Attributes:
      asked: ids of the call, which are learned.
      answered: ids of the answer, which are context.
    """

    asked: list[int]
    answered: list[int]


def encode_calls(rules: Mapping[str, str], tokenizer: Any) -> dict[str, Call]:
    """The call of each rule, as `jaxalign.sampling.consultation` answers it.

    Raises:
      ValueError: the tokenizer can't spell one.
    """
    asked = encode_answers(tokenizer, [f"<consult>{category}</consult>" for category in rules])
    answered = encode_answers(tokenizer, [rule_answer(rules, category) for category in rules])
    return {category: Call(*ids) for category, *ids in zip(rules, asked, answered, strict=True)}


def call_of(calls: Mapping[str, Call], prompt: Prompt) -> Call:
    """The call of the prompt's hazard; without such a rule the general one, else the first."""
    return calls.get(prompt.category) or calls.get("general") or next(iter(calls.values()))


def guided_rollout(
    model: Transformer,
    algorithm: Algorithm,
    params: Params,
    batch: Batch,
    calls: Sequence[Call],
    key: jax.Array,
    *,
    width: int,
) -> Rollout:
    """Samples G completions of each prompt that begin with the given call and its answer.

    Args:
      model: the decoder.
      algorithm: G, T and how tokens are drawn.
      params: its parameters.
      batch: N prompts; its tool is left aside, so later calls are plain text.
      calls: N of them.
      key: consumed.
      width: tokens kept for call and answer, so that rounds share a compilation: those of the
        longest. The model's own part has T − width.

    Returns:
      the completions, call and answer included, as if the model had made the call: the call's
      tokens are generated ones, the answer's are not. `logps` are those of the tokens that were
      drawn, and 0 at the call's.

    Raises:
      InputError: T leaves no room behind the longest call and its answer.
    """
    opening = [[*call.asked, *call.answered] for call in calls]
    room = algorithm.max_new_tokens - width
    if room < 1:
        raise InputError(
            f"max_new_tokens={algorithm.max_new_tokens} leaves no room behind a consultation and "
            f"its answer, which take {width}: raise it, or shorten the rules"
        )
    prompts, prompt_mask = np.asarray(batch.prompts), np.asarray(batch.prompt_mask)
    rows = [np.array([*p[m], *o]) for p, m, o in zip(prompts, prompt_mask, opening, strict=True)]
    tokens = np.zeros((len(rows), prompts.shape[1] + width), np.int32)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = ids
    exists = np.arange(tokens.shape[1]) < np.array([[len(ids)] for ids in rows])
    samples = rollout(
        model,
        dataclasses.replace(algorithm, max_new_tokens=room),
        params,
        dataclasses.replace(
            batch, prompts=jnp.asarray(tokens), prompt_mask=jnp.asarray(exists), tool=None
        ),
        key,
    )
    return _behind(jax.device_get(samples), calls, algorithm)


def _behind(samples: Rollout, calls: Sequence[Call], algorithm: Algorithm) -> Rollout:
    """The samples `[B, room]` moved behind their calls, `[B, T]`."""
    shape = (len(samples.tokens), algorithm.max_new_tokens)
    tokens, logps = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    mask, present = np.zeros(shape, bool), np.zeros(shape, bool)
    for row in range(shape[0]):
        call = calls[row // algorithm.samples_per_prompt]
        start = len(call.asked) + len(call.answered)
        tokens[row, :start] = [*call.asked, *call.answered]
        present[row, :start] = True
        mask[row, : len(call.asked)] = True
        rest = slice(start, start + samples.tokens.shape[1])
        tokens[row, rest], logps[row, rest] = samples.tokens[row], samples.logps[row]
        mask[row, rest], present[row, rest] = samples.mask[row], samples.present[row]
    return dataclasses.replace(
        samples,
        tokens=jnp.asarray(tokens),
        mask=jnp.asarray(mask),
        present=jnp.asarray(present),
        logps=jnp.asarray(logps),
        mode=jnp.ones(shape[0], jnp.int32),
    )
