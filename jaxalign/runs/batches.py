"""From prompts to the batch of each step, and from its result to transcripts."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxalign.data.prompts import KINDS, Kind, Prompt, batch_at, conversation_field
from jaxalign.data.templates import Template, encode_requests, pad
from jaxalign.engine.step import StepResult
from jaxalign.host.errors import InputError
from jaxalign.host.processes import fetch
from jaxalign.models.sharding import to_devices
from jaxalign.records import Batch, Prompts
from jaxalign.sampling import Endings, Tool

MakeFacts = Callable[[Sequence[Prompt]], Any]
"""`prompts -> Batch.facts`, as the run's reward needs them."""


@dataclasses.dataclass(eq=False)
class Batches:
    """The batch of each step: a pure function of the step number.

    Attributes:
      prompts: the training prompts.
      tokenizer: a fast Hugging Face tokenizer with a chat template.
      template: how a prompt is asked.
      counts: prompts of each kind in a step.
      max_prompt_tokens: the longest prompt, beyond what the template makes all of them share; every
        batch is so wide.
      seed: of the order.
      make_facts: what the reward needs to know of a batch's prompts beside their kinds.
      tool: what completions may call.
      endings: words that end them.
      mesh: devices that share the rows; by default the first device has them.
    """

    prompts: list[Prompt]
    tokenizer: Any
    template: Template
    _: dataclasses.KW_ONLY
    counts: Mapping[Kind, int]
    max_prompt_tokens: int
    seed: int
    make_facts: MakeFacts = lambda prompts: None
    tool: Tool | None = None
    endings: Endings | None = None
    mesh: jax.sharding.Mesh | None = None

    def check(self, *, max_positions: int, max_new_tokens: int) -> None:
        """Refuses what a later step would trip over.

        Raises:
          InputError: a prompt is too long, a kind has no prompts, or prefix, prompt and completion
            pass the model's last position.
        """
        self.prompts_at(0)
        limit, (prefix, rows) = self.max_prompt_tokens, self._encoded
        positions = prefix.size + limit + max_new_tokens
        if positions > max_positions:
            raise InputError(
                f"prefix, max_prompt_tokens={limit} and max_new_tokens={max_new_tokens} take "
                f"{positions} positions, the model has {max_positions}: lower one of them"
            )
        for prompt, row in rows.items():
            if len(row) > limit:
                raise InputError(
                    f"prompt {prompt.id} takes {len(row)} tokens, the limit is {limit}: shorten it "
                    "or raise max_prompt_tokens"
                )

    def prompts_at(self, step: int) -> list[Prompt]:
        """The prompts of a step, in the order of its batch: harmful, benign, look-alike."""
        return batch_at(self.prompts, step, counts=self.counts, seed=self.seed)

    def __call__(self, step: int) -> Batch:
        """The batch of a step, on the devices."""
        batch = self.encode(self.prompts_at(step))
        rows = (batch.prompts, batch.kind, batch.facts)
        prompts, kind, facts = to_devices(rows, self.mesh, rows=True)
        prefix = to_devices(batch.prefix, self.mesh)
        return Batch(prompts, kind, facts, prefix, *self._placed_tables)

    @functools.cached_property
    def _placed_tables(self) -> tuple[Tool | None, Endings | None]:
        return to_devices((self.tool, self.endings), self.mesh)

    @functools.cached_property
    def _encoded(self) -> tuple[Any, dict[Prompt, np.ndarray]]:
        """What all prompts begin with, the same in every batch, and the rest of each."""
        asked = [prompt.asked for prompt in self.prompts]
        prefix, rows = encode_requests(self.tokenizer, self.template, asked)
        arrays = [np.asarray(row, np.int32) for row in rows]
        return prefix, dict(zip(self.prompts, arrays, strict=True))

    def encode(self, prompts: Sequence[Prompt]) -> Batch:
        """The batch of given prompts, which are among the training ones, as NumPy arrays."""
        prefix, rows = self._encoded
        tokens: Any = pad([rows[prompt] for prompt in prompts], self.max_prompt_tokens)
        kind: Any = kind_indices(prompts)
        facts = self.make_facts(prompts)
        return Batch(Prompts(*tokens), kind, facts, prefix, self.tool, self.endings)

    def transcripts(self, step: int, result: StepResult) -> list[dict[str, Any]]:
        """One row per prompt of a step: its first sample, with the rewards."""
        prompts = self.prompts_at(step)
        samples, details = fetch((result.samples, result.score.details))
        group = len(samples.tokens) // len(prompts)
        rows, read = range(0, len(samples.tokens), group), samples.readable(samples.present)
        return [
            {
                "prompt": prompt.text,
                **conversation_field(prompt.conversation),
                "kind": prompt.kind,
                "completion": self.tokenizer.decode(
                    samples.tokens[row][read[row]], skip_special_tokens=True
                ),
                **{name: np.asarray(value)[row].item() for name, value in details.items()},
            }
            for row, prompt in zip(rows, prompts, strict=True)
        ]


def kind_indices(prompts: Sequence[Prompt]) -> np.ndarray:
    """`[N]` int32 index of each prompt's kind in `KINDS`."""
    return np.array([KINDS.index(prompt.kind) for prompt in prompts], np.int32)
