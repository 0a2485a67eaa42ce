"""What surrounds the training of every experiment: errors, evaluations, the run folder."""

import dataclasses
import datetime
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxalign.answers.asking import Asking, LanguageModel
from jaxalign.answers.completing import find_stops
from jaxalign.data.prompts import Prompt, prompts_digest
from jaxalign.engine.state import TrainState
from jaxalign.evaluation.judges import make_judge
from jaxalign.evaluation.measure import evaluate, pace_path, summary
from jaxalign.host.errors import InputError
from jaxalign.host.hardware import hardware
from jaxalign.host.json_files import read_json, write_json
from jaxalign.host.metrics import METRICS_FILE, read_metrics
from jaxalign.host.processes import all_of, any_of, are_several, is_first, wait_for_all
from jaxalign.models import Transformer, load_pretrained, save_pretrained
from jaxalign.models.files.adapters import load_adapter, save_adapter
from jaxalign.models.files.weights import weights_digest
from jaxalign.models.layout import place_adapter
from jaxalign.models.lora import merge, on_base
from jaxalign.records import Params
from jaxalign.reports.evaluation_page import cut_off_notes
from jaxalign.reports.run_folder import MOMENTS, VALIDATION, run_warnings, validation_rates
from jaxalign.reports.run_page import write_report
from jaxalign.runs.checkpoint import FORMAT
from jaxalign.runs.choices import to_json
from jaxalign.runs.keep import BEST
from jaxalign.runs.loop import Interruption, Training, train
from jaxalign.runs.recipe import Recipe
from jaxalign.runs.reinforcement import Reinforcement, make_reinforcement
from jaxalign.runs.run_config import begin_run, other_run
from jaxalign.runs.settings import LOOP_ONLY, has_checkpoint
from jaxalign.runs.start_model import frozen_base
from jaxalign.runs.validation import Result, Store, Validation, rates_line
from jaxalign.text.chat_template import run_date

JUDGES = ("phrases", "refusals")
"""Of refusals: all evaluations of runs have them, so that it shows where they disagree."""


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
      base: what adapters are trained on, once training begins, in the compute dtype.

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
    base: Params | None = dataclasses.field(default=None, init=False)

    def __post_init__(self) -> None:
        self._stop = find_stops(self.model, self.tokenizer, self.settings.completions.stop).tokens
        if self.recipe.reward is not None:
            given = (self.settings, self.model, self.tokenizer, self.prompts)
            self.work = make_reinforcement(*given, self.recipe)
        self._folder = folder = self.settings.run
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
            begin_run(folder / "config.json", self._saved)
        wait_for_all()
        problem = other_run(folder / "config.json", self._saved, resume=self.settings.resume)
        if any_of(problem is not None):
            raise InputError(problem or f"{folder}: another process of the run refuses it")
        self._base_digest, self._base_name = "", str(self.settings.start.model)
        if self.recipe.cold_start is not None and self.settings.first_stage is not None:
            self._base_name = str(folder / self.settings.first_stage)
        self._earlier = 0.0  # seconds of the processes before this one
        if self.settings.resume and (folder / METRICS_FILE).exists():
            steps = read_metrics(folder)
            self._earlier = steps[-1]["time"] if steps else 0.0
        self._validation = Validation(
            folder, self.settings.loop, self.lm, self._ask_validation, self._store()
        )

    def _store(self) -> Store:
        """How the policy, or its adapter, goes to a folder and comes back."""
        model, lora = self.model, self.model.lora

        def save_policy(folder: Path, params: Params) -> None:
            save_pretrained(folder, model, params, self.tokenizer, stop=self._stop)

        def load_policy(folder: Path) -> Params:
            return load_pretrained(folder, mesh=model.mesh)[1]

        def save_adapted(folder: Path, params: Params) -> None:
            given = (model.config, lora, params)
            save_adapter(folder, *given, base=self._base_name, base_weights=self._base_digest)

        def load_adapted(folder: Path) -> Params:
            return place_adapter(model, load_adapter(folder, model.config).params)

        if lora.rank:
            return Store("adapter", save_adapted, load_adapted)
        return Store("model", save_policy, load_policy)

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
        """The run's model with these parameters, or this adapter, to be asked."""
        return LanguageModel(self.model, on_base(params, self.base), self.tokenizer)

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
        lm = self.lm(params)
        start = (lambda: lm) if name == "before" else self._load_start
        results = self._ask(folder, lm, suites, specs, label=label, model=named, reference=start)
        if not is_first():
            return None
        rates = summary(results)
        print(f"{label}: {rates_line(rates)}")
        for line in (*cut_off_notes(results), *rates["warnings"]):
            print(line)
        if rates["skipped"]:
            print(f"{rates['skipped']} held-out prompts were too long and not asked")
        return rates

    def _load_start(self) -> LanguageModel:
        """The start model once more, which training does not keep, but for an adapter's base."""
        if self.base is not None and self.recipe.cold_start is None:
            return self.lm(self.base)
        given = {"dtype": self.model.dtype, "mesh": self.model.mesh}
        return self.lm(load_pretrained(self.settings.start.model, **given)[1]).cast()

    def _ask(
        self,
        folder: Path,
        lm: LanguageModel,
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
                lm,
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

    def _ask_validation(self, folder: Path, lm: LanguageModel, label: str) -> dict[str, Any]:
        data, suites = self.settings.data, {VALIDATION: self.validation}
        specs, model = data.validation or data.prompts, f"{self._folder}, {label}"
        return self._ask(folder, lm, suites, specs, label=label, model=model)

    def result(self, last: Params) -> Result:
        """`jaxalign.runs.validation.Validation.result`."""
        return self._validation.result(last)

    def training(self, params: Params) -> Training:
        """What it trains with, from these parameters on.

        Adapters stand on what `frozen_base` makes of them, as does what scores by the start model.
        """
        if self.model.lora.rank:
            self._base_digest = weights_digest(params)
            params = self.base = frozen_base(self.model, params)
        if self.work is not None:
            return self.work.training(self.model, params)
        assert self.recipe.tune is not None
        return self.recipe.tune(self, params)

    def train(self, training: Training, state: TrainState) -> tuple[TrainState, bool]:
        """`jaxalign.runs.loop.train`, from the newest checkpoint where the run is resumed.

        Raises:
          InputError: as there, or the best parameters so far are gone.
        """
        self._validation.check()
        return train(
            training,
            state,
            self.settings,
            saved={k: v for k, v in self._saved.items() if k not in LOOP_ONLY}
            | ({"base_weights": self._base_digest} if self._base_digest else {}),
            interruption=self.interruption,
            watch=self._validation.watch,
            resume=all_of(self.settings.resume and has_checkpoint(self._folder)),
        )

    def finish(
        self,
        result: Result,
        evaluations: Mapping[str, dict[str, Any] | None],
        skipped: int,
        rollout_tokens_per_second: float | None = None,
    ) -> None:
        """Writes the model, summary.json, the plots and report.html.

        Args:
          result: of the run.
          evaluations: what `assess` returned, by name.
          skipped: how many updates were, as they were not finite.
          rollout_tokens_per_second: of one rollout, of a run that samples.
        """
        content = dict(evaluations) | {
            "steps": (result.stopped or {}).get("step", self.settings.loop.steps),
            "best_step": result.best_step,
            "stopped": result.stopped,
            "seconds": self._earlier + time.perf_counter() - self.begun,
            "skipped_updates": skipped,
            "compute_dtype": self._dtype,
            "hardware": hardware(),
            "date": datetime.date.today().isoformat(),
        }
        if rollout_tokens_per_second is not None:
            content["rollout_tokens_per_second"] = rollout_tokens_per_second
        policy = result.policy
        if self.base is not None:
            self._validation.store.save(self._folder / "adapter", policy)
            self.base = None  # which is rounded; what is merged is float32
            start = load_pretrained(self._base_name, mesh=self.model.mesh)[1]
            policy = merge(on_base(policy, start), self.model.lora)
        folder = self._folder / "model"
        save_pretrained(folder, self.model, policy, self.tokenizer, stop=self._stop)
        if is_first():
            content["warnings"] = run_warnings(
                {MOMENTS[name]: x["warnings"] for name, x in evaluations.items() if x},
                {step: x["warnings"] for step, x in validation_rates(self._folder).items()},
            )
            write_json(self._folder / "summary.json", content)
            print(f"wrote {write_report(self._folder)}")
            shutil.rmtree(self._folder / BEST, ignore_errors=True)  # model/ has it, or need not
        wait_for_all()
