"""Stages of a run draw different noise of one seed, and nothing makes a key in passing."""

import ast
from pathlib import Path

import jax
import numpy as np

from jaxalign.sampling import Stage, stage_key

PACKAGE = Path(__file__).parents[2] / "jaxalign"
KEYS_OF_NO_STAGE = {
    "sampling/stages.py": "makes the stages' keys",
    "engine/checks.py": "draws a tiny network's weights",
    "planning/compiled_step.py": "traces a step",
    "engine/rounding.py": "rounds parameters, by the number of the update",
}


def test_the_third_batch_of_each_stage_is_another():
    """At f049777 batch 3 of self-generation and step 3 of training drew alike."""
    thirds = [jax.random.fold_in(stage_key(0, stage), 3) for stage in Stage]
    assert len({tuple(np.asarray(jax.random.key_data(key))) for key in thirds}) == len(Stage)


def test_a_stage_is_a_function_of_the_seed():
    assert stage_key(1, Stage.TRAINING) == stage_key(1, Stage.TRAINING)
    assert stage_key(1, Stage.TRAINING) != stage_key(2, Stage.TRAINING)


def test_no_other_module_makes_a_key():
    makers = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "jax.random.key":
                makers.add(str(path.relative_to(PACKAGE)))
    assert makers == set(KEYS_OF_NO_STAGE)
