"""`jaxalign utility`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxalign.commands.common import (
    ChatTemplate,
    DtypeName,
    StopTexts,
    load_model,
    note,
    prepare_out,
    print_table,
    read_stops,
)
from jaxalign.host.errors import InputError


@dataclass(frozen=True)
class Utility:
    """Measure what a model can do beside refusing: tasks of lm-eval (pip install -e '.[eval]').

    jaxalign utility --model smollm2 --tasks gsm8k arc_challenge mmlu --limit 100 --out utility.json

    jaxalign utility --model runs/demo/model --tasks gsm8k_local --task-folder tasks --chat --out
    utility.json
    """

    model: str
    """smollm2, a Hugging Face folder, a .gguf file, or a hub id."""
    tasks: tuple[str, ...]
    """Names of lm-eval's tasks, groups or tags: gsm8k, hendrycks_math500, minerva_math500, mmlu,
    arc_challenge, gpqa_main_zeroshot, … Their data come from the hub."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")]
    """Write the numbers, and every item with its answer, to this JSON file."""
    task_folder: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """With YAML files of more tasks, such as ones on local data."""
    limit: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Take only the first so many items of each task (of each subject of mmlu)."""
    num_fewshot: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Worked examples before each item; by default what the task says."""
    chat: bool = False
    """Ask through the model's chat template."""
    batch_size: int = 16
    """Rows at a time: more is faster and takes more memory."""
    stop: StopTexts = ()
    """Texts and names of tokens that end an answer, beside those of a task; \\n is a line break."""
    dtype: DtypeName = "auto"
    """Of the computation; auto takes the faster one."""
    template: Annotated[ChatTemplate, tyro.conf.arg(name="")] = ChatTemplate()

    def run(self) -> None:
        """Prints the table and writes the file."""
        for flag, value, least in (
            ("--limit", self.limit, 1),
            ("--num-fewshot", self.num_fewshot, 0),
            ("--batch-size", self.batch_size, 1),
        ):
            if value is not None and value < least:
                raise InputError(f"{flag} is {value}; use {least} or more")
        stop = read_stops(self.stop)
        prepare_out(self.out)
        from jaxalign.host.progress import progress_bar
        from jaxalign.utility.tasks import evaluate_utility

        lm = load_model(self.model, self.dtype, self.template)
        with progress_bar(stderr=True) as bar:
            task = bar.add_task("requests", total=None)
            found = evaluate_utility(
                lm,
                self.tasks,
                task_folder=self.task_folder,
                limit=self.limit,
                num_fewshot=self.num_fewshot,
                chat=self.chat,
                batch_size=self.batch_size,
                stop=stop,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        from lm_eval.utils import handle_non_serializable

        self.out.write_text(json.dumps(found, indent=1, default=handle_non_serializable) + "\n")
        _print_results(found, f"{self.model}, {', '.join(self.tasks)}")
        if found["config"]["cut_contexts"]:
            note(f"{found['config']['cut_contexts']} contexts cut to fit the model")
        print(f"Written: {self.out}")


def _print_results(found: dict[str, Any], title: str) -> None:
    from jaxalign.reports.page import table

    rows = []
    for task, numbers in found["results"].items():
        count = found.get("n-samples", {}).get(task, {}).get("effective", "")
        for name, value in numbers.items():
            metric, comma, chosen = name.partition(",")
            if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                continue
            error = numbers.get(f"{metric}_stderr,{chosen}")
            shown = f"{error:.4f}" if isinstance(error, float) else ""
            rows.append((task, metric, chosen, f"{value:.4f}", shown, str(count)))
    headings = ("task", "metric", "filter", "value", "standard error", "n")
    print_table(title, table(headings, rows, texts=3))
