"""One reinforcement-learning step: sample → reward → advantage → loss → update.

`rollout`, `score` and `update` are pure functions. `make_step` composes them under one `jax.jit`;
`jaxalign.engine.split` leaves it after the rollout, for rewards on the host. Same numbers from
both.

One argument, `Algorithm.baseline`, chooses between GRPO, RLOO, REINFORCE++, a baseline of ours, and
PPO. PPO's critic has a trunk of its own, which starts as the policy's, and a head that starts at 0.
(A trunk that both share is left out: it saves a pass, and ties the policy to the critic's errors.)
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxalign.engine.algorithm import Algorithm, InverseFrequency, RewardFn
from jaxalign.engine.critic import Estimate, critic_loss, estimate_advantages
from jaxalign.engine.epochs import update_repeatedly
from jaxalign.engine.gradients import accumulate, apply_gradients, map_parts
from jaxalign.engine.state import TrainState
from jaxalign.losses import (
    aggregate,
    batch_advantages,
    clip_fraction,
    clipped_surrogate,
    denominator,
    group_advantages,
    inverse_frequency_advantages,
    kl_divergence,
    leave_one_out_advantages,
    mode_weights,
    shrinkage_advantages,
)
from jaxalign.models.completion import completion_logps
from jaxalign.models.transformer import Params, Transformer
from jaxalign.models.values import completion_values, critic_of
from jaxalign.records import Batch, Metrics, Rollout, Score
from jaxalign.sampling import sample

__all__ = [
    "Algorithm",
    "Batch",
    "InverseFrequency",
    "RewardFn",
    "Score",
    "StepFn",
    "StepResult",
    "advantages",
    "learn",
    "make_step",
    "policy_loss",
    "rollout",
    "rollout_metrics",
    "score",
    "update",
]


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

    With a critic they are the rewards themselves, to which `update` holds its values.

    Args:
      algorithm: constants.
      rewards: `[N, G]`.
      modes: `[N, G]` int32, as in `Rollout.mode`; without IFPO they do not matter.

    Returns:
      `[B]` float32.

    Raises:
      ValueError: IFPO with a critic, or its form "baseline" with another baseline than "group".
    """
    chex.assert_rank([rewards, modes], 2)
    scale, ifpo = algorithm.scale_advantages, algorithm.inverse_frequency
    if algorithm.baseline == "critic":
        if ifpo is not None:
            raise ValueError("IFPO rebalances advantages of samples; a critic's are of tokens")
        return jnp.asarray(rewards, jnp.float32).reshape(-1)
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
        "leave_one_out": lambda rewards, scale: leave_one_out_advantages(rewards),
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
    """Rewards of a rollout and the `advantages` `[B]` that follow from them."""
    scored = reward(reward_params, batch, samples)
    modes = samples.mode.reshape(scored.rewards.shape)
    return scored, advantages(algorithm, scored.rewards, modes)


def _logps(
    model: Transformer, algorithm: Algorithm, params: Params, batch: Batch, samples: Rollout
) -> jax.Array:
    return completion_logps(
        model,
        params,
        batch.prompts,
        batch.prompt_mask,
        samples.tokens,
        samples.present,
        prefix=batch.prefix,
        temperature=algorithm.method.temperature,
    )


def _values(critic: Transformer, params: Params, batch: Batch, samples: Rollout) -> jax.Array:
    return completion_values(
        critic,
        params,
        batch.prompts,
        batch.prompt_mask,
        samples.tokens,
        samples.present,
        prefix=batch.prefix,
    )


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
      advantage: `[B']`, or `[B', T]`.
      reference_logps: `[B', T]`, or None where no KL is asked for.
      normalizer: scalar from `jaxalign.losses.denominator` over the whole batch.
      tokens: scalar, trained tokens of the whole batch, for the metrics.

    Returns:
      the scalar loss and metrics, whose sums over micro-batches are the batch's.
    """
    mask = samples.mask
    logps = _logps(model, algorithm, params, batch, samples)
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
    *,
    critic_optimizer: optax.GradientTransformation | None = None,
    key: jax.Array | None = None,
) -> tuple[TrainState, Metrics]:
    """The updates from one rollout: epochs × minibatches of them, by default one.

    Gradients are summed over micro-batches by a scan, minibatches are another one. A gradient or a
    change that is not finite changes nothing but the counter `skipped`.

    With a critic, its values before the first update make the advantages per token of all of them
    (`jaxalign.engine.critic`), and each update is one of the policy and one of the critic.

    Args:
      model: the policy.
      optimizer: an optax transformation.
      algorithm: constants.
      state: before the update.
      batch: N prompts.
      samples: their B = N·G completions.
      advantage: `[B]` from `score`.
      reference: frozen parameters; needed where `kl_coefficient` is not 0, and only there.
      critic_optimizer: needed, as a critic in the state, for the baseline "critic", and only there.
      key: the step's, which orders the minibatches; not needed for one.

    Returns:
      the next state and scalars to log.

    Raises:
      ValueError: N is not a multiple of `minibatches` × `micro_batches`, or reference, critic or
        key is missing or not needed.
    """
    if (algorithm.kl_coefficient != 0) != (reference is not None):
        raise ValueError("pass a reference exactly when kl_coefficient is not 0")
    if {algorithm.baseline == "critic"} != {
        state.critic is not None,
        critic_optimizer is not None,
    }:
        raise ValueError('pass a critic and its optimizer exactly when baseline is "critic"')
    per_prompt = dataclasses.replace(batch, prefix=None, extras=None, tool=None)
    estimate: Estimate | None = None
    measured: Metrics = {}
    if state.critic is not None:
        critic, params = critic_of(model), state.critic.params
        values = map_parts(
            lambda part: _values(critic, params, _with_prefix(part[0], batch), part[1]),
            (per_prompt, samples),
            algorithm.minibatches * algorithm.micro_batches,
        )
        estimate, measured = estimate_advantages(
            advantage,
            values,
            samples.mask,
            discount=algorithm.discount,
            lambda_=algorithm.gae_lambda,
            scale=algorithm.scale_advantages,
        )
        advantage = estimate.advantages
    if key is not None:
        key = jax.random.fold_in(key, algorithm.max_new_tokens)  # sampling takes those below
    after, metrics = update_repeatedly(
        functools.partial(
            _update_once, model, optimizer, critic_optimizer, algorithm, batch, reference
        ),
        state,
        (per_prompt, samples, advantage, estimate),
        key,
        prompts=batch.prompts.shape[0],
        epochs=algorithm.epochs,
        minibatches=algorithm.minibatches,
    )
    return dataclasses.replace(after, step=state.step + 1), metrics | measured


_Experience = tuple[Batch, Rollout, jax.Array, Estimate | None]
"""Prompts, completions, advantages, and what a critic made of them."""


def _with_prefix(part: Batch, batch: Batch) -> Batch:
    """Some of a batch's prompts, with what they share."""
    return dataclasses.replace(part, prefix=batch.prefix)


def _update_once(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    critic_optimizer: optax.GradientTransformation | None,
    algorithm: Algorithm,
    batch: Batch,
    reference: Params | None,
    state: TrainState,
    minibatch: _Experience,
) -> tuple[TrainState, Metrics]:
    """One optimizer update of the policy, and of the critic where there is one."""
    mask = minibatch[1].mask
    normalizer = denominator(mask, mode=algorithm.aggregation)
    tokens = jnp.maximum(denominator(mask), 1.0)

    def gradient(part: _Experience) -> tuple[tuple[Params, Params | None], Metrics]:
        prompts, samples, advantage, estimate = part
        prompts = _with_prefix(prompts, batch)
        reference_logps = None
        if reference is not None:
            reference_logps = _logps(model, algorithm, reference, prompts, samples)

        def loss(params: Params) -> tuple[jax.Array, Metrics]:
            value, metrics = policy_loss(
                model,
                algorithm,
                params,
                prompts,
                samples,
                advantage,
                reference_logps,
                normalizer,
                tokens,
            )
            return value, metrics | {"loss": value}

        of_policy, metrics = jax.grad(loss, has_aux=True)(state.params)
        if state.critic is None or estimate is None:
            return (of_policy, None), metrics

        def error(params: Params) -> tuple[jax.Array, Metrics]:
            values = _values(critic_of(model), params, prompts, samples)
            return critic_loss(
                values, estimate, samples.mask, clip=algorithm.value_clip, normalizer=tokens
            )

        of_critic, more = jax.grad(error, has_aux=True)(state.critic.params)
        return (of_policy, of_critic), metrics | more

    gradients, metrics = accumulate(gradient, minibatch, algorithm.micro_batches)
    of_policy, of_critic = gradients
    state, applied = apply_gradients(
        model, optimizer, state, of_policy, critic_optimizer, of_critic
    )
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


def learn(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    algorithm: Algorithm,
    reward: RewardFn,
    critic_optimizer: optax.GradientTransformation | None,
    state: TrainState,
    batch: Batch,
    samples: Rollout,
    key: jax.Array,
    reward_params: Any,
    reference: Params | None = None,
) -> tuple[TrainState, StepResult]:
    """What a step does with its rollout: `score`, `update`, and the scalars to log.

    Args:
      model: the policy.
      optimizer: its optimizer.
      algorithm: constants.
      reward: what completions are worth.
      critic_optimizer: as for `update`.
      state: before the step.
      batch: N prompts.
      samples: their completions.
      key: the step's.
      reward_params: arrays that the reward needs.
      reference: as for `update`.
    """
    scored, advantage = score(reward, algorithm, reward_params, batch, samples)
    state, metrics = update(
        model,
        optimizer,
        algorithm,
        state,
        batch,
        samples,
        advantage,
        reference,
        critic_optimizer=critic_optimizer,
        key=key,
    )
    metrics |= rollout_metrics(samples) | {"reward": scored.rewards.mean()} | scored.metrics
    return state, StepResult(metrics, samples, scored)


def make_step(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    algorithm: Algorithm,
    reward: RewardFn,
    critic_optimizer: optax.GradientTransformation | None = None,
) -> StepFn:
    """Composes the whole step into one compiled program.

    Args:
      model: the policy.
      optimizer: its optimizer.
      algorithm: constants.
      reward: what completions are worth.
      critic_optimizer: of PPO's critic; needed for the baseline "critic", and only there.

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
        return learn(
            model,
            optimizer,
            algorithm,
            reward,
            critic_optimizer,
            state,
            batch,
            samples,
            key,
            reward_params,
            reference,
        )

    return jax.jit(step, donate_argnums=0)
