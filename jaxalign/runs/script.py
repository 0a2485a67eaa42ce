"""An experiment's script: evaluate, train, evaluate again, report; and how it ends."""

import contextlib
import dataclasses
import io
import os
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxalign.data import Prompt
from jaxalign.engine.optimizer import skipped_updates
from jaxalign.host.colors import heed_no_color
from jaxalign.host.devices import skip_absent_tpu
from jaxalign.host.errors import InputError
from jaxalign.host.json_files import read_json
from jaxalign.host.processes import are_several, first_line, is_first, is_loss, join, locked_for_all
from jaxalign.host.user_functions import in_short
from jaxalign.models import Transformer
from jaxalign.reports.seeds_page import seed_folders, write_seeds_report
from jaxalign.runs.checkpoint import format_problem
from jaxalign.runs.choices import change, to_json
from jaxalign.runs.experiment import Experiment
from jaxalign.runs.loop import DivergedError, Interrupted, Interruption
from jaxalign.runs.recipe import Recipe
from jaxalign.runs.settings import LOOP_ONLY, Settings, parse
from jaxalign.runs.start_model import load_start
from jaxalign.text.chat_template import day_of

Build = Callable[[Any, Transformer, Any, list[Prompt]], Recipe]
"""`(settings, model, tokenizer, prompts) -> Recipe`: the script's own part."""


def main_of(
    name: str,
    presets: Mapping[str, Settings],
    build: Build,
    doc: str | None,
    *,
    prog: str | None = None,
) -> Callable[[Sequence[str] | None], int]:
    """The `main` of a script, which runs one preset and returns the exit code.

    It is 0, also when SIGTERM or Ctrl-C made the run save and stop; 2 after bad input; 1 after a
    run that diverged; 130 after a second Ctrl-C; 75 (EX_TEMPFAIL) where another process of the run
    is lost. One of several processes does not return but ends, unless with 0.

    Args:
      name: the script's, before each message.
      presets: settings by name.
      build: what a run of them trains.
      doc: the script's docstring, for its help.
      prog: the command that runs it, for its help; by default NAME.py.
    """

    def main(argv: Sequence[str] | None = None) -> int:
        """Runs one preset; returns the exit code."""
        given = heed_no_color(sys.argv[1:] if argv is None else argv)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)  # a redirected log can be watched
        skip_absent_tpu()
        script = prog or f"{name}.py"
        code = _exit_code(name, lambda: parse(given, presets, script=script, doc=doc), build)
        if code and are_several():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # what JAX does at exit would wait for the others
        return code

    return main


def _run_all(settings: Settings, build: Build, interruption: Interruption) -> None:
    """One run; with --seeds one of each, and the page on all of them."""
    if not settings.seeds:
        _run(settings, build, interruption)
        return
    join(settings.start.processes)
    with _alone_in(settings.run):
        for one in _of_seeds(settings):
            if one.resume and (one.run / "summary.json").exists():
                continue
            print(f"seed {one.seed}, in {one.run}")
            for path, config in _kept(settings).items():
                if one.start.dtype == "auto" and path.parent != one.run:  # not what a probe says
                    one = change(one, dtype=config["facts"]["compute_dtype"])
            one = dataclasses.replace(one, resume=one.resume and one.started)
            among = {path: x for path, x in _kept(settings).items() if path.parent != one.run}
            if _run(one, build, interruption, among):
                return
        if is_first():
            print(f"wrote {write_seeds_report(settings.run)}")


def _kept(settings: Settings) -> dict[Path, Any]:
    """The config.json of each seed that has begun."""
    paths = [run / "config.json" for run in seed_folders(settings.run).values()]
    found = {path: read_json(path) for path in paths if path.exists()}
    for path, config in found.items():
        if problem := format_problem(config.get("run_format"), path):
            raise InputError(problem)
    return found


def _of_seeds(settings: Settings) -> list[Settings]:
    """The settings of each seed; refuses those that do not go with the runs there are."""
    if len(set(settings.seeds)) < len(settings.seeds):
        raise InputError(f"seeds={settings.seeds} has one twice: give each once")
    if (settings.run / "config.json").exists():
        raise InputError(f"{settings.run} holds a run without --seeds: choose another --run")
    kept = _kept(settings)
    days = [config["template_date"] for config in kept.values()]
    day = day_of(settings.start.template_date or next(iter(days), None))  # of all of them
    settings = change(settings, template_date=day)
    ours, may_differ = to_json(settings), (*LOOP_ONLY, "seed", "seeds")
    for path, config in kept.items():
        for name, theirs in config.items():
            if name not in may_differ and ours.get(name, theirs) != theirs:
                raise InputError(
                    f"{path}: {name} was {theirs!r} and is now {ours[name]!r}: give all seeds the "
                    "same settings, or choose another --run"
                )
    runs = [
        dataclasses.replace(settings, seed=seed, seeds=(), run=settings.run / f"seed-{seed}")
        for seed in settings.seeds
    ]
    for one in runs:
        if not (one.resume and (one.started or (one.run / "summary.json").exists())):
            one = dataclasses.replace(one, resume=False)
            one.check()
            one.check_folder()
    return runs


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Locks a run folder, new or not; a run that is refused leaves no new one behind."""
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise InputError(f"{folder} is no folder: choose another --run") from None
    try:
        with locked_for_all(folder, "another --run"):
            yield
    finally:
        if new:
            with contextlib.suppress(OSError):  # there is something in it
                folder.rmdir()


def _run(
    settings: Settings,
    build: Build,
    interruption: Interruption,
    among: Mapping[Path, Any] = types.MappingProxyType({}),
) -> bool:
    """Evaluates, trains, evaluates again and writes the run folder; whether it was interrupted.

    `among` are the config.json of runs that it must share model, prompts and dtype with.
    """
    begun = time.perf_counter()
    settings.check()
    join(settings.start.processes)
    with _alone_in(settings.run):
        settings.check_folder()
        heldout = settings.data.load(settings.data.heldout)
        prompts, validation = settings.part_prompts(heldout)
        model, params, tokenizer = load_start(settings)
        recipe = build(settings, model, tokenizer, prompts)
        if not isinstance(recipe, Recipe):
            raise InputError(f"build returns {in_short(recipe)}: it must return a Recipe")
        experiment = Experiment(
            settings,
            recipe,
            model=model,
            tokenizer=tokenizer,
            prompts=prompts,
            heldout=heldout,
            validation=validation,
            interruption=interruption,
            begun=begun,
        )
        for path, config in among.items():
            experiment.check_shared(path, config["facts"])
        evaluations = {"before": experiment.assess("before", params)}
        if recipe.cold_start is not None:
            params = recipe.cold_start(experiment, params)
            evaluations["after_cold_start"] = experiment.assess("after_cold_start", params)
        training = experiment.training(params)
        state = training.start(params)
        del params  # or the float32 start model would stay in memory
        state, interrupted = experiment.train(training, state)
        if not interrupted:
            skipped = int(skipped_updates(state.opt_state))
            result = experiment.result(state.policy)
            del state  # its moments, and where another policy is the result its parameters
            evaluations["after"] = experiment.assess("after", result.policy)
            speed = None if training.speed is None else training.speed(result.policy)
            experiment.finish(result, evaluations, skipped, speed)
        return interrupted


def _exit_code(name: str, read: Callable[[], Settings], build: Build) -> int:
    """Runs, and turns what goes wrong into one line."""
    try:
        with Interruption() as interruption:
            _run_all(read(), build, interruption)
    except (InputError, OSError, DivergedError) as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 1 if isinstance(error, DivergedError) else 2
    except KeyboardInterrupt:
        print(f"{name}: stopped at once: --resume goes on from the last checkpoint")
        return 130
    except Interrupted as stop:
        print(f"interrupted {stop}: go on with --resume where there is a checkpoint, else without")
    except Exception as error:
        if is_loss(error):
            print(
                f"{name}: error: another process of the run is lost ({first_line(error)}): start "
                "all of them again, with --resume where there is a checkpoint",
                file=sys.stderr,
            )
            return os.EX_TEMPFAIL
        if not are_several():
            raise
        traceback.print_exc()
        return 1
    return 0
