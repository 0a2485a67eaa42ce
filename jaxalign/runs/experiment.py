"""What surrounds the training of every experiment: errors, evaluations, the run folder."""

import contextlib
import dataclasses
import datetime
import functools
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxalign.answers.asking import Asking, LanguageModel
from jaxalign.answers.completing import find_stops
from jaxalign.data.documents import answer_documents
from jaxalign.data.prompts import KINDS, Asked, Prompt, prompts_digest
from jaxalign.data.templates import Template
from jaxalign.engine.optimizer import (
    learning_rates,
    skip_nonfinite,
    with_critic_optimizer,
)
from jaxalign.engine.ppo import with_critic
from jaxalign.engine.sft import PackedBatches, make_supervised_step
from jaxalign.engine.state import TrainState, init_state
from jaxalign.engine.step import Frozen, Sampling, Step, draw, make_step
from jaxalign.evaluation.judges import make_judge
from jaxalign.evaluation.measure import RESULTS, evaluate, pace_path, summary
from jaxalign.host.errors import InputError
from jaxalign.host.hardware import hardware
from jaxalign.host.json_files import read_json, write_json
from jaxalign.host.metrics import METRICS_FILE, read_metrics
from jaxalign.host.processes import all_of, any_of, are_several, is_first, wait_for_all
from jaxalign.models import Transformer, load_pretrained, save_pretrained
from jaxalign.models.precision import fastest_dtype
from jaxalign.models.sharding import make_mesh
from jaxalign.records import Params
from jaxalign.reports.evaluation_page import cut_off_notes
from jaxalign.reports.run_folder import (
    MOMENTS,
    VALIDATION,
    run_warnings,
    validation_folders,
    validation_rates,
)
from jaxalign.reports.run_page import write_report
from jaxalign.rewards.terms import Reward
from jaxalign.runs.added_rewards import load_added_rewards
from jaxalign.runs.batches import Batches
from jaxalign.runs.checkpoint import FORMAT, format_problem
from jaxalign.runs.choices import to_json
from jaxalign.runs.facts import prompt_facts
from jaxalign.runs.keep import BEST, Best, Last, best_step
from jaxalign.runs.loop import Interruption, Training, train
from jaxalign.runs.settings import LOOP_ONLY, Packed, Settings, has_checkpoint
from jaxalign.sampling import Endings, Stage, Temperature, Tool, stage_key
from jaxalign.text.chat_template import run_date

JUDGES = ("phrases", "refusals")
"""Of refusals: all evaluations of runs have them, so that it shows where they disagree."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is an experiment's own in a run: a reward to learn from, or something to tune on.

    Attributes:
      template: how prompts are asked, in training and evaluation.
      reward: the start parameters to what completions are worth; flags may add to it.
      tune: what the run trains with instead, of the start parameters, which it must not keep.
      cold_start: what is done to the start parameters first; None for nothing.
      tool: what completions may call.
      judge: the judge of refusals (`make_judge`) that sums evaluations up; those of `JUDGES` stand
        beside it.
      encode: as for `jaxalign.runs.facts.prompt_facts`.
      facts: what else config.json should say and a resumed run must share, as JSON.
    """

    template: Template
    reward: Callable[[Params], Reward] | None = None
    _: dataclasses.KW_ONLY
    tune: Callable[["Experiment", Params], Training] | None = None
    cold_start: Callable[["Experiment", Params], Params] | None = None
    tool: Tool | None = None
    judge: str = "phrases"
    encode: Callable[[Sequence[Prompt]], Any] | None = None
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


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
        trained = with_critic(model, params) if rl.has_critic else params
        return init_state(trained, optimizer)

    def frozen(params: Params) -> Frozen:
        return Frozen(add(reward(params)), params if rl.has_reference else None)

    return Reinforcement(step, sampling, batches, start, frozen)


@dataclasses.dataclass(eq=False)
class Experiment:
    """The frame of a run: evaluations, training, and what its folder gets.

    Attributes:
      settings: the run's.
      recipe: what is the experiment's own.
      model: the decoder, in the compute dtype.
      tokenizer: the model's.
      prompts: for training; their fingerprint is kept, so that a resumed run notices another set.
      heldout: for the evaluations; may be empty.
      validation: asked during training; may be empty.
      interruption: heeded during evaluations and training.
      begun: `time.perf_counter()` when the script started.
      work: the reinforcement learning of a recipe with a reward.

    Raises:
      InputError: as `make_reinforcement`; on a resume, other settings or prompts than the run's; of
        several processes, other ones than the first's, or a folder that not all of them see.
    """

    settings: Any  # Settings; recipes read their own
    recipe: Recipe
    _: dataclasses.KW_ONLY
    model: Transformer
    tokenizer: Any
    prompts: list[Prompt]
    heldout: Sequence[Prompt]
    validation: Sequence[Prompt]
    interruption: Interruption
    begun: float
    work: Reinforcement | None = dataclasses.field(default=None, init=False)

    def __post_init__(self) -> None:
        self._stop = find_stops(self.model, self.tokenizer, self.settings.completions.stop).tokens
        if self.recipe.reward is not None:
            given = (self.settings, self.model, self.tokenizer, self.prompts)
            self.work = make_reinforcement(*given, self.recipe)
        self._folder = folder = self.settings.run
        self._best: int | None = None  # step, where the best is the result
        self._dtype = jnp.dtype(self.model.dtype).name
        facts = {
            "compute_dtype": self._dtype,
            "prompts_digest": prompts_digest(self.prompts),
            "heldout_digest": prompts_digest(self.heldout),
            "validation_digest": prompts_digest(self.validation),
            **self.recipe.facts,
        }
        date = {"template_date": run_date(self.tokenizer)}
        self._saved = to_json(self.settings) | date | {"run_format": FORMAT, "facts": facts}
        if not self.settings.resume and is_first():
            self._begin(folder / "config.json")
        wait_for_all()
        problem = self._other_run()
        if any_of(problem is not None):
            raise InputError(problem or f"{folder}: another process of the run refuses it")
        self._earlier = 0.0  # seconds of the processes before this one
        if self.settings.resume and (folder / METRICS_FILE).exists():
            steps = read_metrics(folder)
            self._earlier = steps[-1]["time"] if steps else 0.0

    def _begin(self, config: Path) -> None:
        """Takes out what an earlier start left, but for a first evaluation of the same settings."""
        saved, theirs = json.dumps(self._saved), ""
        with contextlib.suppress(OSError, ValueError):
            theirs = json.dumps(json.loads(config.read_bytes()))
        for name in (*MOMENTS, VALIDATION, BEST):
            if (config.parent / name).exists() and (name, theirs) != ("before", saved):
                shutil.rmtree(config.parent / name)
        (config.parent / "summary.json").unlink(missing_ok=True)
        config.parent.mkdir(parents=True, exist_ok=True)
        write_json(config, self._saved)

    def _other_run(self) -> str | None:
        """Why the folder is not this run's; None where it is."""
        path, resume = self._folder / "config.json", self.settings.resume
        for _ in range(60):  # a shared folder may show a new file late
            if resume or path.exists():
                break
            time.sleep(1)
        else:
            return (
                f"{path}: not every process sees it: choose a --run folder that all of them share"
            )
        theirs = read_json(path) if path.exists() else {}
        problem = format_problem(theirs.get("run_format"), path) if theirs else None
        if problem:
            return problem
        may_differ = LOOP_ONLY if resume else ("run", "processes")
        theirs = theirs | theirs.get("facts", {})
        for name, value in {**self._saved, **self._saved["facts"]}.items():
            if name == "facts":
                continue
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

    def check_shared(self, path: Path, facts: Mapping[str, Any]) -> None:
        """Refuses to go with the run whose config.json has other facts.

        Raises:
          InputError: names what is another.
        """
        for name, ours in self._saved["facts"].items():
            if facts.get(name) != ours:
                raise InputError(
                    f"{path}: {name} was {facts.get(name)!r} and is now {ours!r}: give all seeds "
                    "the same, or choose another --run"
                )

    def add_seconds(self, seconds: float) -> None:
        """Counts what an earlier process of this run spent outside of training and evaluation."""
        self._earlier += seconds

    def lm(self, params: Params) -> LanguageModel:
        """The run's model with these parameters, to be asked."""
        return LanguageModel(self.model, params, self.tokenizer)

    def asking(self, **fields: Any) -> Asking:
        """How the run asks, within its lengths; the rest are fields of `Asking`."""
        settings = self.settings
        return Asking(
            max_prompt_tokens=settings.data.max_prompt_tokens,
            max_new_tokens=settings.completions.max_new_tokens,
            stop=settings.completions.stop,
            **fields,
        )

    def assess(self, name: str, params: Params) -> dict[str, Any] | None:
        """Asks the held-out prompts; the folder `NAME` of the run is what `jaxalign eval` writes.

        Args:
          name: one of `jaxalign.reports.run_folder.MOMENTS`.
          params: of the model that is asked.

        Returns:
          `jaxalign.evaluation.measure.summary`; None where there are no held-out prompts, and in
          a process that is not the first.

        Raises:
          Interrupted: SIGTERM or Ctrl-C.
        """
        if not self.heldout:
            return None
        folder, settings, label = self._folder / name, self.settings, MOMENTS[name]
        pace = pace_path(folder, "heldout")  # is there once all is answered
        if all_of(settings.resume and pace.exists()):
            self.add_seconds(read_json(pace)["seconds"])
        print(f"asking {len(self.heldout)} held-out prompts {label}")
        named = settings.start.model if name == "before" else f"{self._folder}, {label}"
        suites, specs = {"heldout": self.heldout}, settings.data.heldout
        if name == "before":
            start = lambda: self.lm(params)  # noqa: E731
        else:
            start = self._start
        results = self._ask(
            folder, params, suites, specs, label=label, model=named, reference=start
        )
        if not is_first():
            return None
        rates = summary(results)
        print(f"{label}: {_shown(rates)}")
        for line in (*cut_off_notes(results), *rates["warnings"]):
            print(line)
        if rates["skipped"]:
            print(f"{rates['skipped']} held-out prompts were too long and not asked")
        return rates

    def _start(self) -> LanguageModel:
        """The start model once more, which training does not keep."""
        given = {"dtype": self.model.dtype, "mesh": self.model.mesh}
        return self.lm(load_pretrained(self.settings.start.model, **given)[1]).cast()

    def _ask(
        self,
        folder: Path,
        params: Params,
        suites: Mapping[str, Sequence[Prompt]],
        specs: Sequence[str],
        *,
        label: str,
        model: str,
        reference: Callable[[], LanguageModel] | None = None,
    ) -> dict[str, Any]:
        """`evaluate` as the run asks; `specs` is where the prompts of the suites are from.

        Of several processes the first one judges alone, so none has a `reference`.
        """
        total = sum(map(len, suites.values()))
        judges = [self.recipe.judge, *(judge for judge in JUDGES if judge != self.recipe.judge)]
        with self.interruption.heeded(label, total, f"prompts of the evaluation {label}") as heed:
            return evaluate(
                self.lm(params),
                suites,
                self.asking(template=self.recipe.template, tool=self.recipe.tool),
                folder,
                model=model,
                settings={"suites": list(specs), "judge": judges},
                judges=[make_judge(judge) for judge in judges],
                rules=self.recipe.facts.get("rule_texts"),
                reference=None if are_several() else reference,
                progress=lambda suite, done, total, tokens: heed(done, total),
            )

    def watch(self, step: int, params: Params) -> None:
        """Asks the validation prompts after a step; keeps parameters that are the best so far.

        Raises:
          Interrupted: SIGTERM or Ctrl-C.
        """
        data, keep = self.settings.data, self.settings.loop.keep
        if is_first():
            for later in (x for at, x in validation_folders(self._folder).items() if at > step):
                shutil.rmtree(later)  # of a process that went further than its last checkpoint
        label, specs = f"after step {step}", data.validation or data.prompts
        folder, named = self._folder / VALIDATION / str(step), f"{self._folder}, {label}"
        suites = {VALIDATION: self.validation}
        results = self._ask(folder, params, suites, specs, label=label, model=named)
        best = False
        if is_first():
            rates = summary(results)
            score = f", score {keep.score(rates):.3f}" if isinstance(keep, Best) else ""
            print(f"validation {label}: {_shown(rates)}{score}")
            for line in rates["warnings"]:
                print(line)
            if rates["skipped"]:
                print(f"{rates['skipped']} validation prompts were too long and not asked")
            best = isinstance(keep, Best) and best_step(self._folder, keep)[0] == step
        if any_of(best):
            save_pretrained(self._folder / BEST, self.model, params, self.tokenizer)

    def result(self, last: Params) -> Params:
        """The parameters that the settings keep, of a run that has come to its end.

        Raises:
          InputError: the folder does not have those of the best step any more.
        """
        keep = self.settings.loop.keep
        if isinstance(keep, Last):
            return last
        done = all_of((self._folder / "summary.json").exists())  # a run that is finished once more
        folder = self._folder / ("model" if done else BEST)
        best = load_pretrained(folder, mesh=self.model.mesh)[1]
        digest, problem = self.lm(best).digest, None
        if is_first():
            self._best, score = best_step(self._folder, keep)
            asked = self._folder / VALIDATION / str(self._best) / RESULTS
            start = " (the start: no later step was better)" if self._best == 0 else ""
            print(f"the result is the policy after step {self._best}{start}: score {score:.3f}")
            if read_json(asked)["weights"] != digest:
                problem = f"{folder}: not what {asked} measured: start the run again elsewhere"
        if any_of(problem is not None):
            raise InputError(problem or f"{folder}: not what was measured")
        return best

    def training(self, params: Params) -> Training:
        """What it trains with, from these parameters on."""
        if self.work is not None:
            return self.work.training(self.model, params)
        assert self.recipe.tune is not None
        return self.recipe.tune(self, params)

    def train(self, training: Training, state: TrainState) -> tuple[TrainState, bool]:
        """`jaxalign.runs.loop.train`, from the newest checkpoint where the run is resumed.

        Raises:
          InputError: as there, or the best parameters so far are gone.
        """
        best, done = self._folder / BEST, (self._folder / "summary.json").exists()
        keeps = isinstance(self.settings.loop.keep, Best) and validation_folders(self._folder)
        if any_of(bool(keeps) and not best.exists() and not done):  # or the others would wait
            raise InputError(f"{best} is gone, the best so far: start the run again elsewhere")
        return train(
            training,
            state,
            self.settings,
            saved={k: v for k, v in self._saved.items() if k not in LOOP_ONLY},
            interruption=self.interruption,
            watch=self.watch,
            resume=all_of(self.settings.resume and has_checkpoint(self._folder)),
        )

    def finish(
        self,
        policy: Params,
        evaluations: Mapping[str, dict[str, Any] | None],
        skipped: int,
        rollout_tokens_per_second: float | None = None,
    ) -> None:
        """Writes the model, summary.json, the plots and report.html.

        Args:
          policy: as `result` gives it.
          evaluations: what `assess` returned, by name.
          skipped: how many updates were, as they were not finite.
          rollout_tokens_per_second: of one rollout, of a run that samples.
        """
        content = dict(evaluations) | {
            "steps": self.settings.loop.steps,
            "best_step": self._best,
            "seconds": self._earlier + time.perf_counter() - self.begun,
            "skipped_updates": skipped,
            "compute_dtype": self._dtype,
            "hardware": hardware(),
            "date": datetime.date.today().isoformat(),
        }
        if rollout_tokens_per_second is not None:
            content["rollout_tokens_per_second"] = rollout_tokens_per_second
        folder = self._folder / "model"
        save_pretrained(folder, self.model, policy, self.tokenizer, stop=self._stop)
        if is_first():
            content["warnings"] = run_warnings(
                {MOMENTS[name]: x["warnings"] for name, x in evaluations.items() if x},
                {step: x["warnings"] for step, x in validation_rates(self._folder).items()},
            )
            write_json(self._folder / "summary.json", content)
            print(f"wrote {write_report(self._folder)}")
            if self._best is not None:
                shutil.rmtree(self._folder / BEST, ignore_errors=True)  # model/ has it
        wait_for_all()


def _shown(rates: Mapping[str, Any]) -> str:
    """The numbers of a `summary`, for a line."""
    return json.dumps({k: round(v, 3) for k, v in rates.items() if isinstance(v, int | float)})


def supervised(
    run: Experiment, answers: Sequence[tuple[Asked, Sequence[int]]], rows: Packed
) -> Training:
    """Cross-entropy of answers to the run's prompts, on packed rows.

    Args:
      run: whose model learns.
      answers: a request and its answer's token ids, each.
      rows: how they are packed.
    """
    settings, model = run.settings, run.model
    documents, prefix = answer_documents(run.tokenizer, run.recipe.template, answers)
    batches = PackedBatches(
        documents,
        batch_size=rows.examples_per_step,
        length=rows.row_length,
        steps=settings.loop.steps,
        seed=settings.seed,
        prefix=prefix,
        micro_batches=rows.micro_batches,
        mesh=model.mesh,
    )
    optimizer = make_run_optimizer(settings)
    step = make_supervised_step(model, optimizer, micro_batches=rows.micro_batches)
    return tuning(step, optimizer, batches)


def tuning(
    step: Callable[[TrainState, Any], tuple[TrainState, Any]],
    optimizer: optax.GradientTransformation,
    batch_at: Callable[[int], Any],
) -> Training:
    """What a run trains with whose steps draw nothing and need no key."""
    start = functools.partial(init_state, optimizer=optimizer)
    return Training(lambda state, batch, key: step(state, batch), start, batch_at)


def load_start(settings: Settings) -> tuple[Transformer, Params, Any]:
    """The start model in the compute dtype, on the mesh, its parameters and its tokenizer.

    The dtype is the one asked for; of a resumed run, the one it had; else the faster in a probe.
    The date of the chat template is the one asked for, the run's, or today's.

    Raises:
      InputError: as `load_pretrained`, or a mesh of another number of devices than there are.
    """
    mesh = None if settings.start.mesh is None else make_mesh(*settings.start.mesh)
    dtype: Any = settings.start.dtype
    config = settings.run / "config.json"
    resumed = all_of(settings.resume and config.exists())
    theirs = read_json(config) if resumed else {}
    if dtype != "auto":
        reason = f"{dtype}, as asked for"
    elif resumed:
        dtype = theirs["facts"]["compute_dtype"]
        reason = f"{dtype}, as before"
    else:
        dtype, reason = fastest_dtype()
        if any_of(dtype == jnp.float32) and dtype != jnp.float32:
            dtype, reason = jnp.float32, "float32: another process chose it"
    print(f"compute dtype: {reason}")
    return load_pretrained(
        settings.start.model,
        dtype=jnp.dtype(dtype),
        remat=settings.start.remat,
        mesh=mesh,
        chat_template=settings.start.chat_template,
        template_date=settings.start.template_date or theirs.get("template_date"),
    )


@contextlib.contextmanager
def tokenizer_of(model: str) -> Iterator[None]:
    """Within it what a tokenizer can't do is an `InputError` that names the model."""
    try:
        yield
    except ValueError as error:
        raise InputError(f"{model}: {error}") from error


def make_run_optimizer(settings: Settings) -> optax.GradientTransformation:
    """The optimizer with the run's schedule of learning rates; PPO's critic has a rate of its own.

    What is not finite is skipped.
    """
    updates = settings.updates_per_step  # which schedules count

    def scheduled(peak: float) -> optax.GradientTransformation:
        rates = learning_rates(
            peak,
            steps=updates * settings.loop.steps,
            warmup_steps=updates * settings.learning.warmup_steps,
            decay_steps=updates * settings.learning.decay_steps,
            decay=settings.learning.decay,
        )
        return settings.learning.optimizer(rates, max_grad_norm=settings.learning.max_grad_norm)

    optimizer = scheduled(settings.learning.learning_rate)
    if settings.rl is not None and settings.rl.has_critic:
        optimizer = with_critic_optimizer(optimizer, scheduled(settings.rl.critic_learning_rate))
    return skip_nonfinite(optimizer)
