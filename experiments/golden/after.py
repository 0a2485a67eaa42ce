"""Runs the cases with the API of the working tree; `compare.py` starts it."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from cases import (
    CRITIC_LEARNING_RATE,
    GRADIENT_RATE,
    LEARNING_RATE,
    MESH,
    PREFIX,
    PROMPTS,
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

from jaxalign.data.prompts import KINDS, Prompt
from jaxalign.engine.baselines import Group, InverseFrequency, LeaveOneOut, Shrinkage, WholeBatch
from jaxalign.engine.objective import GRPO
from jaxalign.engine.optimizer import skip_nonfinite, with_critic_optimizer
from jaxalign.engine.penalties import K2
from jaxalign.engine.ppo import PPO, with_critic
from jaxalign.engine.reductions import SequenceMean, TokenMean
from jaxalign.engine.state import init_state
from jaxalign.engine.step import (
    Frozen,
    Sampling,
    Updates,
    make_step,
    reward_metrics,
    rollout_metrics,
    update_once,
)
from jaxalign.engine.surrogates import Clipped
from jaxalign.host.processes import fetch
from jaxalign.methods.alphaalign.reward import alphaalign_reward
from jaxalign.methods.alphaalign.scorers import on_host
from jaxalign.methods.ascl.consulting import Consulting
from jaxalign.models import ModelConfig, Transformer
from jaxalign.models.layout import tree_shardings
from jaxalign.models.sharding import make_mesh, to_devices
from jaxalign.records import Batch, Prompts, Rollout
from jaxalign.rewards import (
    Likelihood,
    PromptFacts,
    Safety,
    device_reward,
    host_reward,
    safety_verifiers,
)
from jaxalign.rewards.terms import resolve_on_host
from jaxalign.sampling import Temperature, consultation

BASELINES = {
    "group": Group(),
    "shrinkage": Shrinkage(),
    "leave_one_out": LeaveOneOut(),
    "batch": WholeBatch(),
}
AGGREGATIONS = {"token_mean": TokenMean(), "sequence_mean": SequenceMean()}


def run(case: Case, given: Arrays | None) -> Arrays:
    """Three steps of training, and one update on the rollout that `given` holds.

    Args:
      case: which.
      given: what the other side wrote; None learns from its own first rollout.
    """
    mesh = make_mesh(**MESH) if case.devices > 1 else None
    model = Transformer(ModelConfig(**SHAPE), dtype=jnp.float32, mesh=mesh)
    setup = Setup(case, tokenizer(), model, objective_of(case))
    arrays = train(setup)
    return arrays | learn_once(setup, arrays if given is None else given)


@dataclasses.dataclass(frozen=True)
class Setup:
    """What both parts of a case run with."""

    case: Case
    words: Any
    model: Transformer
    objective: Any

    def place(self, weights: Any) -> Any:
        """Parameters on the device, or on the mesh as they are kept there."""
        if self.model.mesh is None:
            return jax.tree.map(jnp.asarray, weights)
        return jax.device_put(weights, tree_shardings(self.model, weights))

    def trained(self, weights: Any) -> Any:
        """What is trained, with a critic if the objective has one."""
        params = self.place(weights)
        return with_critic(self.model, params) if isinstance(self.objective, PPO) else params

    def optimizer(self, policy: float, critic: float) -> optax.GradientTransformation:
        """SGD at these rates."""
        optimizer = optax.sgd(policy)
        if isinstance(self.objective, PPO):
            optimizer = with_critic_optimizer(optimizer, optax.sgd(critic))
        return skip_nonfinite(optimizer)

    def frozen(self) -> Frozen:
        """The reward, and the reference of the KL."""
        start = self.place(start_weights())
        references = {"start": lambda: start, "other": lambda: self.place(other_weights())}
        name = self.case.recipe.reference
        return Frozen(self.reward(start), references[name]() if name else None)

    def reward(self, start: Any) -> Any:
        """What completions are worth."""
        recipe, split = self.case.recipe, self.case.path == "split"
        if recipe.reward == "even":
            return host_reward(even_on_host) if split else device_reward(even_on_device)
        verifiers = safety_verifiers(self.words, pattern=WELL_FORMED)
        if recipe.reward == "ascl":
            return Consulting(Safety(verifiers, balance=recipe.balance))
        scorer: Any = None
        if recipe.helpfulness:
            scorer = Likelihood.of(self.model, start)
        if recipe.helpfulness and split and recipe.host == "texts":
            scorer = on_host(score_texts, self.words, prompts_in_words()).scorer(start)
        return alphaalign_reward(
            verifiers, scorer, balance=recipe.balance, helpfulness_weight=recipe.helpfulness
        )

    def batch(self, step: int) -> Batch:
        """The batch of a step, on the devices."""
        given, mesh, recipe = asked(step), self.model.mesh, self.case.recipe
        facts = None
        if recipe.reward != "even":
            index = np.arange(PROMPTS, dtype=np.int32) + step * PROMPTS
            facts = PromptFacts(index, given.questions, given.question_mask)
        rows = (Prompts(given.prompts, given.prompt_mask), given.kinds, facts)
        prompts, kind, facts = to_devices(rows, mesh, rows=True)
        tool = None
        if recipe.reward == "ascl":
            tags = {"call_tags": ("[", "]"), "answer_tags": ("(", ")")}
            tool = to_devices(consultation(RULES, self.words, max_calls=2, **tags), mesh)
        prefix = to_devices(jnp.asarray(PREFIX, jnp.int32), mesh)
        return Batch(prompts, kind, facts, prefix, tool)


def prompts_in_words() -> list[Prompt]:
    """The prompts of all steps."""
    prompts = []
    for given in map(asked, range(STEPS)):
        pairs = zip(given.texts, given.kinds, strict=True)
        prompts += [Prompt(text, text, KINDS[kind], "other") for text, kind in pairs]
    return prompts


def objective_of(case: Case) -> Any:
    """The objective of a case."""
    recipe = case.recipe
    settings = recipe.settings
    shared = {
        "surrogate": Clipped(high=settings.get("clip_high", 0.2)),
        "kl": K2(settings["kl_coefficient"]) if "kl_coefficient" in settings else None,
        "aggregation": AGGREGATIONS[settings.get("aggregation", "token_mean")],
    }
    if settings["baseline"] == "critic":
        return PPO(**shared, value_clip=settings["value_clip"])
    adjust = None if recipe.ifpo is None else InverseFrequency(**recipe.ifpo)
    return GRPO(BASELINES[settings["baseline"]], **shared, adjust=adjust)


def even_on_device(batch: Batch, samples: Rollout) -> jax.Array:
    """The share of even tokens."""
    even = ((samples.tokens % 2 == 0) & samples.mask).sum(axis=1)
    return even / jnp.maximum(samples.mask.sum(axis=1), 1)


def even_on_host(batch: Batch, samples: Rollout) -> np.ndarray:
    """The share of even tokens."""
    return even_share(np.asarray(samples.tokens), np.asarray(samples.mask))


def train(setup: Setup) -> Arrays:
    """Steps of the case's path by SGD: samples, rewards and metrics of each, and where they end."""
    case = setup.case
    settings = case.recipe.settings
    optimizer = setup.optimizer(LEARNING_RATE, CRITIC_LEARNING_RATE)
    stop = stop_ids(setup.words, STOP_TOKENS)
    step = make_step(
        setup.model,
        optimizer,
        sampling=Sampling(SAMPLES, case.recipe.max_new_tokens, stop, Temperature(TEMPERATURE)),
        objective=setup.objective,
        updates=Updates(
            settings.get("epochs", 1), settings.get("minibatches", 1), case.micro_batches
        ),
    )
    state, frozen = init_state(setup.trained(start_weights()), optimizer), setup.frozen()
    arrays: Arrays = {}
    for number in range(STEPS):
        batch, key = setup.batch(number), jax.random.key(SEED)
        if case.path == "split" and case.recipe.host == "pass":
            samples = step.rollout(state, batch, key)
            fetch(samples)
            state, result = step.learn(state, batch, samples, key, frozen)
        else:
            state, result = step(state, batch, key, frozen)
        arrays |= flat(f"samples/{number}", below_names(result.samples))
        arrays |= flat(f"steps/{number}/metrics", result.metrics)
        arrays |= flat(f"steps/{number}/rewards", result.score.rewards)
        arrays |= flat(f"steps/{number}/details", result.score.details)
    return arrays | parts("parameters", state.params)


def below_names(samples: Rollout) -> dict[str, Any]:
    """The arrays that both sides have."""
    ours = ("prompt_of_row", "temperature")
    return {name: x for name, x in vars(samples).items() if name not in ours and x is not None}


def parts(prefix: str, params: Any) -> Arrays:
    """Policy and critic under the names that both sides have."""
    if params.keys() != {"policy", "critic"}:
        return flat(f"{prefix}/policy", params)
    critic = params["critic"]["trunk"] | {"score": {"kernel": params["critic"]["head"]}}
    return flat(f"{prefix}/policy", params["policy"]) | flat(f"{prefix}/critic", critic)


def learn_once(setup: Setup, given: Arrays) -> Arrays:
    """One update on a given rollout and its rewards: metrics and gradients.

    The policy is not the one that sampled, and a critic has a head that says something. The rewards
    that this side finds for the rollout are written too; the update takes those that are given.
    """
    optimizer, mesh = setup.optimizer(GRADIENT_RATE, GRADIENT_RATE), setup.model.mesh
    samples = to_devices(Rollout(**below("samples/0", given)), mesh, rows=True)
    samples = dataclasses.replace(
        samples,
        prompt_of_row=jnp.repeat(jnp.arange(PROMPTS), SAMPLES),
        temperature=TEMPERATURE,
    )
    rewards = to_devices(given["steps/0/rewards"], mesh, rows=True)
    batch, frozen = setup.batch(0), setup.frozen()
    seen_batch, seen_samples = fetch((batch, samples))
    place = functools.partial(to_devices, mesh=mesh, rows=True)
    reward = resolve_on_host(frozen.reward, seen_batch, seen_samples, place)
    params = setup.trained(learner_weights())
    if isinstance(setup.objective, PPO):
        params["critic"]["head"] = to_devices(critic_head(), mesh)
    state = init_state(params, optimizer)

    @jax.jit
    def learn(state: Any, batch: Batch, samples: Rollout, rewards: jax.Array, frozen: Frozen):
        scored = frozen.reward(batch, samples)
        experience, measured = setup.objective.experience(
            setup.model,
            state.params,
            batch,
            samples,
            scored._replace(rewards=rewards),
            base=frozen.base,
            parts=setup.case.micro_batches,
        )
        after, metrics = update_once(
            setup.model,
            optimizer,
            setup.objective,
            state,
            experience,
            micro_batches=setup.case.micro_batches,
        )
        metrics |= measured | rollout_metrics(samples) | reward_metrics(batch, samples, scored)
        details = scored.details | {"reward": scored.rewards.reshape(-1)}
        return after, scored._replace(details=details), metrics

    after, scored, metrics = learn(state, batch, samples, rewards, Frozen(reward, frozen.base))
    arrays = flat("fixed/metrics", metrics) | flat("fixed/details", scored.details)
    arrays |= flat("fixed/rewards", scored.rewards)
    start, end = parts("gradients", params), parts("gradients", after.params)
    for name in end:
        arrays |= gradient(name, start[name], end[name], GRADIENT_RATE)
    return arrays


if __name__ == "__main__":
    work(run)
