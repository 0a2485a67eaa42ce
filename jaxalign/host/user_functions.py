"""A user's own Python functions, named on the command line as FILE.py:FUNCTION."""

import importlib.util
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from jaxalign.host.errors import InputError

ScoreTexts = Callable[[Sequence[str], Sequence[str]], np.ndarray]
"""`(requests, answers) -> [n]` float32; higher is better."""


def names_function(spec: str) -> bool:
    """Whether a text is of the form FILE.py:FUNCTION, or is a FILE.py that lacks its function."""
    return re.search(r"\.py(:[^/]*)?$", spec) is not None


def load_function(spec: str, flag: str) -> Callable[..., Any]:
    """Runs a Python file of the user's and takes one function from it.

    The file may import modules that lie beside it, unless one of that name is installed, or loaded
    already.

    Args:
      spec: FILE.py:FUNCTION, such as `rewards/mine.py:politeness`.
      flag: where it was given, for messages, such as `--helpfulness`.

    Raises:
      InputError: another form, no such file or function, or a file that cannot be imported.
    """
    file, _, name = spec.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise InputError(f"{flag} {spec}: give FILE.py:FUNCTION, such as mine.py:score")
    path = Path(file).expanduser()
    if not path.is_file():
        raise InputError(f"{flag} {spec}: no file {file}; give a Python file that is there")
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # last, so that it hides nothing
    module_name = f"_user_{path.stem}_{abs(hash(path.resolve()))}"
    module = load_module(path, module_name, f"{flag} {spec}: {file}")
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"{flag} {spec}: {file} has no function {name}; name one that it has")
    return function


def load_module(path: Path, name: str, file: str) -> ModuleType:
    """Runs a Python file, which ends with .py, as a module of this name.

    Raises:
      InputError: it cannot be imported; the message begins with `file`.
    """
    found = importlib.util.spec_from_file_location(name, path.resolve())
    assert found is not None and found.loader is not None  # it ends with .py
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # whatever the file does when it is read
        del sys.modules[name]
        raise InputError(f"{file} cannot be imported ({describe(error)}); mend it") from error
    return module


def guarded(function: Callable[..., Any], where: str) -> Callable[..., Any]:
    """The function; what it raises becomes an InputError that begins with `where`."""

    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:  # whatever the user's code does
            raise InputError(f"{where}: it raised {describe(error)}; mend it") from error

    return call


def scoring_texts(function: Callable[..., Any], where: str) -> ScoreTexts:
    """A function that takes n requests and n answers as lists and returns n finite numbers.

    What comes of it raises an InputError that begins with `where` where it does something else.
    """
    call = guarded(function, where)

    def score(requests: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        returned = call(list(requests), list(answers))
        try:
            values = np.asarray(returned, np.float32)
        except (TypeError, ValueError):
            values = np.asarray(0.0)
        if values.shape != (len(answers),):
            text = " ".join(repr(returned).split())[:40]
            count = f"{len(returned)} things" if isinstance(returned, list) else text
            raise InputError(
                f"{where}: it returned {count} for {len(answers)} answers; return a list with one "
                "number for each"
            )
        if not np.isfinite(values).all():
            row = int(np.argmin(np.isfinite(values)))
            raise InputError(
                f"{where}: it gave {values[row]} to the answer {answers[row][:40]!r}; return "
                "finite numbers"
            )
        return values

    return score


def describe(error: BaseException) -> str:
    """An exception of the user's code in one line: its type and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
