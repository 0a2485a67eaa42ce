"""One reinforcement-learning step: sample → reward → advantage → loss → update.

`rollout`, `score` and `update` are pure functions. `make_step` composes them under one `jax.jit`; a
caller with rewards on the host jits and calls the same three apart. Same numbers from both.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxalign.losses import (
    aggregate,
    batch_advantages,
    clip_fraction,
    clipped_surrogate,
    denominator,
    group_advantages,
    inverse_frequency_advantages,
    kl_divergence,
    mode_weights,
    shrinkage_advantages,
)
from jaxalign.models.completion import completion_logps
from jaxalign.models.transformer import Params, Transformer
from jaxalign.sampling import Method, Rollout, Temperature, Tool, sample
from jaxalign.training.gradients import Metrics, accumulate, apply_gradients
from jaxalign.training.state import TrainState


@struct.dataclass
class Batch:
    """N prompts as arrays.

    Attributes:
      prompts: `[N, P]` int32.
      prompt_mask: `[N, P]` bool.
      prefix: `[P0]` int32, the tokens that open every prompt; may be empty, or None for none.
      extras: whatever the reward function needs to know of the prompts.
      tool: what a completion may call (`jaxalign.sampling.tools`); None for nothing.
    """

    prompts: jax.Array
    prompt_mask: jax.Array
    prefix: jax.Array | None = None
    extras: Any = None
    tool: Tool | None = None


class Score(NamedTuple):
    """What a reward function returns.

    Attributes:
      rewards: `[N, G]` float32.
      metrics: scalars to log.
      details: arrays `[B]` to write beside the transcripts.
    """

    rewards: jax.Array
    metrics: Metrics
    details: dict[str, jax.Array]


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


@dataclasses.dataclass(frozen=True)
class Algorithm:
    """The constants of a step; static under jit.

    Attributes:
      samples_per_prompt: G.
      max_new_tokens: T.
      stop: ids that end a completion.
      method: how tokens are drawn; its temperature is the policy's.
      baseline: "group" is GRPO's; "batch" spans all prompts of the step (REINFORCE++), under which
        "refuse everything" is not an absorbing state; "shrinkage" lies halfway: less noise, and a
        weaker push out of such a state.
      inverse_frequency: IFPO's rebalancing by `Rollout.mode`; None for none.
      scale_advantages: divide by the deviation.
      clip_low: ε below one of the clipped ratio.
      clip_high: ε above one.
      kl_coefficient: weight β of the KL to the reference in the loss, by the k2 estimator, which
        has the reverse KL's gradient on policy; 0 needs no reference model.
      aggregation: how per-token losses are reduced.
      micro_batches: parts of the prompts that the gradient is accumulated over; divides N.
    """

    samples_per_prompt: int
    max_new_tokens: int
    stop: tuple[int, ...]
    method: Method = Temperature(1.0)
    baseline: Literal["group", "batch", "shrinkage"] = "group"
    inverse_frequency: InverseFrequency | None = None
    scale_advantages: bool = True
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coefficient: float = 0.0
    aggregation: Literal["token_mean", "sequence_mean", "sequence_sum"] = "token_mean"
    micro_batches: int = 1


def rollout(
    model: Transformer, algorithm: Algorithm, params: Params, batch: Batch, key: jax.Array
) -> Rollout:
    """Samples G completions of each of the batch's prompts."""
    return sample(
        model,
        params,
        batch.prompts,
        batch.prompt_mask,
        key,
        samples_per_prompt=algorithm.samples_per_prompt,
        max_new_tokens=algorithm.max_new_tokens,
        method=algorithm.method,
        stop=algorithm.stop,
        prefix=batch.prefix,
        tool=batch.tool,
    )


def advantages(algorithm: Algorithm, rewards: jax.Array, modes: jax.Array) -> jax.Array:
    """Advantages by the algorithm's baseline, rebalanced by IFPO where it asks for it.

    With IFPO's weights w and the mean Ā of a prompt's advantages, which is 0 for "group",

        A_i + (w_i − 1)(A_i − Ā)

    Ā is the same for all samples of a prompt. Weighed like the rest it would move a prompt's modes
    towards ½ or away from it, by no merit of theirs. Leaving it alone is ours.

    Args:
      algorithm: constants.
      rewards: `[N, G]`.
      modes: `[N, G]` int32, as in `Rollout.mode`; without IFPO they do not matter.

    Returns:
      `[B]` float32.

    Raises:
      ValueError: IFPO's form "baseline" with another baseline than "group".
    """
    chex.assert_rank([rewards, modes], 2)
    scale, ifpo = algorithm.scale_advantages, algorithm.inverse_frequency
    if ifpo is not None and ifpo.form == "baseline":
        if algorithm.baseline != "group":
            raise ValueError(f"IFPO's baseline form excludes the baseline {algorithm.baseline!r}")
        return inverse_frequency_advantages(
            rewards,
            modes,
            num_modes=ifpo.num_modes,
            form="baseline",
            scope=ifpo.scope,
            max_weight=ifpo.max_weight,
            scale=scale,
        ).reshape(-1)
    functions: dict[str, Callable[..., jax.Array]] = {
        "group": group_advantages,
        "batch": batch_advantages,
        "shrinkage": shrinkage_advantages,
    }
    advantage = functions[algorithm.baseline](rewards, scale=scale)
    if ifpo is not None:
        weights = mode_weights(
            modes, num_modes=ifpo.num_modes, scope=ifpo.scope, max_weight=ifpo.max_weight
        )
        shared = 0.0 if algorithm.baseline == "group" else advantage.mean(axis=1, keepdims=True)
        advantage = advantage + (weights - 1.0) * (advantage - shared)
    return advantage.reshape(-1)


def score(
    reward: RewardFn, algorithm: Algorithm, reward_params: Any, batch: Batch, samples: Rollout
) -> tuple[Score, jax.Array]:
    """Rewards of a rollout and the advantages `[B]` that follow from them."""
    scored = reward(reward_params, batch, samples)
    modes = samples.mode.reshape(scored.rewards.shape)
    return scored, advantages(algorithm, scored.rewards, modes)


def policy_loss(
    model: Transformer,
    algorithm: Algorithm,
    params: Params,
    batch: Batch,
    samples: Rollout,
    advantage: jax.Array,
    reference_logps: jax.Array | None,
    normalizer: jax.Array,
    tokens: jax.Array,
) -> tuple[jax.Array, Metrics]:
    """Loss of one micro-batch, divided by the *global* batch's denominator.

        L = Σ_it m_it (l_it + β·KL_it) / normalizer

    with l the clipped surrogate of the ratio of training to sampling probabilities.

    Args:
      model: the policy.
      algorithm: constants.
      params: the policy's parameters, float32.
      batch: N' prompts.
      samples: their B' completions; `logps` are the old log-probabilities.
      advantage: `[B']`.
      reference_logps: `[B', T]`, or None where no KL is asked for.
      normalizer: scalar from `jaxalign.losses.denominator` over the whole batch.
      tokens: scalar, trained tokens of the whole batch, for the metrics.

    Returns:
      the scalar loss and metrics, whose sums over micro-batches are the batch's.
    """
    mask = samples.mask
    logps = completion_logps(
        model,
        params,
        batch.prompts,
        batch.prompt_mask,
        samples.tokens,
        samples.present,
        prefix=batch.prefix,
        temperature=algorithm.method.temperature,
    )
    low, high = algorithm.clip_low, algorithm.clip_high
    loss = clipped_surrogate(
        logps, samples.logps, advantage, mask=mask, clip_low=low, clip_high=high
    )
    gap = jnp.where(mask, jnp.abs(logps - samples.logps), 0.0)
    metrics = {"logp_gap": gap.sum() / tokens}
    metrics |= clip_fraction(
        logps, samples.logps, advantage, mask, clip_low=low, clip_high=high, normalizer=tokens
    )
    if reference_logps is not None:
        kl = kl_divergence(logps, reference_logps, mask=mask)
        loss = loss + algorithm.kl_coefficient * kl
        metrics["kl"] = aggregate(kl, mask, normalizer=tokens)
    return aggregate(loss, mask, mode=algorithm.aggregation, normalizer=normalizer), metrics


def update(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    algorithm: Algorithm,
    state: TrainState,
    batch: Batch,
    samples: Rollout,
    advantage: jax.Array,
    reference: Params | None = None,
) -> tuple[TrainState, Metrics]:
    """One optimizer update from one rollout; gradients are summed over micro-batches by a scan.

    A gradient or a change that is not finite changes nothing but the counter `skipped`.

    Args:
      model: the policy.
      optimizer: an optax transformation.
      algorithm: constants.
      state: before the update.
      batch: N prompts.
      samples: their B = N·G completions.
      advantage: `[B]`.
      reference: frozen parameters; needed where `kl_coefficient` is not 0, and only there.

    Returns:
      the next state and scalars to log.

    Raises:
      ValueError: N is not a multiple of `micro_batches`, or a reference is missing or not needed.
    """
    if (algorithm.kl_coefficient != 0) != (reference is not None):
        raise ValueError("pass a reference exactly when kl_coefficient is not 0")
    normalizer = denominator(samples.mask, mode=algorithm.aggregation)
    tokens = jnp.maximum(denominator(samples.mask), 1.0)

    def gradient(part: tuple[Batch, Rollout, jax.Array]) -> tuple[Params, Metrics]:
        part_batch, part_samples, part_advantage = part
        reference_logps = None
        if reference is not None:
            reference_logps = completion_logps(
                model,
                reference,
                part_batch.prompts,
                part_batch.prompt_mask,
                part_samples.tokens,
                part_samples.present,
                prefix=batch.prefix,
                temperature=algorithm.method.temperature,
            )

        def loss(params: Params) -> tuple[jax.Array, Metrics]:
            value, metrics = policy_loss(
                model,
                algorithm,
                params,
                dataclasses.replace(part_batch, prefix=batch.prefix),
                part_samples,
                part_advantage,
                reference_logps,
                normalizer,
                tokens,
            )
            return value, metrics | {"loss": value}

        return jax.grad(loss, has_aux=True)(state.params)

    per_prompt = dataclasses.replace(batch, prefix=None, extras=None, tool=None)
    gradients, metrics = accumulate(
        gradient, (per_prompt, samples, advantage), algorithm.micro_batches
    )
    state, applied = apply_gradients(model, optimizer, state, gradients)
    return state, metrics | applied


def rollout_metrics(samples: Rollout) -> Metrics:
    """Scalars of a rollout: mean length, share that ended, and an estimate of the entropy.

    The entropy in nats per token is the mean of −log π over the sampled tokens.
    """
    tokens = jnp.maximum(denominator(samples.mask), 1.0)
    return {
        "completion_length": samples.mask.sum(axis=1).mean(),
        "finished": samples.finished.mean(),
        "entropy": -aggregate(samples.logps, samples.mask, normalizer=tokens),
        "tokens": tokens,
    }


class StepResult(NamedTuple):
    """What a step shows besides the next state: scalars, transcripts and their scores."""

    metrics: Metrics
    samples: Rollout
    score: Score


StepFn = Callable[..., tuple[TrainState, StepResult]]


def make_step(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    algorithm: Algorithm,
    reward: RewardFn,
) -> StepFn:
    """Composes the whole step into one compiled program.

    Returns:
      `step(state, batch, root_key, reward_params, reference=None) -> (state, StepResult)`, jitted,
      the state donated. The step's key is `fold_in(root_key, state.step)`.
    """

    def step(
        state: TrainState,
        batch: Batch,
        root_key: jax.Array,
        reward_params: Any,
        reference: Params | None = None,
    ) -> tuple[TrainState, StepResult]:
        key = jax.random.fold_in(root_key, state.step)
        samples = rollout(model, algorithm, state.params, batch, key)
        scored, advantage = score(reward, algorithm, reward_params, batch, samples)
        state, metrics = update(
            model, optimizer, algorithm, state, batch, samples, advantage, reference
        )
        metrics |= rollout_metrics(samples) | {"reward": scored.rewards.mean()} | scored.metrics
        return state, StepResult(metrics, samples, scored)

    return jax.jit(step, donate_argnums=0)
