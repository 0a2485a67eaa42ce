"""The comparison's table and plot from run folders written by hand; what it refuses."""

import json

import numpy as np
import pytest

from experiments.ablations.ifpo import Settings, main, report
from jaxalign.errors import InputError

KINDS = ("harmful", "benign", "lookalike")


def write_run(folder, consulted, refused):
    """Three steps that consult ever more, and an evaluation."""
    folder.mkdir(parents=True)
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
    after = {"well_formed": 1.0, **{f"{kind}_refused": refused for kind in KINDS}}
    (folder / "summary.json").write_text(json.dumps({"after": after}))


def test_means_and_deviations_over_seeds(tmp_path):
    for seed, (consulted, refused) in enumerate([(0.1, 0.8), (0.3, 0.6)]):
        write_run(tmp_path / f"grpo-{seed}", consulted, refused)
        write_run(tmp_path / f"weight-group-{seed}", 0.0, 1.0)
    report(Settings(out=tmp_path, arms=("grpo", "weight-group"), seeds=2, last=2))
    results = json.loads((tmp_path / "results.json").read_text())
    # The last two steps consult 0.1 and 0.2, or 0.3 and 0.6.
    deviation = np.sqrt(2) * 0.15
    trained, heldout = results["grpo"]["trained"], results["grpo"]["heldout"]
    np.testing.assert_allclose(trained["harmful_consulted"], [0.3, deviation])
    np.testing.assert_allclose(trained["benign_refused"], [0.25, 0.0], atol=1e-12)
    np.testing.assert_allclose(heldout["harmful_refused"], [0.7, np.sqrt(2) * 0.1])
    table = (tmp_path / "table.md").read_text()
    assert "Held-out prompts" in table and "| grpo | 0.30 ± 0.21 |" in table
    assert (tmp_path / "consulting.png").stat().st_size > 10_000


def test_what_it_refuses(tmp_path):
    with pytest.raises(InputError, match="unknown arm 'ppo': choose from grpo, weight-group"):
        main(Settings(out=tmp_path, arms=("ppo",)), [])
    (tmp_path / "comparison.json").write_text(
        json.dumps({"flags": ["--steps", "9"], "heldout": 24})
    )
    with pytest.raises(InputError, match="comparison.json is of other flags"):
        main(Settings(out=tmp_path), ["--steps", "8"])
