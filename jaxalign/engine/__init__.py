"""The training step: sample, score, advantages, loss, update, as one compiled program.

    step = make_step(model, optimizer, sampling=Sampling(8, 64, stop), objective=GRPO())
    state = init_state(params, optimizer)
    state, result = step(state, batch, key, Frozen(reward))

The model is any `jaxalign.models.decoder.Decoder`, the optimizer any optax transformation, the
objective anything with the two methods of `Objective`, the reward any pytree that is called as
`(batch, samples) -> Score`. `check_decoder`, `check_reward` and `check_objective` say in a line
what is wrong with one. docs/engine.md has worked examples.
"""

from jaxalign.engine.baselines import (
    Adjust,
    Advantages,
    Group,
    InverseFrequency,
    LeaveOneOut,
    PerTerm,
    Shrinkage,
    WholeBatch,
)
from jaxalign.engine.checks import check_decoder, check_objective, check_reward
from jaxalign.engine.experience import Experience, Rows, experience_of
from jaxalign.engine.objective import GRPO, Objective, policy_loss
from jaxalign.engine.optimizer import (
    Adafactor,
    AdamW,
    Cosine,
    Decay,
    Linear,
    Optimizer,
    learning_rates,
    skip_nonfinite,
    skipped_updates,
    with_critic_optimizer,
)
from jaxalign.engine.penalties import K2, K3, KL, Penalty
from jaxalign.engine.ppo import PPO, with_critic
from jaxalign.engine.reductions import (
    Aggregation,
    Constant,
    Finished,
    Informative,
    Keep,
    SequenceMean,
    SequenceSum,
    TokenMean,
    Totals,
)
from jaxalign.engine.state import TrainState, init_state, policy_of
from jaxalign.engine.step import Frozen, Sampling, Step, StepResult, Updates, draw, make_step
from jaxalign.engine.surrogates import Cispo, Clipped, SoftGated, Surrogate
from jaxalign.models.decoder import Decoder, SharingDecoder, StatesDecoder, plain_decoder
from jaxalign.records import Batch, Credit, Prompts, Rollout, Score
from jaxalign.rewards.terms import Reward, device_reward, host_reward

__all__ = [
    "GRPO",
    "K2",
    "K3",
    "PPO",
    "Adafactor",
    "AdamW",
    "Adjust",
    "Advantages",
    "Aggregation",
    "Batch",
    "Cispo",
    "Clipped",
    "Constant",
    "Cosine",
    "Credit",
    "Decay",
    "Decoder",
    "Experience",
    "Finished",
    "Frozen",
    "Group",
    "Informative",
    "InverseFrequency",
    "Keep",
    "LeaveOneOut",
    "Linear",
    "Objective",
    "Optimizer",
    "Penalty",
    "PerTerm",
    "Prompts",
    "KL",
    "Reward",
    "Rollout",
    "Rows",
    "Sampling",
    "Score",
    "SequenceMean",
    "SequenceSum",
    "SharingDecoder",
    "Shrinkage",
    "SoftGated",
    "StatesDecoder",
    "Step",
    "StepResult",
    "Surrogate",
    "TokenMean",
    "Totals",
    "TrainState",
    "Updates",
    "WholeBatch",
    "check_decoder",
    "check_objective",
    "check_reward",
    "device_reward",
    "draw",
    "experience_of",
    "host_reward",
    "init_state",
    "learning_rates",
    "make_step",
    "plain_decoder",
    "policy_loss",
    "policy_of",
    "skip_nonfinite",
    "skipped_updates",
    "with_critic",
    "with_critic_optimizer",
]
