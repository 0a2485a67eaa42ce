"""A user's own Python functions, named on the command line as FILE.py:FUNCTION."""

import importlib.util
import itertools
import math
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
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
    """Runs a Python file of the user's and takes one function from it, FILE.py:FUNCTION.

    `flag` says in messages where it was given, such as `--helpfulness`.

    Raises:
      InputError: another form, no such file or function, or a file that cannot be imported.
    """
    file, _, name = spec.rpartition(":")
    if not file.endswith(".py") or not name.isidentifier():
        raise InputError(f"{flag} {spec}: give FILE.py:FUNCTION, such as mine.py:score")
    path = Path(file).expanduser()
    if not path.is_file():
        raise InputError(f"{flag} {spec}: no file {file}; give a Python file that is there")
    module_name = f"_user_{path.stem}_{abs(hash(path.resolve()))}"
    module = load_module(path, module_name, f"{flag} {spec}: {file}")
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"{flag} {spec}: {file} has no function {name}; name one that it has")
    return function


def load_module(path: Path, name: str, file: str) -> ModuleType:
    """Runs a Python file, which ends with .py, as a module of this name.

    The file may import modules that lie beside it, unless one of that name is installed, or loaded
    already.

    Raises:
      InputError: it cannot be imported; the message begins with `file`.
    """
    found = importlib.util.spec_from_file_location(name, path.resolve())
    assert found is not None and found.loader is not None  # it ends with .py
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # last, so that it hides nothing
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
        except InputError:  # says what is wrong itself
            raise
        except (Exception, SystemExit) as error:  # whatever the user's code does
            raise InputError(f"{where}: it raised {describe(error)}; mend it") from error

    return call


def numbers_of(returned: Any, where: str, most: int | None = None) -> np.ndarray:
    """What a user's function returned for some answers: float32, `[n]` or of the array's shape.

    Anything in order will do: lists, generators, arrays of any library, on any device and with
    gradients, whose items are numbers of any kind: bool, Decimal, scalars of NumPy and PyTorch.
    `most` are due; of more, as of an endless generator, one more is taken.

    Raises:
      InputError: it is nothing of that kind, or one of the items is no number; begins with `where`.
    """
    if isinstance(returned, str | bytes | Mapping | Set) or not isinstance(returned, Iterable):
        raise InputError(f"{where}: it returned {in_short(returned)}; return a list of numbers")

    def take() -> tuple[list[Any], tuple[int, ...]]:
        if not hasattr(returned, "tolist"):
            items = list(itertools.islice(returned, None if most is None else most + 1))
            return items, (len(items),)
        array = np.array(returned.tolist(), object)
        return list(array.ravel()), array.shape

    items, shape = guarded(take, where)()  # a generator runs the user's code
    values = np.zeros(len(items))
    for index, item in enumerate(items):
        try:
            plain = item.tolist() if hasattr(item, "tolist") else item
            values[index] = float("no number" if isinstance(plain, str | bytes) else plain)
        except (Exception, SystemExit):  # whatever a user's object does when asked for a number
            raise InputError(
                f"{where}: it gave {in_short(item)} to answer {index + 1} of {len(items)}; return "
                "a number for each"
            ) from None
    with np.errstate(over="ignore"):
        return values.astype(np.float32).reshape(shape)


def scoring_texts(
    function: Callable[..., Any], where: str, low: float = -math.inf, high: float = math.inf
) -> ScoreTexts:
    """A function that takes n requests and n answers as lists and returns n finite numbers.

    What comes of it raises an InputError that begins with `where` where it does something else, or
    leaves what is between `low` and `high`.
    """
    call = guarded(function, where)
    due = "finite numbers" if math.isinf(high) else f"numbers between {low:g} and {high:g}"

    def score(requests: Sequence[str], answers: Sequence[str]) -> np.ndarray:
        count = len(answers)
        values = numbers_of(call(list(requests), list(answers)), where, count)
        if values.shape != (count,):
            found = f"{len(values)} numbers" if values.ndim == 1 else f"the shape {values.shape}"
            found = f"more than {count} numbers" if values.size > count else found
            raise InputError(
                f"{where}: it returned {found} for {count} answers; return one number for each"
            )
        right = np.isfinite(values) & (low <= values) & (values <= high)
        if not right.all():
            row = int(np.argmin(right))
            raise InputError(
                f"{where}: it gave {values[row]} to answer {row + 1} of {count}, "
                f"{in_short(answers[row])}; return {due}"
            )
        return values

    return score


def in_short(value: Any) -> str:
    """One line that shows a value."""
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of a user's class, or of an integer with thousands of digits
        text = f"a {type(value).__name__}"
    return text if len(text) <= 40 else f"{text[:40]}…"


def describe(error: BaseException) -> str:
    """An exception of the user's code in one line: its type and the first line of its text."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
