"""The smallest model of the drift: exact expectations by hand, and a short run."""

import json

import numpy as np
import pytest

from experiments.ablations.two_modes import ARMS, Settings, drift, fixed_point, main, train

GROUP_ARMS = [arm for arm in ARMS if arm.scope == "group"]
GRPO = ARMS[0]
P = np.array([0.1, 0.5, 0.9])


def test_grpo_with_two_samples_by_hand():
    """Unequal rewards give ±a, a = ½/(1/√2 + 1e-4); so g = a·p(1 − p)(q_1 − q_0)."""
    a = 0.5 / (np.sqrt(0.5) + 1e-4)
    expected = a * P * (1 - P) * (0.9 - 0.4)
    np.testing.assert_allclose(drift(GRPO, P, (0.4, 0.9), 2), expected, rtol=1e-5)


@pytest.mark.parametrize("arm", GROUP_ARMS, ids=lambda arm: arm.label)
def test_the_much_better_mode_wins(arm):
    assert (drift(arm, P, (0.4, 0.9), 8) > 0).all()
    assert (drift(arm, P, (0.9, 0.4), 8) < 0).all()


@pytest.mark.parametrize("arm", GROUP_ARMS, ids=lambda arm: arm.label)
@pytest.mark.parametrize("right", [0.7, 0.3])
def test_equal_modes_drift_in_the_baseline_form_only(arm, right):
    """To the middle where most outcomes are right, to the ends where most are wrong."""
    pull = (1 if right > 0.5 else -1) if arm.form == "baseline" else 0
    g = drift(arm, P, (right, right), 8)
    np.testing.assert_array_equal(np.sign(np.where(np.abs(g) < 1e-6, 0, g)), [pull, 0, -pull])
    expected = pytest.approx(0.5, abs=0.01) if pull > 0 else None
    assert fixed_point(arm, (right, right), 8) == expected


@pytest.mark.parametrize("arm", GROUP_ARMS, ids=lambda arm: arm.label)
def test_exchanging_the_modes_turns_the_drift_round(arm):
    np.testing.assert_allclose(
        drift(arm, P, (0.4, 0.9), 6), -drift(arm, 1 - P, (0.9, 0.4), 6), atol=1e-6
    )


def test_weights_keep_the_drift_alive_near_the_ends():
    """For many samples the ratio to GRPO is (p² + (1 − p)²)/(2p(1 − p)): 1 in the middle."""
    plain, weighed = (drift(arm, P, (0.5, 0.6), 16) for arm in ARMS[:2])
    ratio = weighed / plain
    np.testing.assert_allclose(ratio[1], 1.0, atol=0.1)
    assert (ratio[[0, 2]] > 2).all()


def test_what_classes_share_decides_whether_the_drift_passes():
    """Apart, benign requests leave consulting at once; together they are carried along for good."""
    benign = {
        (shared, arm.label): train(arm, Settings(seeds=5), shared)[:, :, 1].mean(axis=0)
        for shared in (0.0, 4.0)
        for arm in (GRPO, ARMS[-1])
    }
    assert benign[0.0, "GRPO"].max() == 0.5 and benign[0.0, "GRPO"][-1] < 0.25
    assert benign[4.0, "GRPO"][-1] > 0.9
    assert benign[4.0, "baseline, batch"].max() > 0.7 and benign[4.0, "baseline, batch"][-1] < 0.25


def test_a_short_run_writes_its_results(tmp_path):
    tables = main(Settings(steps=150, seeds=3, shared=(1.0,), out=tmp_path))
    for arm in ARMS:
        row = tables["1.0"][arm.label]
        assert row["harmful"]["mean"] > row["benign"]["mean"]
        q = np.array([[0.70, 0.90, 0.75], [0.95, 0.80, 0.85]])  # alone, consulting
        p = np.array([row[name]["mean"] for name in ("harmful", "benign", "lookalike")])
        right = ((1 - p) * q[0] + p * q[1]) @ [0.5, 0.25, 0.25]
        np.testing.assert_allclose(row["right"]["mean"], right, rtol=1e-6)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["end"] == tables
    exact = drift(GRPO, np.array([0.5]), (0.90, 0.80), 8)
    np.testing.assert_allclose(results["drift_at_start"]["GRPO"]["benign"], exact[0])
    assert (tmp_path / "drift.png").stat().st_size > 10_000
    assert (tmp_path / "training.png").stat().st_size > 10_000
