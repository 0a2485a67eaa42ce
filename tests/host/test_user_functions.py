"""FILE.py:FUNCTION on the command line."""

import itertools
from decimal import Decimal
from fractions import Fraction

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxalign.host.errors import InputError
from jaxalign.host.user_functions import load_function, names_function, scoring_texts


def test_a_function_is_taken_from_its_file(tmp_path):
    """With what the file itself makes, such as a dataclass."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from __future__ import annotations\nimport dataclasses\n\n"
        "@dataclasses.dataclass\nclass Pair:\n    left: int\n    right: int\n\n"
        "def add(pair):\n    return Pair(*pair).left + Pair(*pair).right\n"
    )
    assert load_function(f"{file}:add", "--judge")((2, 3)) == 5


def test_a_file_may_import_its_neighbour(tmp_path):
    (tmp_path / "neighbour_of_mine.py").write_text("STEP = 5\n")
    file = tmp_path / "mine.py"
    file.write_text("from neighbour_of_mine import STEP\n\ndef add(x):\n    return x + STEP\n")
    assert load_function(f"{file}:add", "--judge")(2) == 7


def test_what_names_a_function():
    assert names_function("a/mine.py:score") and names_function("mine.py")
    assert not names_function("likelihood")
    assert not names_function("owner/model.python") and not names_function("runs/x.py/model")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mine.py", "give FILE.py:FUNCTION, such as mine.py:score"),
        ("{}/mine.py:", "give FILE.py:FUNCTION"),
        ("{}/nothere.py:score", "no file "),
        ("{}/mine.py:nothere", "has no function nothere; name one that it has"),
        ("{}/mine.py:NUMBER", "has no function NUMBER"),
        ("{}/broken.py:score", "cannot be imported (ZeroDivisionError: division by zero); mend it"),
        ("{}/typo.py:score", "cannot be imported (SyntaxError"),
        ("{}/leaves.py:score", "cannot be imported (SystemExit: 3); mend it"),
    ],
)
def test_bad_names_are_one_line(spec, message, tmp_path):
    (tmp_path / "mine.py").write_text("NUMBER = 3\n")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "typo.py").write_text("def score(:\n")
    (tmp_path / "leaves.py").write_text("import sys\nsys.exit(3)\n")
    spec = spec.format(tmp_path)
    with pytest.raises(InputError) as error:
        load_function(spec, "--judge")
    assert message in str(error.value) and str(error.value).startswith(f"--judge {spec}: ")
    assert "\n" not in str(error.value)


# --- what they return ----------------------------------------------------------------------------


def scored(returned, count=3, **limits):
    """What is made of it, or the one line that is said of it."""
    score = scoring_texts(lambda requests, answers: returned, "mine.py:f", **limits)
    return score(["?"] * count, ["!"] * count)


@pytest.mark.parametrize(
    "returned",
    [
        [0, True, 0.5],
        (False, 1, 0.5),
        [Decimal("0"), Fraction(1), np.float16(0.5)],
        [np.array(0), jnp.float32(1), np.array(0.5, ml_dtypes.bfloat16)],
        np.array([0, 1, 0.5], np.longdouble),
        np.array([0, 1, Fraction(1, 2)], object),
        np.array([0, 1, 0.5], ml_dtypes.bfloat16),
        jnp.array([0, 1, 0.5], jnp.bfloat16),
        {"a": 0, "b": 1, "c": 0.5}.values(),
    ],
    ids=str,
)
def test_numbers_of_any_kind_are_converted(returned):
    values = scored(returned)
    assert values.dtype == np.float32 and values.tolist() == [0, 1, 0.5]


def test_a_generator_is_read_as_far_as_numbers_are_due():
    assert scored(x / 2 for x in (0, 1, 2)).tolist() == [0, 0.5, 1]
    with pytest.raises(InputError, match="it returned more than 3 numbers for 3 answers"):
        scored(itertools.repeat(1.0))
    with pytest.raises(InputError, match="f: it raised ZeroDivisionError: .*; mend it"):
        scored(1 / x for x in (1, 0))


def test_values_of_pandas():
    pandas = pytest.importorskip("pandas")
    assert scored(pandas.Series([0, 1, 0.5], index=[7, 7, 1])).tolist() == [0, 1, 0.5]
    with pytest.raises(InputError, match="it gave <NA> to answer 2 of 3"):
        scored(pandas.Series([0, None, 1], dtype="Int64"))


@pytest.mark.torch
def test_values_of_torch():
    """Also those that want gradients, and those in a dtype that NumPy lacks."""
    torch = pytest.importorskip("torch", reason="torch is only installed on Python 3.11")
    for dtype in (torch.float32, torch.bfloat16):
        values = torch.tensor([0, 1, 0.5], dtype=dtype, requires_grad=True)
        for returned in (values, list(values), 1 * values):
            assert scored(returned).tolist() == [0, 1, 0.5]
    with pytest.raises(InputError, match=r"it returned the shape \(3, 1\) for 3 answers"):
        scored(values[:, None])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "it returned None; return a list of numbers"),
        (0.5, "it returned 0.5; return a list of numbers"),
        ("123", "it returned '123'; return a list of numbers"),
        ({"a": 1, "b": 0, "c": 1}, "it returned {'a': 1, 'b': 0, 'c': 1}; return a list of"),
        ({0, 1, 2}, "it returned {0, 1, 2}; return a list of numbers"),
        (np.array(0.5), "it returned the shape () for 3 answers; return one number for each"),
        (np.zeros((3, 1)), "it returned the shape (3, 1) for 3 answers"),
        ([], "it returned 0 numbers for 3 answers; return one number for each"),
        ([1, 1, 1, 1], "it returned more than 3 numbers for 3 answers"),
        (np.ones(5), "it returned more than 3 numbers for 3 answers"),
        ([0, None, 1], "it gave None to answer 2 of 3; return a number for each"),
        ([0, 1, "0.5"], "it gave '0.5' to answer 3 of 3; return a number for each"),
        (np.array(["0", "1", "1"]), "it gave '0' to answer 1 of 3"),
        ([[0], [1], [2]], "it gave [0] to answer 1 of 3"),
        ([np.zeros(1), 0, 1], "it gave array([0.]) to answer 1 of 3"),
        ([0, 1j, 1], "it gave 1j to answer 2 of 3"),
        (np.array([0, 1j, 1]), "it gave 0j to answer 1 of 3"),
        ([0, 10**400, 1], "to answer 2 of 3; return a number for each"),
        ([0, float("nan"), 1], "it gave nan to answer 2 of 3, '!'; return finite numbers"),
        ([0, 1, Decimal("Infinity")], "it gave inf to answer 3 of 3, '!'; return finite numbers"),
        ([0, 1e300, 1], "it gave inf to answer 2 of 3, '!'; return finite numbers"),
    ],
)
def test_what_is_no_number_for_each_is_one_line(returned, message):
    with pytest.raises(InputError) as error:
        scored(returned)
    assert str(error.value).startswith("mine.py:f: it ") and message in str(error.value)
    assert "\n" not in str(error.value)


def test_numbers_beyond_what_is_due_are_one_line():
    with pytest.raises(InputError, match="gave -0.5 to answer 2 of 3, '!'; return numbers between"):
        scored([0, -0.5, 1], low=0, high=1)


class Unshown(float):
    """Of a user's own."""

    def __float__(self):
        raise SystemExit(0)

    def __repr__(self):
        raise ValueError("no")


def exits(requests, answers):
    raise SystemExit(0)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (exits, "f: it raised SystemExit: 0; mend it"),
        (lambda *_: [10**5000], "it gave a int to answer 1 of 1; return a number"),
        (lambda *_: [Unshown()], "it gave a Unshown to answer 1 of 1; return a number"),
    ],
)
def test_what_a_users_object_does_ends_in_one_line(function, message):
    with pytest.raises(InputError, match=message):
        scoring_texts(function, "f")(["?"], ["!"])
