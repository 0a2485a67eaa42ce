"""What rewards know of a batch's prompts, and which prompts its completions answer."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxalign.data.prompts import Prompt
from jaxalign.records import Batch, Rollout
from jaxalign.rewards import PromptFacts


def prompt_facts(
    prompts: Sequence[Prompt], encode: Callable[[Sequence[Prompt]], Any] | None = None
) -> Callable[[Sequence[Prompt]], PromptFacts]:
    """What rewards need to know of a batch's prompts, the harmful ones first.

    Args:
      prompts: of the run.
      encode: of `Scoring`; without it no questions are put.
    """
    numbers = {prompt: number for number, prompt in enumerate(prompts)}

    def facts(batch: Sequence[Prompt]) -> PromptFacts:
        harmless = [prompt for prompt in batch if prompt.kind != "harmful"]
        none = np.zeros((len(harmless), 0), np.int32)
        questions: Any = encode(harmless) if encode and harmless else (none, none.astype(bool))
        index: Any = np.array([numbers[prompt] for prompt in batch], np.int32)
        return PromptFacts(index, *questions)

    return facts


def prompts_of(batch: Batch, samples: Rollout, prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompt of each of B completions, on the host."""
    index = np.asarray(batch.facts.index)
    return [prompts[number] for number in index[np.asarray(samples.prompt_of_row)]]
