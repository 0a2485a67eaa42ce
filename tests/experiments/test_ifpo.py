"""The comparison's table and plot from run folders written by hand; what it refuses."""

import json

import numpy as np
import pytest
from written_evaluation import write_evaluation

from experiments.ablations.ifpo import ARMS, Settings, main, write_report
from experiments.ascl import PRESETS
from jaxalign.data.prompts import Prompt
from jaxalign.engine.baselines import Group, InverseFrequency
from jaxalign.engine.objective import GRPO
from jaxalign.host.errors import InputError
from jaxalign.runs.settings import parse

KINDS = ("harmful", "benign", "lookalike")


def write_run(folder, consulted, refused):
    """Three steps that consult ever more, and an evaluation."""
    folder.mkdir(parents=True)
    arm, _, seed = folder.name.rpartition("-")
    point = {"arm": arm, "rate": None, "seed": int(seed)}
    (folder / "measurements.json").write_text(json.dumps(point))
    rows = [
        {
            "step": step,
            "reward": 1.0 + step,
            "well_formed": 0.5,
            **{f"{kind}_consulted": consulted * step for kind in KINDS},
            **{
                f"{kind}_refused": None if kind == "benign" and step == 2 else 0.25
                for kind in KINDS
            },
        }
        for step in range(3)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(lines)
    prompts = [Prompt(f"{kind}-{n}", f"{kind} {n}?", kind, "") for kind in KINDS for n in range(10)]
    # Who refuses has consulted, and every other one only repeats the rule.
    called = "<consult>general</consult>\n<rules>I'm sorry. Say so.</rules>\n<answer>"
    texts = [called + end for end in ("I'm sorry.</answer>", "I'm sorry, no.</answer>")]
    refuses = [n < 10 * refused for n in range(10)] * len(KINDS)
    answers = [texts[n % 2] if no else "<answer>Hello</answer>" for n, no in enumerate(refuses)]
    write_evaluation(folder / "after", prompts, answers, suite="heldout", consulted=refuses)


def test_means_and_deviations_over_seeds(tmp_path):
    for seed, (consulted, refused) in enumerate([(0.1, 0.8), (0.3, 0.6)]):
        write_run(tmp_path / f"grpo-{seed}", consulted, refused)
        write_run(tmp_path / f"weight-group-{seed}", 0.0, 1.0)
    write_report(tmp_path, last=2, heldout=10)
    results = json.loads((tmp_path / "results.json").read_text())
    # The last two steps consult 0.1 and 0.2, or 0.3 and 0.6.
    deviation = np.sqrt(2) * 0.15
    trained, heldout = results["trained"]["grpo"], results["heldout"]["grpo"]
    np.testing.assert_allclose(trained["harmful_consulted"], [0.3, deviation])
    np.testing.assert_allclose(trained["benign_refused"], [0.25, 0.0], atol=1e-12)
    np.testing.assert_allclose(heldout["harmful_refused"], [0.7, np.sqrt(2) * 0.1])
    # A quarter of harmful requests refused is right, and three of the others not.
    np.testing.assert_allclose(trained["right"], [(1.75 / 3 + 1.0 / 2) / 2, 0.0])
    np.testing.assert_allclose(trained["reward"], [2.5, 0.0])  # of steps 1 and 2
    assert "reward" not in heldout
    np.testing.assert_allclose(heldout["right"][0], (0.7 + 2 * 0.3) / 3)
    np.testing.assert_allclose(heldout["rule_repeated"], [0.5, 0.0])
    np.testing.assert_allclose(
        results["difference"]["weight-group"]["harmful_consulted"], [-0.3, deviation]
    )
    table = (tmp_path / "table.md").read_text()
    assert "10 held-out prompts of each kind" in table and "| grpo | 0.30 ± 0.21 |" in table
    assert (tmp_path / "consulting.png").stat().st_size > 10_000


def test_what_it_refuses(tmp_path):
    with pytest.raises(InputError, match="unknown arm 'ppo': choose from grpo, weight-group"):
        main(Settings(out=tmp_path, arms=("ppo",)), [])
    (tmp_path / "comparison.json").write_text(
        json.dumps({"flags": ["--steps", "9"], "heldout": 24})
    )
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "config.json").write_text("{}")
    with pytest.raises(InputError, match="comparison.json: flags is another; give the same, or"):
        main(Settings(out=tmp_path), ["--steps", "8"])


@pytest.mark.parametrize(
    "flags",
    [
        ["--objective=ppo"],
        ["--objective", "ppo"],
        ["--objective.advantages=whole-batch"],
        ["--objective.adjust.max-weight", "2"],
        ["--steps=3", "--objective.adjust.max_weight=2"],
    ],
)
def test_the_objective_is_the_comparisons_to_set(flags, tmp_path):
    with pytest.raises(
        InputError, match="the comparison's to set: leave it out behind --"
    ) as error:
        main(Settings(out=tmp_path / "out"), flags)
    assert "--objective" in str(error.value) and not (tmp_path / "out").exists()


def test_the_arms_train_what_their_names_say():
    """From the flags that every run has, `--objective.advantages=group`, and the arm's own."""

    def objective(arm):
        preset, *own = ARMS[arm].flags
        flags = [preset, "--objective.advantages=group", *own]
        return parse(flags, PRESETS, script="ascl.py", doc="").rl.objective

    assert objective("grpo") == GRPO(Group(), adjust=None)
    ifpo = {arm: objective(arm) for arm in ARMS if arm != "grpo"}
    assert all(one.advantages == Group() for one in ifpo.values())
    assert {arm: one.adjust for arm, one in ifpo.items()} == {
        "weight-group": InverseFrequency(),
        "weight-group-capped": InverseFrequency(max_weight=1.5),
        "weight-batch": InverseFrequency(scope="batch"),
        "baseline-group": InverseFrequency("baseline"),
        "baseline-batch": InverseFrequency("baseline", "batch"),
    }


def test_flags_that_do_not_work_do_not_bind(tmp_path):
    """The command can be given again, corrected."""
    for flags in (["--stebs", "8"], ["--step", "nine"]):
        with pytest.raises(SystemExit):  # of the flag, and not of another comparison
            main(Settings(out=tmp_path), flags)
    rows = [json.loads(line) for line in (tmp_path / "heldout.jsonl").open()]
    harmful = {row["category"] for row in rows if row["kind"] == "harmful"}
    assert len(harmful) > 10 and len(rows) == 3 * 24
