"""FILE.py:FUNCTION on the command line."""

import pytest

from jaxalign.host.errors import InputError
from jaxalign.host.user_functions import load_function, names_function


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
