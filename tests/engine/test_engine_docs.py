"""The examples of docs/engine.md run as they stand, one after the other."""

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "engine.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_worked_examples_run(capsys):
    names: dict[str, object] = {}
    for block in BLOCKS:
        exec(compile(block, str(PAGE), "exec"), names)
    said = capsys.readouterr().out
    for line in (
        "reward ",
        "halves ",
        "entropy in nats",
        "flax.linen:",
        "flax.nnx:",
        "equinox:",
        "adapter:",
        "tokens, log",
    ):
        assert line in said
