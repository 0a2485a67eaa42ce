"""Validation prompts: they watch a run while it trains, and choose its result."""

import dataclasses
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxalign.answers.asking import LanguageModel
from jaxalign.evaluation.measure import RESULTS, summary
from jaxalign.host.errors import InputError
from jaxalign.host.json_files import read_json
from jaxalign.host.processes import all_of, any_of, is_first
from jaxalign.models import load_pretrained, save_pretrained
from jaxalign.records import Params
from jaxalign.reports.run_folder import VALIDATION, validation_folders
from jaxalign.runs.keep import BEST, Best, Last, best_step


@dataclasses.dataclass(frozen=True)
class Validation:
    """Watches a run, and says which of its parameters are the result.

    Attributes:
      folder: the run's.
      keep: which parameters are.
      lm: the run's model with given parameters.
      ask: `(folder, model, label) -> results` of `jaxalign.evaluation.measure.evaluate`, of the
        validation prompts.
    """

    folder: Path
    keep: Last | Best
    lm: Callable[[Params], LanguageModel]
    ask: Callable[[Path, LanguageModel, str], dict[str, Any]]

    def check(self) -> None:
        """Refuses to go on without the best parameters so far.

        Raises:
          InputError: they are gone.
        """
        best, done = self.folder / BEST, (self.folder / "summary.json").exists()
        keeps = isinstance(self.keep, Best) and validation_folders(self.folder)
        if any_of(bool(keeps) and not best.exists() and not done):  # or the others would wait
            raise InputError(f"{best} is gone, the best so far: start the run again elsewhere")

    def watch(self, step: int, params: Params) -> None:
        """Asks the validation prompts after a step; keeps parameters that are the best so far.

        Raises:
          Interrupted: SIGTERM or Ctrl-C.
        """
        if is_first():
            for later in (x for at, x in validation_folders(self.folder).items() if at > step):
                shutil.rmtree(later)  # of a process that went further than its last checkpoint
        label, lm, keep = f"after step {step}", self.lm(params), self.keep
        results = self.ask(self.folder / VALIDATION / str(step), lm, label)
        best = False
        if is_first():
            rates = summary(results)
            score = f", score {keep.score(rates):.3f}" if isinstance(keep, Best) else ""
            print(f"validation {label}: {rates_line(rates)}{score}")
            if rates["skipped"]:
                print(f"{rates['skipped']} validation prompts were too long and not asked")
            best = isinstance(keep, Best) and best_step(self.folder, keep)[0] == step
        if any_of(best):
            save_pretrained(self.folder / BEST, lm.model, params, lm.tokenizer)

    def result(self, last: Params) -> tuple[Params, int | None]:
        """The parameters that are kept of a run that has come to its end.

        Returns:
          they, and where the best are kept the step that they are from: in the first process.

        Raises:
          InputError: the folder does not have those of the best step any more.
        """
        keep = self.keep
        if isinstance(keep, Last):
            return last, None
        done = all_of((self.folder / "summary.json").exists())  # a run that is finished once more
        folder = self.folder / ("model" if done else BEST)
        best = load_pretrained(folder, mesh=self.lm(last).model.mesh)[1]
        digest, step, problem = self.lm(best).digest, None, None
        if is_first():
            step, score = best_step(self.folder, keep)
            asked = self.folder / VALIDATION / str(step) / RESULTS
            start = " (the start: no later step was better)" if step == 0 else ""
            print(f"the result is the policy after step {step}{start}: score {score:.3f}")
            if read_json(asked)["weights"] != digest:
                problem = f"{folder}: not what {asked} measured: start the run again elsewhere"
        if any_of(problem is not None):
            raise InputError(problem or f"{folder}: not what was measured")
        return best, step


def rates_line(rates: Mapping[str, Any]) -> str:
    """The numbers of a `summary`, for a line."""
    return json.dumps({k: round(v, 3) for k, v in rates.items() if isinstance(v, int | float)})
