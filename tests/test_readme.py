"""The Python of the README runs as it stands, one block after the other."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow
def test_the_blocks_run(capsys):
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL):
        exec(compile(block, str(README), "exec"), names)
    said = capsys.readouterr().out
    assert "[[ 0.8658754 -0.8658754  0.8658754 -0.8658754]]" in said
    assert "'terms/safety':" in said and "'terms/short':" in said
