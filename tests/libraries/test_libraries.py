"""docs/losses.md: every row against the library it names, live and by numbers stored from it."""

import ast
import functools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from libraries import arrays, verl_settings

import jaxalign.losses
from jaxalign.losses import token_logps

HERE = Path(__file__).parent
TABLE = HERE.parents[1] / "docs" / "losses.md"
GOLDEN = HERE / "golden.json"

# What each section's losses are differentiated by, in TRL's rows and in tunix's: TRL is handed
# log-probs, tunix computes them from a model's logits.
BY = {
    "Policy loss": {"TRL": "logp", "tunix": "logits"},
    "Value loss": {"tunix": "values"},
    "Preferences": {"TRL": "answers", "tunix": "logits"},
    "Supervised": {"TRL": "logits", "tunix": "logits"},
}


class Row(NamedTuple):
    section: str
    package: str
    setting: str
    call: str

    @property
    def name(self) -> str:
        return f"{self.section}: {self.package} {self.setting}"

    @property
    def by(self) -> str | None:
        return BY.get(self.section, {}).get(self.package)


def table() -> list[Row]:
    rows, section = [], ""
    for line in TABLE.read_text().splitlines():
        if line.startswith("## "):
            section = line[3:]
        elif match := re.fullmatch(r"\| (TRL|tunix|verl) \| `(.+)` \| `(.+)` \|", line):
            rows.append(Row(section, *match.groups()))
        else:
            assert not line.startswith(("| TRL", "| tunix", "| verl")), f"not a row: {line}"
    return rows


ROWS = table()


def our_arrays(by: str | None, given: Any) -> dict[str, Any]:
    """The names that a call may use; the array that the gradient is taken of is `given`."""
    names = {k: jnp.asarray(v) for k, v in vars(arrays).items() if isinstance(v, np.ndarray)}
    names |= {"N": arrays.N, "G": arrays.G, "B": arrays.B, "T": arrays.T, "jnp": jnp}
    names |= {"drawn": jnp.arange(arrays.T) < arrays.lengths[:, None]}
    names |= {"finished": jnp.any(names["mask"], axis=1)}
    if by == "answers":
        names["chosen_logp"], names["rejected_logp"] = jnp.split(given, 2)
    elif by is not None:
        names[by] = given
    if by == "logits":
        names["logp"] = token_logps(given, names["tokens"])
        sums = jnp.sum(names["logp"] * arrays.pair_mask, axis=1)
        names["chosen_logp"], names["rejected_logp"] = jnp.split(sums, 2)
        counts = jnp.sum(names["pair_mask"], axis=1)
        names["chosen_length"], names["rejected_length"] = jnp.split(counts, 2)
    return names


@functools.cache
def ours(row: Row) -> tuple[np.ndarray, np.ndarray | None]:
    """Our call's value and, of a loss that is checked live, its gradient."""

    def call(given: Any) -> Any:
        return eval(row.call, {**vars(jaxalign.losses), **our_arrays(row.by, given)})

    if row.by is None:
        return np.asarray(call(None)), None
    answers = np.concatenate([arrays.chosen_logp, arrays.rejected_logp])
    given = answers if row.by == "answers" else getattr(arrays, row.by)
    value, gradient = jax.jit(jax.value_and_grad(call))(jnp.asarray(given))
    return np.asarray(value), np.asarray(gradient)


def theirs(row: Row, folder: str) -> tuple[np.ndarray, np.ndarray | None]:
    """The library's value and gradient, computed by the library (verl's: by its formula)."""
    if row.package == "verl":
        functions: dict[str, Callable[..., Any]] = {
            "Advantages": verl_settings.advantages,
            "Policy loss": verl_settings.policy_loss,
            "Sampler and trainer": verl_settings.importance_weights,
            "Lengths": verl_settings.lengths,
            "Critic": verl_settings.generalized_advantages,
            "Value loss": verl_settings.value_loss,
        }
        return np.asarray(functions[row.section](row.setting)), None
    if row.package == "TRL":
        from libraries import trl_settings as live
    else:
        from libraries import tunix_settings as live
    got = live.run(row.section, folder, row.setting)
    return got if isinstance(got, tuple) else (got, None)


def assert_same(got: Any, want: Any, what: str) -> None:
    """Equal to a millionth of the largest entry: float32 has seven digits."""
    if want is None:
        assert got is None
        return
    want = np.asarray(want, np.float64)
    assert np.shape(got) == want.shape
    difference = np.max(np.abs(np.asarray(got, np.float64) - want))
    assert difference <= 1e-6 * np.max(np.abs(want)), f"{what} is off by {difference}"


def test_the_table_is_read():
    assert len(ROWS) == len({row.name for row in ROWS}) >= 60
    assert {row.section for row in ROWS if row.package == "TRL"} >= {"Advantages", "Policy loss"}


def test_the_stored_numbers_are_those_of_the_table():
    stored = set(json.loads(GOLDEN.read_text()))
    assert stored == {row.name for row in ROWS if row.package != "verl"}


@pytest.mark.parametrize("row", [r for r in ROWS if r.package != "verl"], ids=lambda r: r.name)
def test_our_call_gives_the_stored_value_and_gradient(row):
    stored = json.loads(GOLDEN.read_text())[row.name]
    value, gradient = ours(row)
    assert_same(value, stored["value"], "value")
    assert_same(gradient, stored["gradient"], "gradient")


@pytest.mark.parametrize("row", [r for r in ROWS if r.package == "verl"], ids=lambda r: r.name)
def test_our_call_gives_the_value_of_verls_formula(row):
    assert_same(ours(row)[0], theirs(row, "")[0], "value")


@pytest.mark.torch
@pytest.mark.skipif(sys.version_info >= (3, 12), reason="torch for this comes on Python 3.11 only")
@pytest.mark.parametrize("row", [r for r in ROWS if r.package != "verl"], ids=lambda r: r.name)
def test_our_call_gives_what_the_library_gives(row, tmp_path):
    value, gradient = ours(row)
    wanted, wanted_gradient = theirs(row, str(tmp_path))
    assert_same(value, wanted, "value")
    assert_same(gradient, wanted_gradient, "gradient")


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.name)
def test_every_argument_of_a_call_matters(row):
    """Without it the call gives something else, or nothing: the arrays tell the settings apart."""
    tree = ast.parse(row.call, mode="eval")
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    value = np.asarray(evaluate(row.call), np.float64)
    for node in calls:
        given = {argument.arg for argument in node.keywords}
        for argument in list(node.keywords):
            if argument.arg == "mask":  # against rubbish, of which these arrays have none
                continue
            # Sums over a normalizer are the same by any name.
            by_name = argument.arg == "mode" and "normalizer" in given
            if by_name and ast.literal_eval(argument.value) != "sequence_mean":
                continue
            node.keywords.remove(argument)
            try:
                without = np.asarray(evaluate(ast.unparse(tree)), np.float64)
            except (TypeError, ValueError):  # it is required
                pass
            else:
                assert np.max(np.abs(without - value)) > 1e-5, argument.arg
            node.keywords.append(argument)


def evaluate(call: str) -> Any:
    return eval(call, {**vars(jaxalign.losses), **our_arrays(None, None)})


def write_golden(folder: str) -> None:
    """`python -m libraries.test_libraries` on Python 3.11 renews the stored numbers."""

    def short(array: Any) -> Any:
        if array is None:
            return None
        return np.vectorize(lambda x: float(f"{x:.9g}"))(array).tolist()

    golden = {}
    for row in ROWS:
        if row.package != "verl":
            value, gradient = theirs(row, folder)
            golden[row.name] = {"value": short(value), "gradient": short(gradient)}
    lines = [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in golden.items()]
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as temporary:
        write_golden(temporary)
