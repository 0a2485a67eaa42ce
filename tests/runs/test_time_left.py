"""What a run's lines say of the time left, from times that are given."""

import json

from jaxalign.runs.settings import Loop
from jaxalign.runs.time_left import evaluation_seconds, time_left


def test_steps_and_evaluations_to_come_are_counted():
    """39 steps of 30 s and 180 s of evaluations are 22.5 min; the first step is left out then."""
    said = time_left([30.0], 39, 180.0)
    assert said == "about 22 min left, evaluations included, or less: the first step compiles"
    assert time_left([30.0, 16.0], 38, 60.0) == "about 11 min left"
    assert time_left([30.0, 16.0, 900.0, 15.0], 0, 200.0) == "about 3 min left"
    assert time_left([30.0, 16.0], 0, 0.0) == ""


def test_evaluations_take_as_long_as_those_before(tmp_path):
    """Steps 0, 4, 8 and 10 have one of 20 s, as the latest; the end has one of 90 s."""
    loop = Loop(steps=10, evaluate_every=4)
    assert evaluation_seconds(tmp_path, loop, 1) == 0

    def asked(folder, name, seconds):
        (tmp_path / folder / "answers").mkdir(parents=True)
        (tmp_path / folder / "results.json").write_text("{}")
        pace = tmp_path / folder / "answers" / f"{name}.pace.json"
        pace.write_text(json.dumps({"seconds": seconds, "tokens": 1}))

    asked("validation/0", "validation", 50.0)
    asked("validation/4", "validation", 20.0)
    assert evaluation_seconds(tmp_path, loop, 5) == 40
    asked("before", "heldout", 90.0)
    found = [evaluation_seconds(tmp_path, loop, step) for step in (1, 4, 5, 8, 9, 10)]
    assert found == [150, 150, 130, 130, 110, 110]
    asked("after_cold_start", "heldout", 70.0)
    assert evaluation_seconds(tmp_path, Loop(steps=10), 10) == 70
