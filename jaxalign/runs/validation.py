"""Validation prompts: they watch a run while it trains, may stop it, and choose its result."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from jaxalign.answers.asking import LanguageModel
from jaxalign.evaluation.measure import RESULTS, summary
from jaxalign.host.errors import InputError
from jaxalign.host.json_files import read_json
from jaxalign.host.processes import all_of, any_of, is_first
from jaxalign.records import Params
from jaxalign.reports.run_folder import VALIDATION, validation_folders
from jaxalign.runs.collapse import watched
from jaxalign.runs.keep import BEST, Last, best_step
from jaxalign.runs.settings import Loop


class Result(NamedTuple):
    """What comes of a run.

    Attributes:
      policy: its parameters.
      best_step: where the best are the result, the step after which they were; in the first process
        of several, as `stopped` is.
      stopped: of a run that its guard stopped, the `step` after which, and the `reason`.
    """

    policy: Params
    best_step: int | None = None
    stopped: dict[str, Any] | None = None


class Store(NamedTuple):
    """How what is trained goes to a folder: a model, or an adapter.

    Attributes:
      name: of the result's folder in the run's.
      save: `(folder, parameters)`.
      load: `(folder) -> parameters`.
    """

    name: str
    save: Callable[[Path, Params], None]
    load: Callable[[Path], Params]


@dataclasses.dataclass(frozen=True)
class Validation:
    """Watches a run, and says which of its parameters are the result.

    All that it decides comes from the files in the run folder, so that a resumed run decides alike.

    Attributes:
      folder: the run's.
      loop: which parameters are, and what stops it.
      lm: the run's model with given parameters.
      ask: `(folder, model, label) -> results` of `jaxalign.evaluation.measure.evaluate`, of the
        validation prompts.
      store: what is trained, to a folder and back.
    """

    folder: Path
    loop: Loop
    lm: Callable[[Params], LanguageModel]
    ask: Callable[[Path, LanguageModel, str], dict[str, Any]]
    store: Store

    def check(self) -> None:
        """Refuses to go on without the best parameters so far.

        Raises:
          InputError: they are gone.
        """
        best, done = self.folder / BEST, (self.folder / "summary.json").exists()
        keeps = self.loop.score is not None and bool(validation_folders(self.folder))
        if any_of(keeps and not best.exists() and not done):  # or the others would wait
            raise InputError(f"{best} is gone, the best so far: start the run again elsewhere")

    def watch(self, step: int, params: Params) -> bool:
        """Asks the validation prompts after a step; keeps parameters that are the best so far.

        Returns:
          whether the guard stops the run here.

        Raises:
          Interrupted: SIGTERM or Ctrl-C.
        """
        if is_first():
            for later in (x for at, x in validation_folders(self.folder).items() if at > step):
                shutil.rmtree(later)  # of a process that went further than its last checkpoint
        label, lm, keep = f"after step {step}", self.lm(params), self.loop.score
        results = self.ask(self.folder / VALIDATION / str(step), lm, label)
        best = stopped = False
        if is_first():
            rates, history, guard = summary(results), watched(self.folder), self.loop.guard
            score = "" if keep is None else f", score {keep.score(rates):.3f}"
            print(f"validation {label}: {rates_line(rates)}{score}")
            for line in rates["warnings"]:
                print(line)
            if rates["skipped"]:
                print(f"{rates['skipped']} validation prompts were too long and not asked")
            best = keep is not None and best_step(history, keep, guard)[0] == step
            stopped = guard is not None and guard.reason(history) is not None
        if any_of(best):
            self.store.save(self.folder / BEST, params)
        return any_of(stopped)

    def result(self, last: Params) -> Result:
        """What is kept of a run that has come to its end, or that its guard has stopped.

        Raises:
          InputError: the folder does not have the parameters of the best step any more.
        """
        keep, guard = self.loop.score, self.loop.guard
        if keep is None:
            return Result(last)
        history = watched(self.folder) if is_first() else []
        reason = None if guard is None or not history else guard.reason(history)
        if isinstance(self.loop.keep, Last) and not any_of(reason is not None):
            return Result(last)
        done = all_of((self.folder / "summary.json").exists())  # a run that is finished once more
        folder = self.folder / (self.store.name if done else BEST)
        best = self.store.load(folder)
        digest, step, stopped, problem = self.lm(best).digest, None, None, None
        if is_first():
            step, score = best_step(history, keep, guard)
            better = "better" if guard is None else "better and not worn"
            start = f" (the start: no later step was {better})" if step == 0 else ""
            kept = f"the result is the policy after step {step}{start}: score {score:.3f}"
            if reason is not None:
                stopped = {"step": history[-1].step, "reason": reason}
                kept = f"stopped after step {history[-1].step}: {reason}; {kept}"
            print(kept)
            asked = self.folder / VALIDATION / str(step) / RESULTS
            if read_json(asked)["weights"] != digest:
                problem = f"{folder}: not what {asked} measured: start the run again elsewhere"
        if any_of(problem is not None):
            raise InputError(problem or f"{folder}: not what was measured")
        return Result(best, step, stopped)


def rates_line(rates: Mapping[str, Any]) -> str:
    """The numbers of a `summary`, for a line."""
    return json.dumps({k: round(v, 3) for k, v in rates.items() if isinstance(v, int | float)})
