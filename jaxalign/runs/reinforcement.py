"""A run's reinforcement learning, composed of its settings."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax

from jaxalign.answers.completing import find_stops
from jaxalign.data.prompts import KINDS, Prompt
from jaxalign.engine.ppo import with_critic
from jaxalign.engine.state import TrainState, init_state
from jaxalign.engine.step import Frozen, Sampling, Step, draw, make_step
from jaxalign.models import Transformer
from jaxalign.models.lora import on_base
from jaxalign.records import Params
from jaxalign.runs.added_rewards import load_added_rewards
from jaxalign.runs.batches import Batches
from jaxalign.runs.facts import prompt_facts
from jaxalign.runs.loop import Training
from jaxalign.runs.recipe import Recipe
from jaxalign.runs.schedule import make_run_optimizer
from jaxalign.runs.settings import Settings
from jaxalign.runs.start_model import start_policy
from jaxalign.sampling import Endings, Stage, Temperature, stage_key


@dataclasses.dataclass(frozen=True)
class Reinforcement:
    """A run's reinforcement learning: its compiled step, and what the step takes.

    Attributes:
      step: from `make_step`.
      sampling: how its completions are drawn.
      batches: the batch of each step.
      start: the start parameters to the state before the first step.
      frozen: the start parameters to what stays as it is.
    """

    step: Step
    sampling: Sampling
    batches: Batches
    start: Callable[[Params], TrainState]
    frozen: Callable[[Params], Frozen]

    def training(self, model: Transformer, params: Params) -> Training:
        """What a run that starts from these parameters trains with."""
        frozen = self.frozen(params)

        def tokens_per_second(policy: Params) -> float:
            """Of one rollout, compilation left out."""
            policy = on_base(policy, frozen.base)
            batch, key = self.batches(0), stage_key(0, Stage.SPEED)
            jax.block_until_ready(draw(model, self.sampling, policy, batch, key))
            begun = time.perf_counter()
            samples = jax.block_until_ready(draw(model, self.sampling, policy, batch, key))
            return float(samples.mask.sum()) / (time.perf_counter() - begun)

        return Training(
            lambda state, batch, key: self.step(state, batch, key, frozen),
            self.start,
            self.batches,
            self.batches.transcripts,
            tokens_per_second,
        )


def make_reinforcement(
    settings: Settings, model: Transformer, tokenizer: Any, prompts: list[Prompt], recipe: Recipe
) -> Reinforcement:
    """Composes a run's step with the objective, the optimizer and the batches of its settings.

    Args:
      settings: the run's.
      model: the policy.
      tokenizer: the policy's.
      prompts: for training.
      recipe: has a reward.

    Raises:
      InputError: prompts, lengths or added rewards that cannot work.
    """
    reward, rl = recipe.reward, settings.rl
    assert reward is not None and rl is not None
    stops = find_stops(model, tokenizer, settings.completions.stop)
    batches = Batches(
        prompts,
        tokenizer,
        recipe.template,
        counts={kind: getattr(rl, kind) for kind in KINDS},
        max_prompt_tokens=settings.data.max_prompt_tokens,
        seed=settings.seed,
        make_facts=prompt_facts(prompts, recipe.encode),
        tool=recipe.tool,
        endings=Endings.build(stops.texts, tokenizer),
        mesh=model.mesh,
    )
    batches.check(
        max_positions=model.max_positions, max_new_tokens=settings.completions.max_new_tokens
    )
    optimizer = make_run_optimizer(settings)
    sampling = Sampling(
        rl.samples_per_prompt,
        settings.completions.max_new_tokens,
        stops.tokens,
        Temperature(settings.completions.temperature),
    )
    step = make_step(
        model, optimizer, sampling=sampling, objective=rl.objective, updates=rl.updates
    )
    add = load_added_rewards(rl.add_reward, tokenizer, prompts)

    def start(params: Params) -> TrainState:
        policy = start_policy(settings, model, params)
        return init_state(with_critic(model, policy) if rl.has_critic else policy, optimizer)

    def frozen(params: Params) -> Frozen:
        return Frozen(add(reward(params)), params if rl.has_reference or model.lora.rank else None)

    return Reinforcement(step, sampling, batches, start, frozen)
