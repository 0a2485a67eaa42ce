"""What a step is given: prompts, a reward function, and its constants."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

from jaxalign.records import Batch, Rollout, Score
from jaxalign.sampling import Method, Temperature

RewardFn = Callable[[Any, Batch, Rollout], Score]
"""`(reward_params, batch, rollout) -> Score`; jit-able. `reward_params` are arrays it needs."""


@dataclasses.dataclass(frozen=True)
class InverseFrequency:
    """How IFPO rebalances the advantages by the samples' modes; static under jit.

    Attributes:
      form: "weight" multiplies GRPO's advantages; of a baseline that spans the batch it multiplies
        what differs among a prompt's samples, see `advantages`. "baseline" takes the place of
        GRPO's mean and deviation, so it goes with the baseline "group" alone.
      scope: whether a mode's frequency is counted in a prompt's samples or in the whole batch.
      max_weight: at least 1, the most that a rare sample counts; None for no bound.
      num_modes: how many modes there may be.
    """

    form: Literal["weight", "baseline"] = "weight"
    scope: Literal["group", "batch"] = "group"
    max_weight: float | None = None
    num_modes: int = 2


Baseline = Literal["group", "batch", "shrinkage", "leave_one_out", "critic"]


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """The constants of a step; static under jit.

    Attributes:
      samples_per_prompt: G.
      max_new_tokens: T.
      stop: ids that end a completion.
      method: how tokens are drawn; its temperature is the policy's.
      baseline: "group" is GRPO's; "leave_one_out" RLOO's, never scaled; "batch" spans all prompts
        of the step (REINFORCE++), under which "refuse everything" is not an absorbing state;
        "shrinkage" lies halfway: less noise, and a weaker push out of such a state; "critic" is
        PPO's, a learned value of every token.
      inverse_frequency: IFPO's rebalancing by `Rollout.mode`; None for none.
      scale_advantages: divide by the deviation; of a critic's advantages, whiten them.
      clip_low: ε below one of the clipped ratio.
      clip_high: ε above one.
      kl_coefficient: weight β of the KL to the reference in the loss, by the k2 estimator, which
        has the reverse KL's gradient on policy; 0 needs no reference model.
      aggregation: how per-token losses are reduced.
      micro_batches: parts of a minibatch that the gradient is accumulated over, for memory.
      epochs: passes over a rollout.
      minibatches: updates in each pass, each from N/minibatches prompts and all their samples.
      discount: critic: γ, from one generated token to the next.
      gae_lambda: critic: λ; 1 leaves no bias, less of it less noise.
      value_clip: critic: how far a value may move within a step before it earns no more.
    """

    samples_per_prompt: int
    max_new_tokens: int
    stop: tuple[int, ...]
    method: Method = Temperature(1.0)
    baseline: Baseline = "group"
    inverse_frequency: InverseFrequency | None = None
    scale_advantages: bool = True
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coefficient: float = 0.0
    aggregation: Literal["token_mean", "sequence_mean", "sequence_sum"] = "token_mean"
    micro_batches: int = 1
    epochs: int = 1
    minibatches: int = 1
    discount: float = 1.0
    gae_lambda: float = 0.95
    value_clip: float | None = 0.2
