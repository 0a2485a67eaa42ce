"""What a model is worth beside its safety: tasks of `lm-eval`, such as GSM8K, MMLU and ARC."""

import difflib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxalign.answers.asking import LanguageModel, Progress
from jaxalign.answers.completing import check_sizes
from jaxalign.host.errors import InputError
from jaxalign.host.processes import first_line

# Of what lm-eval returns: the numbers and what they depend on, nothing about the machine.
_KEPT = (
    "results",
    "groups",
    "group_subtasks",
    "config",
    "configs",
    "versions",
    "n-shot",
    "n-samples",
    "higher_is_better",
    "samples",
)


def evaluate_utility(
    lm: LanguageModel,
    tasks: Sequence[str],
    *,
    task_folder: Path | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    chat: bool = False,
    batch_size: int = 16,
    stop: Sequence[str] = (),
    progress: Progress = lambda done, total: None,
) -> dict[str, Any]:
    """Runs tasks of `lm-eval` by `jaxalign.utility.lm_eval_adapter.JaxalignLM`.

    Tasks are its tasks, groups or tags; the data of most come from the hub. `task_folder` has YAML
    files of more, such as ones on local data. `limit` takes only the first so many items of each
    task (of each subject of MMLU), `num_fewshot` is of worked examples before each item (None: as
    the task says), and `chat` asks through the tokenizer's chat template. `stop` ends an answer
    beside what a task has. `progress` is as for `JaxalignLM`.

    Returns:
      of `lm-eval`'s results: `results` (task -> metric,filter -> value), `groups`, `configs`,
      `versions`, `samples` (every item with the answer) and so on; some of its values are no JSON.

    Raises:
      InputError: `lm-eval` is not installed, no or unknown tasks, a task that cannot be loaded or
        run here, or a number out of range.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("lm-eval is not installed; pip install -e '.[eval]' in the clone")
    if not tasks:
        raise InputError("no tasks; give at least one, such as gsm8k")
    check_sizes(batch_size=batch_size, limit=limit)
    if num_fewshot is not None and num_fewshot < 0:
        raise InputError(f"num_fewshot is {num_fewshot}; use 0 or more")
    if task_folder is not None and not task_folder.is_dir():
        raise InputError(f"{task_folder}: no such folder; give one with YAML files of tasks")
    import lm_eval

    from jaxalign.utility.lm_eval_adapter import JaxalignLM

    manager, loaded = _load(tasks, task_folder)
    # lm-eval would fork this process for some standard errors, which JAX's threads may not survive.
    os.environ.setdefault("DISABLE_MULTIPROC", "1")
    found = lm_eval.simple_evaluate(
        JaxalignLM(lm, batch_size=batch_size, stop=stop, progress=progress),
        tasks=loaded,
        task_manager=manager,
        limit=limit,
        num_fewshot=num_fewshot,
        apply_chat_template=chat,
    )
    return {name: found[name] for name in _KEPT if name in found}


def _load(names: Sequence[str], folder: Path | None) -> tuple[Any, list[Any]]:
    """Their manager, and tasks and groups by name, with their data."""
    from lm_eval.tasks import TaskManager

    path = None if folder is None else str(folder)
    manager = TaskManager(include_path=path, include_defaults=False)
    if not set(names) <= set(manager.all_tasks):  # to read all of its own takes seconds
        manager = TaskManager(include_path=path)
    for name in names:
        if name not in manager.all_tasks:
            near = difflib.get_close_matches(name, manager.all_tasks, n=5)
            hint = f"nearest: {', '.join(near)}" if near else "`lm-eval ls tasks` lists them"
            raise InputError(f"lm-eval has no task {name!r}; {hint}")
    built: list[Any] = []
    for name in dict.fromkeys(names):
        try:
            loaded = manager.load(name)
        except ImportError as error:
            raise InputError(
                f"task {name}: {first_line(error)} (pip install -e '.[eval]' in the clone)"
            ) from error
        except Exception as error:  # of datasets, huggingface-hub, httpx, YAML, …
            raise InputError(
                f"task {name}: cannot be loaded ({type(error).__name__}: {first_line(error)}); "
                "check the connection to the hub, whether its data need a login (GPQA's do), or, "
                "of a task in a folder, its files"
            ) from error
        group = loaded.get("groups", {}).get(name)
        built += list(loaded["tasks"].values()) if group is None else [group]
    return manager, built
