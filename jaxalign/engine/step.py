"""One reinforcement-learning step: sample → reward → advantage → loss → update.

`make_step` composes the functions of this file under one `jax.jit`. Where a part of the reward is a
Python function, it runs between two compiled programs, which call the same functions with the same
key:

    compiled   rollout
    host       the reward's parts that are Python (`jaxalign.rewards.terms.HostValues`)
    compiled   score, advantages, update
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import optax
from flax import struct

from jaxalign.engine.epochs import update_repeatedly
from jaxalign.engine.experience import Experience, Rows
from jaxalign.engine.gradients import apply_gradients, descend
from jaxalign.engine.objective import GRPO, Objective
from jaxalign.engine.reductions import Totals
from jaxalign.engine.shared_update import shared_gradients
from jaxalign.engine.state import TrainState, complete, policy_of
from jaxalign.host.fields import Checked, Count
from jaxalign.host.processes import fetch
from jaxalign.losses import aggregate
from jaxalign.models.decoder import Decoder
from jaxalign.models.layout import mesh_of
from jaxalign.models.sharding import to_devices
from jaxalign.records import KINDS, Batch, Metrics, Params, Rollout, Score, of_rows
from jaxalign.rewards.safety import mean_where
from jaxalign.rewards.terms import host_parts, resolve_on_host
from jaxalign.sampling import Method, Temperature, sample


@dataclasses.dataclass(frozen=True)
class Sampling(Checked):
    """How completions are drawn; static.

    Attributes:
      samples_per_prompt: G.
      max_new_tokens: T.
      stop: ids that end a completion.
      method: how tokens are chosen; its temperature is the policy's.
    """

    samples_per_prompt: Count
    max_new_tokens: Count
    stop: tuple[int, ...] = ()
    method: Method = Temperature(1.0)


@dataclasses.dataclass(frozen=True)
class Updates(Checked):
    """How often a rollout is learned from, and in which parts; static."""

    epochs: Count = 1
    """Passes over a step's completions."""
    minibatches: Count = 1
    """Updates in each pass, each from its share of the prompts with all their completions."""
    micro_batches: Count = 1
    """Parts of an update's prompts that gradients are accumulated over, for memory."""
    packed: bool = False
    """Let completions share rows, so that an update computes little that is padding."""


@struct.dataclass
class Frozen:
    """What a step reads and does not change; its arrays are arguments of the program.

    Attributes:
      reward: a `jaxalign.rewards.terms.Reward`.
      base: the start's parameters, where the objective has a KL to them or an adapter is trained
        on them, else None.
    """

    reward: Any
    base: Params | None = None


class StepResult(NamedTuple):
    """What a step shows besides the next state: scalars, transcripts and their scores."""

    metrics: Metrics
    samples: Rollout
    score: Score


@dataclasses.dataclass(frozen=True)
class Step:
    """`(state, batch, key, frozen) -> (state, StepResult)`; the state is donated.

    The step's noise is that of `fold_in(key, state.step)`, apart for samples and for the order of
    minibatches. Made by `make_step`.

    Attributes:
      whole: the compiled step.
      rollout: its first part, compiled by itself, for rewards on the host.
      learn: its second part.
      mesh: devices that share the rows.
    """

    whole: Any
    rollout: Any
    learn: Any
    mesh: jax.sharding.Mesh | None

    def __call__(
        self, state: TrainState, batch: Batch, key: jax.Array, frozen: Frozen
    ) -> tuple[TrainState, StepResult]:
        """Takes a step."""
        if not host_parts(frozen.reward):
            return self.whole(state, batch, key, frozen)
        samples = self.rollout(state, batch, key, frozen.base)
        place = lambda values: to_devices(values, self.mesh, rows=True)  # noqa: E731
        # The host has no use for these tables, which may be large.
        batch_alone = dataclasses.replace(batch, tool=None, endings=None)
        seen_batch, seen_samples = fetch((batch_alone, samples))
        reward = resolve_on_host(frozen.reward, seen_batch, seen_samples, place)
        return self.learn(state, batch, samples, key, Frozen(reward, frozen.base))


def make_step(
    model: Decoder,
    optimizer: optax.GradientTransformation,
    *,
    sampling: Sampling,
    objective: Objective = GRPO(),  # noqa: B008  (frozen)
    updates: Updates = Updates(),  # noqa: B008  (frozen)
) -> Step:
    """Composes the whole step into one compiled program.

    Args:
      model: the policy's network: `jaxalign.models.Transformer`, or any `Decoder`.
      optimizer: one optax transformation for all that is trained.
      sampling: how completions are drawn.
      objective: what is minimized: `GRPO`, `PPO`, or anything with their two methods.
      updates: how often a rollout is learned from, and in which parts.
    """

    def rollout(
        state: TrainState, batch: Batch, key: jax.Array, base: Params | None = None
    ) -> Rollout:
        policy = policy_of(complete(state.params, base))
        return draw(model, sampling, policy, batch, _key(key, state, _SAMPLING))

    def learn(
        state: TrainState, batch: Batch, samples: Rollout, key: jax.Array, frozen: Frozen
    ) -> tuple[TrainState, StepResult]:
        scored = frozen.reward(batch, samples)
        experience, measured = objective.experience(
            model,
            complete(state.params, frozen.base),
            batch,
            samples,
            scored,
            base=frozen.base,
            parts=updates.minibatches * updates.micro_batches,
        )
        update = functools.partial(
            update_once,
            model,
            optimizer,
            objective,
            base=frozen.base,
            micro_batches=updates.micro_batches,
            packed=updates.packed,
        )
        after, metrics = update_repeatedly(
            lambda state, rows: update(state, Experience(rows, experience.prefix)),
            state,
            experience.rows,
            _key(key, state, _ORDER),
            prompts=batch.prompts.tokens.shape[0],
            epochs=updates.epochs,
            minibatches=updates.minibatches,
        )
        metrics |= measured | rollout_metrics(samples) | reward_metrics(batch, samples, scored)
        if "reward" in scored.details:
            raise ValueError("a term or detail is called reward, as the sum is: rename it")
        details = scored.details | {"reward": scored.rewards.reshape(-1)}
        result = StepResult(metrics, samples, scored._replace(details=details))
        return dataclasses.replace(after, step=state.step + 1), result

    def whole(
        state: TrainState, batch: Batch, key: jax.Array, frozen: Frozen
    ) -> tuple[TrainState, StepResult]:
        return learn(state, batch, rollout(state, batch, key, frozen.base), key, frozen)

    return Step(
        jax.jit(whole, donate_argnums=0),
        jax.jit(rollout),
        jax.jit(learn, donate_argnums=0),
        mesh_of(model),
    )


_SAMPLING, _ORDER = range(2)  # what a step draws


def _key(root: jax.Array, state: TrainState, purpose: int) -> jax.Array:
    return jax.random.fold_in(jax.random.fold_in(root, state.step), purpose)


def draw(
    model: Decoder, sampling: Sampling, params: Params, batch: Batch, key: jax.Array
) -> Rollout:
    """Samples G completions of each of the batch's prompts."""
    return sample(
        model,
        params,
        batch.prompts.tokens,
        batch.prompts.mask,
        key,
        prefix=batch.prefix,
        tool=batch.tool,
        endings=batch.endings,
        **vars(sampling),
    )


def update_once(
    model: Decoder,
    optimizer: optax.GradientTransformation,
    objective: Objective,
    state: TrainState,
    experience: Experience,
    *,
    base: Params | None = None,
    micro_batches: int = 1,
    packed: bool = False,
) -> tuple[TrainState, Metrics]:
    """One optimizer update from an experience; `base` is as in `Frozen`.

    Its gradient is summed by a scan over `micro_batches`, which divides the number of prompts; or,
    `packed`, as `shared_gradients` says.
    """
    totals = Totals.of(experience.rows.mask)
    if packed:
        gradients, metrics = shared_gradients(
            model,
            objective,
            state.params,
            experience,
            totals,
            base=base,
            micro_batches=micro_batches,
        )
        return apply_gradients(model, optimizer, state, gradients, metrics)

    def loss(params: Params, rows: Rows) -> tuple[jax.Array, Metrics]:
        part = Experience(rows, experience.prefix)
        return objective.loss(model, complete(params, base), part, totals)

    return descend(model, optimizer, state, loss, experience.rows, micro_batches=micro_batches)


def rollout_metrics(samples: Rollout) -> Metrics:
    """Scalars of a rollout: mean length, share that ended, and an estimate of the entropy.

    The entropy in nats per token is the mean of −log π over the sampled tokens.
    """
    tokens = Totals.of(samples.mask).tokens
    return {
        "completion_length": samples.mask.sum(axis=1).mean(),
        "finished": samples.finished.mean(),
        "entropy": -aggregate(samples.logps, samples.mask, normalizer=tokens),
        "tokens": tokens,
    }


def reward_metrics(batch: Batch, samples: Rollout, score: Score) -> Metrics:
    """The mean reward, outcome and terms, in all and by kind, and the reward's own metrics.

    Names are `reward`, `reward_KIND`, `outcome`, and `terms/NAME` and `terms/NAME/KIND`; NaN for a
    kind that does not occur.
    """
    outcome = score.rewards if score.outcome is None else score.outcome
    metrics = {"reward": score.rewards.mean(), "outcome": outcome.mean()}
    metrics |= {f"terms/{name}": values.mean() for name, values in score.terms.items()}
    if batch.kind is not None:
        kind = of_rows(batch.kind, samples)
        for index, name in enumerate(KINDS):
            of_kind = lambda values: mean_where(values.reshape(-1), kind == index)  # noqa: B023, E731
            metrics[f"reward_{name}"] = of_kind(score.rewards)
            metrics |= {f"terms/{term}/{name}": of_kind(x) for term, x in score.terms.items()}
    return metrics | score.metrics
