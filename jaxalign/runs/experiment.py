"""What surrounds the training of every experiment: errors, evaluations, the run folder."""

import dataclasses
import datetime
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxalign.answers.completing import stop_tokens
from jaxalign.data.prompts import KINDS, Prompt, prompts_digest
from jaxalign.data.templates import Template
from jaxalign.engine.optimizer import (
    learning_rates,
    skip_nonfinite,
    skipped_updates,
    with_critic_optimizer,
)
from jaxalign.engine.ppo import PPO, with_critic
from jaxalign.engine.state import TrainState, init_state
from jaxalign.engine.step import Frozen, Sampling, Step, Updates, draw, make_step
from jaxalign.evaluation.heldout import evaluate
from jaxalign.host.errors import InputError
from jaxalign.host.hardware import hardware
from jaxalign.host.json_files import read_json, write_json
from jaxalign.host.metrics import METRICS_FILE, read_metrics
from jaxalign.host.processes import (
    all_of,
    any_of,
    is_first,
    join,
    wait_for_all,
)
from jaxalign.host.progress import progress_bar
from jaxalign.models import Transformer, load_pretrained, save_pretrained
from jaxalign.models.precision import fastest_dtype
from jaxalign.models.sharding import make_mesh
from jaxalign.records import Batch, Params
from jaxalign.reports.run_page import write_report
from jaxalign.rewards import Verifiers
from jaxalign.rewards.terms import Reward
from jaxalign.runs.added_rewards import load_added_rewards
from jaxalign.runs.batches import Batches
from jaxalign.runs.checkpoint import FORMAT, format_problem
from jaxalign.runs.facts import prompt_facts
from jaxalign.runs.loop import (
    Describe,
    Interruption,
    LoopConfig,
    LoopStep,
    train,
)
from jaxalign.runs.script import Interrupted
from jaxalign.runs.settings import (
    LOOP_ONLY,
    RLSettings,
    Settings,
    has_checkpoint,
    to_json,
)
from jaxalign.sampling import Stage, Temperature, Tool, stage_key


class Experiment:
    """The frame of a run: evaluations, training, and what its folder gets.

    Args:
      settings: the run's.
      interruption: heeded during evaluations and training.
      model: the decoder, in the compute dtype.
      tokenizer: the model's.
      prompts: for training; their fingerprint is kept, so that a resumed run notices another set.
      heldout: for the evaluations; may be empty.
      template: how all of them are asked.
      tool: what completions may call.
      begun: `time.perf_counter()` when the script started.
      facts: what else config.json should say and a resumed run must share, as JSON.

    Raises:
      InputError: on a resume, other settings or prompts than the run's; of several processes, other
        ones than the first's, or a folder that not all of them see.
    """

    def __init__(
        self,
        settings: Settings,
        interruption: Interruption,
        model: Transformer,
        tokenizer: Any,
        *,
        prompts: Sequence[Prompt],
        heldout: Sequence[Prompt],
        template: Template,
        tool: Tool | None = None,
        begun: float,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self._begun = begun
        self._settings = settings
        self._interruption = interruption
        self._model = model
        self._tokenizer = tokenizer
        self._heldout = heldout
        self._template = template
        self._tool = tool
        self._folder = folder = settings.run
        self._dtype = jnp.dtype(model.dtype).name
        self._saved = to_json(settings) | {
            "format": FORMAT,
            "compute_dtype": self._dtype,
            "prompts_digest": prompts_digest(prompts),
            "heldout_digest": prompts_digest(heldout),
            **(facts or {}),
        }
        self._earlier = 0.0
        if not settings.resume and is_first():
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "config.json", self._saved)
        wait_for_all()
        problem = self._other_run()
        if any_of(problem is not None):
            raise InputError(problem or f"{folder}: another process of the run refuses it")
        if settings.resume:
            steps = read_metrics(folder) if (folder / METRICS_FILE).exists() else []
            self._earlier = steps[-1]["time"] if steps else 0.0

    def _other_run(self) -> str | None:
        """Why the folder is not this run's; None where it is."""
        path, resume = self._folder / "config.json", self._settings.resume
        for _ in range(60):  # a shared folder may show a new file late
            if resume or path.exists():
                break
            time.sleep(1)
        else:
            return (
                f"{path}: not every process sees it: choose a --run folder that all of them share"
            )
        theirs = read_json(path) if path.exists() else {}
        problem = format_problem(theirs.get("format"), path) if theirs else None
        if problem:
            return problem
        may_differ = LOOP_ONLY if resume else ("run", "processes")
        for name, value in self._saved.items():
            if name in theirs and name not in may_differ and theirs[name] != value:
                if not resume:
                    return (
                        f"{name} is {theirs[name]!r} in the first process and {value!r} in "
                        "another: give all of them the same"
                    )
                return (
                    f"{path}: {name} was {theirs[name]!r} and is now {value!r}: resume with the "
                    "settings of the run, or start another one"
                )
        return None

    def add_seconds(self, seconds: float) -> None:
        """Counts what an earlier process of this run spent outside of training and evaluation."""
        self._earlier += seconds

    def assess(self, name: str, params: Params) -> dict[str, Any] | None:
        """Asks the held-out prompts; writes `evaluation_NAME.json`, or reads it after a resume.

        Returns:
          `Evaluation.summary`; None where there are no held-out prompts.

        Raises:
          Interrupted: SIGTERM or Ctrl-C.
        """
        if not self._heldout:
            return None
        path = self._folder / f"evaluation_{name}.json"
        if all_of(self._settings.resume and path.exists()):
            evaluation = read_json(path)
            self._earlier += evaluation["seconds"]
            rates: dict[str, Any] = evaluation["rates"]
            return rates
        print(f"asking {len(self._heldout)} held-out prompts {name} training")
        with progress_bar() as bar:
            line = bar.add_task(f"{name} training", total=len(self._heldout))

            def heed(done: int, total: int) -> None:
                bar.update(line, completed=done, total=total)
                if self._interruption.noticed():
                    raise Interrupted(f"after {done} of {total} prompts of the evaluation")

            result = evaluate(
                self._model,
                params,
                self._tokenizer,
                self._heldout,
                template=self._template,
                tool=self._tool,
                max_prompt_tokens=self._settings.max_prompt_tokens,
                max_new_tokens=self._settings.max_new_tokens,
                progress=heed,
            )
        if is_first():
            write_json(path, result.to_json())
        summary = result.summary()
        shown = {k: round(v, 3) for k, v in summary.items() if isinstance(v, int | float)}
        print(f"{name} training: {json.dumps(shown)}")
        if result.skipped:
            print(f"{len(result.skipped)} held-out prompts were too long and not asked")
        return summary

    def train(
        self,
        step_fn: LoopStep,
        state: TrainState,
        batch_at: Callable[[int], Any],
        *,
        describe: Describe = lambda step, result: (),
    ) -> tuple[TrainState, bool]:
        """`jaxalign.runs.loop.train` with the run's settings."""
        settings = self._settings
        return train(
            step_fn,
            state,
            batch_at,
            root_key=stage_key(settings.seed, Stage.TRAINING),
            folder=self._folder,
            config=LoopConfig(
                steps=settings.steps,
                checkpoint_every=settings.checkpoint_every,
                sample_every=settings.sample_every,
                max_skipped=LoopConfig.max_skipped * settings.updates_per_step,
            ),
            settings={k: v for k, v in self._saved.items() if k not in LOOP_ONLY},
            describe=describe,
            interruption=self._interruption,
            resume=all_of(settings.resume and has_checkpoint(self._folder)),
        )

    def finish(
        self,
        state: TrainState,
        evaluations: Mapping[str, dict[str, Any] | None],
        rollout_tokens_per_second: float | None = None,
    ) -> None:
        """Writes the model, summary.json, the plots and report.html.

        Args:
          state: the last one.
          evaluations: what `assess` returned, by name.
          rollout_tokens_per_second: as `rollout_speed` measures it, of a run that samples.
        """
        summary = dict(evaluations) | {
            "steps": int(state.step),
            "seconds": self._earlier + time.perf_counter() - self._begun,
            "skipped_updates": int(skipped_updates(state.opt_state)),
            "compute_dtype": self._dtype,
            "hardware": hardware(),
            "date": datetime.date.today().isoformat(),
        }
        if rollout_tokens_per_second is not None:
            summary["rollout_tokens_per_second"] = rollout_tokens_per_second
        save_pretrained(self._folder / "model", self._model, state.policy, self._tokenizer)
        if is_first():
            write_json(self._folder / "summary.json", summary)
            print(f"wrote {write_report(self._folder)}")
        wait_for_all()


@dataclasses.dataclass(frozen=True)
class Reinforcement:
    """A run's reinforcement learning: its compiled step, and what the step takes.

    Attributes:
      step: from `make_step`.
      sampling: how its completions are drawn.
      optimizer: of all that is trained.
      batches: the batch of each step.
      verifiers: of format and refusal, bound to the tokenizer.
      template: how requests are asked.
      trained: the start parameters to what is trained, with a critic if the objective has one.
      frozen: the start parameters to what stays as it is.
    """

    step: Step
    sampling: Sampling
    optimizer: optax.GradientTransformation
    batches: Batches
    verifiers: Verifiers
    template: Template
    trained: Callable[[Params], Params]
    frozen: Callable[[Params], Frozen]

    def start(self, params: Params) -> TrainState:
        """The state before the first step."""
        return init_state(self.trained(params), self.optimizer)

    def bind(self, params: Params) -> LoopStep:
        """The step of a run that starts from these parameters."""
        frozen = self.frozen(params)
        return lambda state, batch, key: self.step(state, batch, key, frozen)

    def speed(self, model: Transformer, params: Params) -> float:
        """Generated tokens per second of one rollout, compilation left out."""
        return rollout_speed(model, self.sampling, params, self.batches(0))


def make_reinforcement(
    settings: RLSettings,
    model: Transformer,
    tokenizer: Any,
    prompts: list[Prompt],
    *,
    verifiers: Verifiers,
    template: Template,
    reward: Callable[[Params], Reward],
    tool: Tool | None = None,
    encode: Callable[[Sequence[str]], Any] | None = None,
) -> Reinforcement:
    """Composes a run's step with the objective, the optimizer and the batches of its settings.

    Args:
      settings: the run's.
      model: the policy.
      tokenizer: the policy's.
      prompts: for training.
      verifiers: of format and refusal, bound to the tokenizer.
      template: how requests are asked.
      reward: the start parameters to what completions are worth; what flags add is added to it.
      tool: what completions may call.
      encode: as for `jaxalign.runs.facts.prompt_facts`.

    Raises:
      InputError: prompts, lengths or added rewards that cannot work.
    """
    batches = Batches(
        prompts,
        tokenizer,
        template,
        counts={kind: getattr(settings, kind) for kind in KINDS},
        max_prompt_tokens=settings.max_prompt_tokens,
        seed=settings.seed,
        make_facts=prompt_facts(prompts, encode),
        tool=tool,
        mesh=model.mesh,
    )
    batches.check(max_positions=model.max_positions, max_new_tokens=settings.max_new_tokens)
    optimizer, objective = make_run_optimizer(settings), settings.objective
    sampling = sampling_of(settings, stop_tokens(model, tokenizer))
    add = load_added_rewards(settings.add_reward, tokenizer, prompts)
    has_critic = isinstance(objective, PPO)
    asks_reference = getattr(objective, "kl", None) is not None
    step = make_step(
        model, optimizer, sampling=sampling, objective=objective, updates=updates_of(settings)
    )
    return Reinforcement(
        step,
        sampling,
        optimizer,
        batches,
        verifiers,
        template,
        lambda params: with_critic(model, params) if has_critic else params,
        lambda params: Frozen(add(reward(params)), params if asks_reference else None),
    )


def choose_dtype(settings: Settings) -> Any:
    """The dtype asked for; of a resumed run, the one it had; else the faster one in a probe."""
    config = settings.run / "config.json"
    if settings.dtype != "auto":
        name, reason = settings.dtype, "as asked for"
    elif all_of(settings.resume and config.exists()):
        name, reason = read_json(config)["compute_dtype"], "as before"
    else:
        dtype, reason = fastest_dtype()
        if any_of(dtype == jnp.float32) and dtype != jnp.float32:
            dtype, reason = jnp.float32, "float32: another process chose it"
        print(f"compute dtype: {reason}")
        return dtype
    print(f"compute dtype: {name}, {reason}")
    return jnp.dtype(name)


def load_start(settings: Settings) -> tuple[Transformer, Params, Any]:
    """The start model in the compute dtype, on the mesh, its parameters and its tokenizer.

    Of a run of several processes it is what brings them together.

    Raises:
      InputError: as `load_pretrained` and `jaxalign.host.processes.join`, or a mesh of another
        number of devices than there are.
    """
    join(settings.processes)
    mesh = None if settings.mesh is None else make_mesh(*settings.mesh)
    dtype = choose_dtype(settings)
    return load_pretrained(settings.model, dtype=dtype, remat=settings.remat, mesh=mesh)


def sampling_of(settings: RLSettings, stop: tuple[int, ...]) -> Sampling:
    """How a run's completions are drawn."""
    method = Temperature(settings.temperature)
    return Sampling(settings.samples_per_prompt, settings.max_new_tokens, stop, method)


def updates_of(settings: RLSettings) -> Updates:
    """How often a run learns from a rollout, and in which parts."""
    return Updates(settings.epochs, settings.minibatches, settings.micro_batches)


def make_run_optimizer(settings: Settings) -> optax.GradientTransformation:
    """The optimizer with the run's schedule of learning rates; PPO's critic has a rate of its own.

    What is not finite is skipped.
    """
    optimizer = _scheduled(settings, settings.learning_rate)
    if isinstance(settings, RLSettings) and isinstance(settings.objective, PPO):
        critic = _scheduled(settings, settings.critic_learning_rate)
        optimizer = with_critic_optimizer(optimizer, critic)
    return skip_nonfinite(optimizer)


def _scheduled(settings: Settings, peak: float) -> optax.GradientTransformation:
    updates = settings.updates_per_step  # which schedules count
    rates = learning_rates(
        peak,
        steps=updates * settings.steps,
        warmup_steps=updates * settings.warmup_steps,
        decay_steps=updates * settings.decay_steps,
        decay=settings.decay,
    )
    return settings.optimizer(rates, max_grad_norm=settings.max_grad_norm)


def rollout_speed(model: Transformer, sampling: Sampling, params: Params, batch: Batch) -> float:
    """Generated tokens per second of one rollout, compilation left out."""
    key = stage_key(0, Stage.SPEED)
    jax.block_until_ready(draw(model, sampling, params, batch, key))
    begun = time.perf_counter()
    samples = jax.block_until_ready(draw(model, sampling, params, batch, key))
    return float(samples.mask.sum()) / (time.perf_counter() - begun)
