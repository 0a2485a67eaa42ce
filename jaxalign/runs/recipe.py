"""What is an experiment's own in a run."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxalign.data.prompts import Prompt
from jaxalign.data.templates import Template
from jaxalign.records import Params
from jaxalign.rewards.terms import Reward
from jaxalign.runs.loop import Training
from jaxalign.sampling import Tool


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is an experiment's own in a run: a reward to learn from, or something to tune on.

    Attributes:
      template: how prompts are asked, in training and evaluation.
      reward: the start parameters to what completions are worth; flags may add to it.
      tune: `(Experiment, start parameters) -> Training`, what the run trains with instead; it must
        not keep the parameters.
      cold_start: `(Experiment, start parameters) -> parameters`, what is done to them first; None
        for nothing.
      tool: what completions may call.
      judge: the judge of refusals (`make_judge`) that sums evaluations up; a run's others stand
        beside it.
      encode: as for `jaxalign.runs.facts.prompt_facts`.
      facts: what else config.json should say and a resumed run must share, as JSON.
    """

    template: Template
    reward: Callable[[Params], Reward] | None = None
    _: dataclasses.KW_ONLY
    tune: Callable[[Any, Params], Training] | None = None
    cold_start: Callable[[Any, Params], Params] | None = None
    tool: Tool | None = None
    judge: str = "phrases"
    encode: Callable[[Sequence[Prompt]], Any] | None = None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
