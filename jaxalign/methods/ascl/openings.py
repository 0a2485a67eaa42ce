"""Traces whose first words are given, so that a model can learn both ways to begin.

A small start model seldom begins as it should: it opens a call and puts prose into it, and of the
traces that it begins itself almost none is right. So the choice is made for it: half of the traces
begin with a call of the prompt's hazard and its answer, half with the tag of the reasoning. The
model goes on from there by itself, and what it makes of it decides whether the trace is kept. Ours.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxalign.data.prompts import Prompt
from jaxalign.data.templates import pad
from jaxalign.engine.step import Sampling, draw
from jaxalign.host.errors import InputError
from jaxalign.host.processes import fetch
from jaxalign.models.sharding import to_devices
from jaxalign.models.transformer import Transformer
from jaxalign.records import Batch, Params, Prompts, Rollout
from jaxalign.rewards.parts import CALL_TAGS, REASONING_TAGS
from jaxalign.sampling import rule_answer
from jaxalign.sampling.tools import encode_answers


@dataclasses.dataclass(frozen=True)
class Opening:
    """The first words of a completion.

    Attributes:
      asked: ids that count as the model's own, so they are learned: a call, or a tag.
      answered: ids of the call's answer, which are context; none for a tag.
    """

    asked: list[int]
    answered: list[int]

    @property
    def tokens(self) -> list[int]:
        """All of it."""
        return [*self.asked, *self.answered]


@dataclasses.dataclass(frozen=True)
class Openings:
    """Both ways to begin.

    Attributes:
      calls: by category.
      alone: the tag of the reasoning.
    """

    calls: Mapping[str, Opening]
    alone: Opening

    @property
    def size(self) -> int:
        """Tokens of the longest."""
        return max(len(opening.tokens) for opening in (self.alone, *self.calls.values()))

    def of(self, prompt: Prompt, *, consults: bool) -> Opening:
        """The tag, or a call of the prompt's hazard: of `general` or the first without a rule."""
        if not consults:
            return self.alone
        calls = self.calls
        return calls.get(prompt.category) or calls.get("general") or next(iter(calls.values()))


def encode_openings(rules: Mapping[str, str], tokenizer: Any) -> Openings:
    """The call of each rule, as `jaxalign.sampling.consultation` answers it, and the tag.

    Raises:
      ValueError: the tokenizer can't spell one.
    """
    asked = encode_answers(tokenizer, [category.join(CALL_TAGS) for category in rules])
    answered = encode_answers(tokenizer, [rule_answer(rules, category) for category in rules])
    calls = {name: Opening(*ids) for name, *ids in zip(rules, asked, answered, strict=True)}
    [tag] = encode_answers(tokenizer, [REASONING_TAGS[0]])
    return Openings(calls, Opening(tag, []))


def guided_rollout(
    model: Transformer,
    sampling: Sampling,
    params: Params,
    batch: Batch,
    openings: Sequence[Opening],
    *,
    key: jax.Array,
    width: int,
) -> Rollout:
    """Samples G completions of each of N prompts that begin with its opening.

    The batch is on the host; its tool is left aside, so later calls are plain text. `width` tokens
    are kept for an opening, those of the longest, so that rounds share a compilation.

    Returns:
      the model's own part of each completion, `[B, T − width]`, as NumPy arrays.

    Raises:
      InputError: T leaves no room behind the longest opening.
    """
    room = sampling.max_new_tokens - width
    if room < 1:
        raise InputError(
            f"max_new_tokens={sampling.max_new_tokens} leaves no room behind a consultation and "
            f"its answer, which take {width}: raise it, or shorten the rules"
        )
    prompts, prompt_mask = np.asarray(batch.prompts.tokens), np.asarray(batch.prompts.mask)
    pairs = zip(prompts, prompt_mask, openings, strict=True)
    rows = [[*p[m], *opening.tokens] for p, m, opening in pairs]
    padded = pad(rows, prompts.shape[1] + width)
    asked, asked_mask = to_devices(padded, model.mesh, rows=True)
    batch = dataclasses.replace(batch, prompts=Prompts(asked, asked_mask), tool=None)
    sampling = dataclasses.replace(sampling, max_new_tokens=room)
    samples: Rollout = fetch(draw(model, sampling, params, batch, key))
    return samples
