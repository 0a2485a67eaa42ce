"""Runs tunix's own functions on `arrays`, with a model that returns the arrays' logits."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from libraries import arrays
from tunix.rl import algo_core, common, function_registry
from tunix.rl.grpo.dapo_learner import DAPOConfig
from tunix.rl.grpo.drgrpo_learner import DrGRPOConfig
from tunix.rl.grpo.grpo_learner import GRPOConfig
from tunix.rl.ppo.ppo_learner import PPOConfig
from tunix.sft import peft_trainer
from tunix.sft.dpo import dpo_trainer


class Logits(nnx.Module):
    """Returns its parameter, whatever it is asked; position t predicts token t + 1."""

    def __init__(self, logits: np.ndarray):
        last = np.zeros_like(logits[:, :1])
        self.logits = nnx.Param(jnp.concatenate([logits, last], axis=1))

    def __call__(self, *_: Any, **__: Any) -> tuple[jax.Array, None]:
        return self.logits[...], None


def examples(**fields: Any) -> common.TrainExample:
    """One batch whose prompts are one token long."""
    given: dict[str, Any] = {
        "prompt_ids": jnp.ones((arrays.B, 1), jnp.int32),
        "prompt_mask": jnp.ones((arrays.B, 1), jnp.int32),
        "completion_ids": jnp.asarray(arrays.tokens),
        "completion_mask": jnp.asarray(arrays.mask),
        "advantages": jnp.asarray(arrays.advantages),
        "ref_per_token_logps": None,
        "old_per_token_logps": jnp.asarray(arrays.old_logp),
    }
    return common.TrainExample(**{**given, **fields})


def gradient_of(loss: Any, array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A loss of a `Logits` model and its gradient with respect to the parameter, less its end."""
    model = Logits(array)
    value, gradient = nnx.value_and_grad(lambda m: loss(m)[0])(model)
    return np.asarray(value), np.asarray(gradient.logits[...])[:, :-1]


def configured(setting: str) -> Any:
    names = [GRPOConfig, DAPOConfig, DrGRPOConfig, PPOConfig, dpo_trainer.DPOTrainingConfig]
    config = eval(setting, {c.__name__: c for c in names})
    if isinstance(config, GRPOConfig):
        config.temperature = 1.0  # which the learner sets
    return config


def advantages(_: str, setting: str) -> np.ndarray:
    name = configured(setting).advantage_estimator
    estimate = function_registry.get_advantage_estimator(name)
    got = estimate(rewards=arrays.rewards.reshape(-1), num_generations=arrays.G)
    return np.asarray(got).reshape(arrays.N, arrays.G)


def policy_loss(_: str, setting: str) -> tuple[np.ndarray, np.ndarray]:
    """The loss and its gradient with respect to the logits."""
    config = configured(setting)
    fields: dict[str, Any] = {}
    if getattr(config, "beta", None):
        fields["ref_per_token_logps"] = jnp.asarray(arrays.ref_logp)
    if isinstance(config, PPOConfig):
        fields["advantages"] = jnp.asarray(arrays.token_advantages)
        function = algo_core.ppo_policy_loss_fn
    else:
        function = algo_core.grpo_loss_fn
    example = examples(**fields)
    return gradient_of(lambda m: function(m, example, config, 0, 1), arrays.logits)


def value_loss(_: str, setting: str) -> tuple[np.ndarray, np.ndarray]:
    """The critic's loss and its gradient with respect to the values."""
    clip = configured(setting).clip_range_value
    example = examples()
    object.__setattr__(example, "old_values", jnp.asarray(arrays.old_values))
    object.__setattr__(example, "returns", jnp.asarray(arrays.returns))
    loss = lambda m: algo_core.ppo_value_loss_fn(m, example, clip, 0, 1)  # noqa: E731
    value, gradient = gradient_of(loss, arrays.values[..., None])
    return value, gradient[..., 0]


def generalized_advantages(_: str, setting: str) -> np.ndarray:
    """Whitened advantages, where trained."""
    config = configured(setting)
    whitened, _ = algo_core.compute_gae_advantages(
        jnp.asarray(arrays.rewards_per_token),
        jnp.asarray(arrays.values),
        jnp.asarray(arrays.mask),
        config.gamma,
        config.gae_lambda,
    )
    return np.asarray(whitened * arrays.mask)


def preference_loss(_: str, setting: str) -> tuple[np.ndarray, np.ndarray]:
    """The loss and its gradient with respect to the logits of three pairs of answers."""
    config = configured(setting)
    example = dpo_trainer.TrainExample(
        input_ids=jnp.concatenate([jnp.ones((arrays.B, 1), jnp.int32), arrays.tokens], axis=1),
        positions=jnp.zeros((arrays.B, arrays.T + 1), jnp.int32),
        attention_mask=jnp.ones((arrays.B, arrays.T + 1, arrays.T + 1), bool),
        ref_chosen_logps=jnp.asarray(arrays.ref_chosen_logp),
        ref_rejected_logps=jnp.asarray(arrays.ref_rejected_logp),
        completion_mask=jnp.asarray(arrays.pair_mask),
        logits_to_keep=arrays.T,
    )
    loss = lambda m: dpo_trainer.dpo_loss_fn(  # noqa: E731
        m, example, config.algorithm, config.beta, config.lambda_orpo, config.label_smoothing
    )
    return gradient_of(loss, arrays.logits)


def supervised_loss(_: str, setting: str) -> tuple[np.ndarray, np.ndarray]:
    """The loss of `PeftTrainer` and its gradient with respect to the logits."""
    loss = getattr(peft_trainer, setting)
    first = jnp.ones((arrays.B, 1), jnp.int32)
    tokens, mask = (
        jnp.concatenate([first, jnp.asarray(x)], axis=1) for x in (arrays.tokens, arrays.mask)
    )
    return gradient_of(lambda m: (loss(m, tokens, mask, tokens, mask),), arrays.logits)


def run(section: str, folder: str, setting: str) -> Any:
    """Value, or value and gradient, of a row of docs/losses.md."""
    return {
        "Advantages": advantages,
        "Policy loss": policy_loss,
        "Critic": generalized_advantages,
        "Value loss": value_loss,
        "Preferences": preference_loss,
        "Supervised": supervised_loss,
    }[section](folder, setting)
