"""Runs the cases with the API of commit f049777; `compare.py` starts it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from cases import (
    CRITIC_LEARNING_RATE,
    GRADIENT_RATE,
    LEARNING_RATE,
    MESH,
    PREFIX,
    RULES,
    SAMPLES,
    SEED,
    SHAPE,
    STEPS,
    STOP_TOKENS,
    TEMPERATURE,
    WELL_FORMED,
    Case,
)
from common import (
    Arrays,
    asked,
    below,
    critic_head,
    even_share,
    flat,
    gradient,
    learner_weights,
    other_weights,
    score_texts,
    start_weights,
    stop_ids,
    tokenizer,
    work,
)
from flax import traverse_util
from jaxalign.training.alphaalign import PromptFacts, alphaalign_reward, make_reward_params
from jaxalign.training.ascl import ascl_reward
from jaxalign.training.gradients import Metrics
from jaxalign.training.scorers import score_on_host
from jaxalign.training.split import make_split_step
from jaxalign.training.state import TrainState, init_state
from jaxalign.training.step import (
    Algorithm,
    Batch,
    InverseFrequency,
    Score,
    advantages,
    make_step,
    rollout_metrics,
    update,
)

from jaxalign.data.prompts import KINDS, Prompt
from jaxalign.models import ModelConfig, Transformer
from jaxalign.models.layout import parameter_shardings
from jaxalign.models.sharding import make_mesh, to_devices
from jaxalign.rewards import safety_verifiers
from jaxalign.sampling import Rollout, Temperature, consultation


def run(case: Case, given: Arrays | None) -> Arrays:
    """Three steps of training, and one update on the rollout that `given` holds.

    Args:
      case: which.
      given: what the other side wrote; None learns from its own first rollout.
    """
    words = tokenizer()
    mesh = make_mesh(**MESH) if case.devices > 1 else None
    model = Transformer(ModelConfig(**SHAPE), dtype=jnp.float32, mesh=mesh)
    setup = Setup(case, words, model, algorithm_of(case, words), reward_of(case, model))
    arrays = train(setup)
    return arrays | learn_once(setup, arrays if given is None else given)


@dataclasses.dataclass(frozen=True)
class Setup:
    """What both parts of a case run with."""

    case: Case
    words: Any
    model: Transformer
    algorithm: Algorithm
    reward: Any

    def place(self, weights: Any) -> Any:
        """Parameters on the device, or on the mesh as they are kept there."""
        if self.model.mesh is None:
            return jax.tree.map(jnp.asarray, weights)
        shardings = parameter_shardings(self.model.config, self.model.mesh)
        return jax.device_put(weights, traverse_util.unflatten_dict(shardings, sep="/"))

    def constants(self) -> tuple[Any, Any]:
        """What the reward needs, and the reference of the KL."""
        recipe, start = self.case.recipe, self.place(start_weights())
        verifiers = safety_verifiers(self.words, pattern=WELL_FORMED)
        scorer = start if recipe.helpfulness else None
        references = {"start": lambda: start, "other": lambda: self.place(other_weights())}
        reference = references[recipe.reference]() if recipe.reference else None
        return make_reward_params(verifiers, scorer, jnp.float32), reference

    def batch(self, step: int) -> Batch:
        """The batch of a step, on the devices."""
        given, mesh, recipe = asked(step), self.model.mesh, self.case.recipe
        questions = (given.questions, given.question_mask)
        if not recipe.helpfulness:
            questions = tuple(x[:0] for x in questions)
        facts = None if recipe.reward == "even" else PromptFacts(given.kinds, *questions)
        rows = (given.prompts, given.prompt_mask, facts)
        prompts, mask, extras = to_devices(rows, mesh, rows=True)
        tool = None
        if recipe.reward == "ascl":
            tags = {"call_tags": ("[", "]"), "answer_tags": ("(", ")")}
            tool = to_devices(consultation(RULES, self.words, max_calls=2, **tags), mesh)
        prefix = to_devices(jnp.asarray(PREFIX, jnp.int32), mesh)
        return Batch(prompts, mask, prefix, extras, tool)

    def complete(self, step: int, batch: Batch, samples: Rollout) -> Batch:
        """The split path's part on the host."""
        kind, mesh = self.case.recipe.host, self.model.mesh
        if kind == "texts":
            return score_on_host(score_texts, self.words, prompts_at, mesh)(step, batch, samples)
        host = jax.device_get(samples)
        if kind == "even":
            shares = even_share(host.tokens, host.mask)
            return dataclasses.replace(batch, extras=to_devices(shares, mesh, rows=True))
        extras = to_devices(jax.device_get(batch.extras), mesh, rows=True)
        return dataclasses.replace(batch, extras=extras)


def prompts_at(step: int) -> list[Prompt]:
    """The prompts of a step in words."""
    given = asked(step)
    pairs = zip(given.texts, given.kinds, strict=True)
    return [Prompt(text, text, KINDS[kind], "other") for text, kind in pairs]


def algorithm_of(case: Case, words: Any) -> Algorithm:
    """The constants of a case's steps."""
    recipe = case.recipe
    return Algorithm(
        samples_per_prompt=SAMPLES,
        max_new_tokens=recipe.max_new_tokens,
        stop=stop_ids(words, STOP_TOKENS),
        method=Temperature(TEMPERATURE),
        inverse_frequency=None if recipe.ifpo is None else InverseFrequency(**recipe.ifpo),
        micro_batches=case.micro_batches,
        **recipe.settings,
    )


def reward_of(case: Case, model: Transformer) -> Any:
    """The reward function of a case."""
    recipe = case.recipe
    if recipe.reward == "even":
        return even_reward
    if recipe.reward == "ascl":
        return ascl_reward(model, balance=recipe.balance)
    return alphaalign_reward(model, helpfulness_weight=recipe.helpfulness, balance=recipe.balance)


def even_reward(reward_params: Any, batch: Batch, samples: Rollout) -> Score:
    """The share of even tokens, from the host if it is in the batch."""
    shares = batch.extras
    if shares is None:
        even = ((samples.tokens % 2 == 0) & samples.mask).sum(axis=1)
        shares = even / jnp.maximum(samples.mask.sum(axis=1), 1)
    return Score(shares.reshape(batch.prompts.shape[0], -1), {}, {})


def train(setup: Setup) -> Arrays:
    """Steps of the case's path by SGD: samples, rewards and metrics of each, and where they end."""
    optimizer, critic = optax.sgd(LEARNING_RATE), None
    if setup.algorithm.baseline == "critic":
        critic = optax.sgd(CRITIC_LEARNING_RATE)
    parts = (setup.model, optimizer, setup.algorithm, setup.reward)
    if setup.case.path == "fused":
        step = make_step(*parts, critic)
    else:
        step = make_split_step(*parts, setup.complete, critic)
    state = init_state(setup.place(start_weights()), optimizer, critic)
    reward_params, reference = setup.constants()
    arrays: Arrays = {}
    for number in range(STEPS):
        batch, key = setup.batch(number), jax.random.key(SEED)
        state, result = step(state, batch, key, reward_params, reference)
        arrays |= flat(f"samples/{number}", vars(result.samples))
        arrays |= flat(f"steps/{number}/metrics", result.metrics)
        arrays |= flat(f"steps/{number}/rewards", result.score.rewards)
        arrays |= flat(f"steps/{number}/details", result.score.details)
    arrays |= flat("parameters/policy", state.params)
    if state.critic is not None:
        arrays |= flat("parameters/critic", state.critic.params)
    return arrays


def learn_once(setup: Setup, given: Arrays) -> Arrays:
    """One update on a given rollout and its rewards: metrics and gradients.

    The policy is not the one that sampled, and a critic has a head that says something. The rewards
    that this side finds for the rollout are written too; the update takes those that are given.
    """
    optimizer = optax.sgd(GRADIENT_RATE)
    critic = optimizer if setup.algorithm.baseline == "critic" else None
    algorithm = dataclasses.replace(setup.algorithm, epochs=1, minibatches=1)
    mesh = setup.model.mesh
    samples = Rollout(**to_devices(below("samples/0", given), mesh, rows=True))
    rewards = to_devices(given["steps/0/rewards"], mesh, rows=True)
    batch = setup.batch(0)
    if setup.case.path == "split":
        batch = setup.complete(0, batch, samples)
    weights = learner_weights()
    state = init_state(setup.place(weights), optimizer, critic)
    if state.critic is not None:
        head = jax.device_put(critic_head(), state.critic.params["score"]["kernel"].sharding)
        params = state.critic.params | {"score": {"kernel": head}}
        critic_state = dataclasses.replace(state.critic, params=params)
        state = dataclasses.replace(state, critic=critic_state)

    @jax.jit
    def learn(
        state: TrainState,
        batch: Batch,
        samples: Rollout,
        rewards: jax.Array,
        reward_params: Any,
        reference: Any,
    ) -> tuple[TrainState, Score, Metrics]:
        scored = setup.reward(reward_params, batch, samples)
        advantage = advantages(algorithm, rewards, samples.mode.reshape(rewards.shape))
        parts = (setup.model, optimizer, algorithm, state, batch, samples, advantage, reference)
        state, metrics = update(*parts, critic_optimizer=critic)
        metrics |= rollout_metrics(samples) | {"reward": scored.rewards.mean()} | scored.metrics
        return state, scored, metrics

    after, scored, metrics = learn(state, batch, samples, rewards, *setup.constants())
    arrays = flat("fixed/metrics", metrics) | flat("fixed/details", scored.details)
    arrays |= flat("fixed/rewards", scored.rewards)
    arrays |= gradient("gradients/policy", weights, after.params, GRADIENT_RATE)
    if state.critic is not None and after.critic is not None:
        theirs = jax.device_get(state.critic.params)
        arrays |= gradient("gradients/critic", theirs, after.critic.params, GRADIENT_RATE)
    return arrays


if __name__ == "__main__":
    work(run)
