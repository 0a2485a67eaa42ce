"""Every command of README, docs and help: the program itself parses it, and here it runs in small.

A command that is added to a document is tested without anything to add here, as long as its
program is in `PARSERS`.
"""

import json
import re
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from documented_commands import ROOT, Command, documented_commands

from jaxalign import cli
from jaxalign.commands.pages import load_page, named_pages
from jaxalign.commands.plan import Plan
from jaxalign.commands.train import Train
from jaxalign.data.suites import SUITES
from jaxalign.evaluation.attacks import make_attack
from jaxalign.host import command as host_command
from jaxalign.planning.scripts import read_settings
from jaxalign.runs import ablation
from jaxalign.runs.choices import to_json
from jaxalign.runs.settings import Settings

COMMANDS = documented_commands()

COMMAND_CLASSES = (
    *(cli.Train, cli.Eval, cli.Compare, cli.Generate),
    *(cli.Plan, cli.Report, cli.Utility, cli.Export),
)

# Words in the place of which docs/cada.md has a table.
PLACEHOLDERS = {"ARMS": "rl", "RATES": "1e-5"}

# The pages, each with a preset, that take a comparison's flags behind `--`.
PASSED_ON = {
    "alphaalign": (("alphaalign", "demo"), ("direct_refusal", "smollm2")),
    "cada": (("cada", "smollm2"),),
    "ifpo": (("ascl", "smollm2"),),
}

SCORERS = '''

def score(requests, completions):
    """For --helpfulness."""
    return [0.5 for _ in completions]


def shortness(batch, samples):
    """For --add-reward, which knows it as `short`."""
    return -samples.mask.sum(axis=1) / 16.0


page_short, short = short, lambda *given: (shortness if len(given) == 2 else page_short)(*given)
'''


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of a reader's own that commands name."""
    folder = tmp_path_factory.mktemp("own")
    write_files(folder)
    return folder


def write_files(folder: Path) -> None:
    page = (ROOT / "experiments" / "short_reasoning.py").read_text()
    (folder / "mine.py").write_text(page + SCORERS)
    (folder / "mine.yaml").write_bytes((ROOT / "jaxalign/data/files/rules.yaml").read_bytes())
    run = folder / "runs" / "mine"
    run.mkdir(parents=True)
    settings = load_page("alphaalign").PRESETS["demo"]
    (run / "config.json").write_text(json.dumps(to_json(settings)))


# --- the program's own parser takes it -----------------------------------------------------------


def parse_page(page: ModuleType, preset: str, flags: Sequence[str]) -> Settings | None:
    """As `main_of` does, and the checks that need no model; nothing where help is asked for."""
    try:
        return read_settings(page, preset, flags)
    except SystemExit as stop:
        assert stop.code == 0 and "--help" in (preset, *flags), "see what is said above"
        return None


def parse_jaxalign(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """By `main`, but that commands are kept instead of run."""
    given: list[Any] = []
    for kind in COMMAND_CLASSES:
        monkeypatch.setattr(kind, "run", lambda command: given.append(command))
    assert cli.main(words) == 0, "see what is said above"
    (parsed,) = given
    if isinstance(parsed, Train):
        parse_page(load_page(parsed.page), parsed.flags[0], parsed.flags[1:])
    elif isinstance(parsed, Plan):
        settings = parse_page(load_page(parsed.page), parsed.preset, parsed.flags)
        assert settings is not None
        settings.check_plan()
    elif isinstance(parsed, cli.Eval):
        for attack in parsed.attack:
            if attack != "…":
                make_attack(attack)
        for suite in parsed.suites:
            name, equals, _ = suite.partition("=")
            assert equals or ":" in name or name in SUITES, f"{name} is no suite"


def parse_python(words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A script of experiments/, by its path, beside which it finds others, or by -m."""
    if words[0] == "-m":
        path, words = ROOT / (words[1].replace(".", "/") + ".py"), words[2:]
    else:
        path, words = ROOT / words[0], words[1:]
        monkeypatch.syspath_prepend(path.parent)
    assert path.is_file(), f"there is no {path.relative_to(ROOT)}"
    if path in named_pages().values():
        parse_page(load_page(path.stem), words[0], words[1:])
    elif "run_command(" not in path.read_text():
        assert not words, f"{path.name} takes no arguments"
    else:
        parse_script(path, words, monkeypatch)


def parse_script(path: Path, words: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """By `run_command` with all that the script gives it, but its `main`."""
    parsed: list[Any] = []
    parse = host_command.run_command

    def only_parse(name: str, settings: type, main: object, doc: str, **more: bool) -> None:
        parse(name, settings, lambda *given: parsed.extend(given), doc, **more)

    monkeypatch.setattr(host_command, "run_command", only_parse)
    monkeypatch.setattr(sys, "argv", [str(path), *words])
    script = runpy.run_path(str(path), run_name="__main__")
    settings, *passed_on = parsed
    assert set(getattr(settings, "arms", ())) <= set(script.get("ARMS", ())), "no such arm"
    for flags in passed_on:
        arms = script["arms_of"](settings) if "arms_of" in script else script["ARMS"]
        ablation.check(settings, arms, flags, ours=script["OURS"])
        for page, preset in PASSED_ON[path.stem]:
            parse_page(load_page(page), preset, flags)


def parse_make(words: Sequence[str], _: pytest.MonkeyPatch) -> None:
    """What it would run, by make itself."""
    subprocess.run(["make", "--dry-run", *words], cwd=ROOT, check=True, capture_output=True)


def parse_pip(words: Sequence[str], _: pytest.MonkeyPatch) -> None:
    """`install` of the clone with constraints and an extra that there are."""
    install, constrain, constraints, editable, clone = words
    assert (install, constrain, editable) == ("install", "-c", "-e")
    assert (ROOT / constraints).is_file()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extra,) = re.fullmatch(r"\.\[(\w+)\]", clone).groups()  # type: ignore[union-attr]
    assert extra in project["optional-dependencies"]


def parse_source(words: Sequence[str], _: pytest.MonkeyPatch) -> None:
    """The environment that make builds."""
    (path,) = words
    assert re.fullmatch(r"\.venv-3\.1[123]/bin/activate", path)


def parse_file(words: Sequence[str], _: pytest.MonkeyPatch) -> None:
    """A file of the clone comes first."""
    assert (ROOT / words[0]).is_file(), f"there is no {words[0]}"


PARSERS: dict[str, Callable[[Sequence[str], pytest.MonkeyPatch], None]] = {
    "jaxalign": parse_jaxalign,
    "python": parse_python,
    "make": parse_make,
    "pip": parse_pip,
    "source": parse_source,
    "cp": parse_file,
    "bash": parse_file,
}


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_the_program_takes_it(
    command: Command, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, *words = (PLACEHOLDERS.get(word, word) for word in command.words)
    assert program in PARSERS, (
        f"{command}: nothing here tells whether {program!r} takes this: add it to PARSERS, or give "
        "the fence a language (```text) if it is no command"
    )
    monkeypatch.chdir(files)
    PARSERS[program](words, monkeypatch)
