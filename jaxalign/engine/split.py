"""The step with a stop on the host between rollout and reward: the split path.

    compiled   rollout
    host       complete: what the reward needs and no compiled program can give
    compiled   score, advantages, update

It calls the functions that `make_step` compiles into one program, with the same key.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import optax

from jaxalign.engine.algorithm import Algorithm, RewardFn
from jaxalign.engine.state import TrainState
from jaxalign.engine.step import StepFn, StepResult, learn, rollout
from jaxalign.models.transformer import Params, Transformer
from jaxalign.records import Batch, Rollout

Complete = Callable[[int, Batch, Rollout], Batch]
"""`(step, batch, rollout) -> batch`, with `extras` as the reward function needs them."""


def make_split_step(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    algorithm: Algorithm,
    reward: RewardFn,
    complete: Complete,
    critic_optimizer: optax.GradientTransformation | None = None,
) -> StepFn:
    """`jaxalign.engine.step.make_step` as two compiled programs with the host between them.

    Args:
      model: the policy.
      optimizer: its optimizer.
      algorithm: constants.
      reward: what completions are worth.
      complete: called on the host with the number of the step, from 0. A resumed run repeats a
        run's steps bit for bit if its results depend on its arguments alone.
      critic_optimizer: of PPO's critic; needed for the baseline "critic", and only there.

    Returns:
      a function as `make_step` returns; not to be jitted.
    """
    sampling = jax.jit(functools.partial(rollout, model, algorithm))
    learning = jax.jit(
        functools.partial(learn, model, optimizer, algorithm, reward, critic_optimizer),
        donate_argnums=0,
    )

    def step(
        state: TrainState,
        batch: Batch,
        root_key: jax.Array,
        reward_params: Any,
        reference: Params | None = None,
    ) -> tuple[TrainState, StepResult]:
        number = int(state.step)
        key = jax.random.fold_in(root_key, number)
        samples = sampling(state.params, batch, key)
        batch = complete(number, batch, samples)
        return learning(state, batch, samples, key, reward_params, reference)

    return step
