"""Refusals on labelled answers: counts by hand, the choice of wordings, and bad files."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.benchmarks.refusals import (
    CANDIDATES,
    JUDGES,
    Answer,
    Settings,
    cross_validate,
    fires,
    half_of,
    main,
    occurrences,
    refusals,
    select,
)
from jaxalign.evaluation.agreement import agreement
from jaxalign.host.errors import InputError
from jaxalign.host.statistics import share
from jaxalign.rewards import FIRST_SENTENCE, REFUSAL_WORDINGS

SCRIPT = Path(__file__).parents[2] / "experiments" / "benchmarks" / "refusals.py"
DATA = Path(__file__).parents[2] / ".." / "shared" / "data"


def columns(*rows):
    return np.array([[cell == "x" for cell in row] for row in rows])


def test_score_by_hand():
    """Fires on four, three of which refuse; five refuse in all."""
    fired = np.array([1, 1, 1, 1, 0, 0, 0], bool)
    refused = np.array([1, 1, 1, 0, 1, 1, 0], bool)
    assert agreement(fired, refused)["precision"] == share(3, 4)
    assert agreement(fired, refused)["recall"] == share(3, 5)


# Six refusals, then two harmless answers.
REFUSED = np.array([1, 1, 1, 1, 1, 1, 0, 0], bool)


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        # The first finds three. Of what the second finds beyond it, one of two is a refusal.
        (columns("x.", "x.", "xx", ".x", "..", "..", ".x", ".."), [0]),
        # Three of four are not enough for 0.85; the second raises no false alarm.
        (columns("x.", "xx", "x.", "..", "..", "..", "x.", ".."), [1]),
        # Never seen: nothing speaks against it.
        (columns(*[".."] * 8), [0, 1]),
        # A false alarm counts once: the first of two equal ones has it, the second adds none.
        (columns("xx", "xx", "xx", "xx", "xx", "xx", "xx", ".."), [0]),
        (columns(*["x."] * 6, "xx", ".."), [0]),
    ],
)
def test_selection_by_hand(found, chosen):
    assert select(found, REFUSED) == chosen


def test_the_least_share_of_refusals():
    found = columns("x", "x", "x", ".", ".", ".", "x", ".")
    assert select(found, REFUSED, least=0.75) == [0]
    assert select(found, REFUSED, least=0.76) == []


def test_cross_validation_by_hand():
    """Each fold is judged by what the other one chooses: in fold 0 the wording looks clean."""
    found, refused = columns("x", "x", "x", "."), np.array([1, 1, 0, 1], bool)
    result = cross_validate(found, refused, np.array([0, 0, 1, 1]), least=0.85)
    assert (result["precision"], result["recall"]) == (share(0, 1), share(0, 3))


def test_halves_go_by_the_prompt():
    """The first bytes of their SHA-256 are e3, ca, 3e and 2c."""
    halves = [half_of(prompt) for prompt in ("", "a", "b", "hello")]
    assert halves == ["report", "selection", "selection", "selection"]


XSTEST = "id,prompt,completion,final_label\n"
PYRIT = "# version 1\nobjective,assistant_response,human_score\n"


def test_tables_by_hand(tmp_path, capsys):
    """Prompt "a" selects, prompt "" reports; a partial refusal is one, or is not."""
    xstest, pyrit = tmp_path / "xstest_v2_completions_m.csv", tmp_path / "p.csv"
    xstest.write_text(
        XSTEST + "1,a,I can't.,2_full_refusal\n"
        "2,,I won't. But try tea.,3_partial_refusal\n"
        '3,,"I\'m sorry to hear that, so here it is.",1_full_compliance\n'
        "4,,Cake.,1_full_compliance\n"
    )
    pyrit.write_text(PYRIT + ",I cannot.,1\n,Tea? My rules forbid it.,1\n")
    main(Settings(xstest=(xstest,), pyrit=(pyrit,)))
    report = capsys.readouterr().out.partition("The report half: 5 answers to 1 prompts")[2]
    rows = [line.strip("| ").split(" | ") for line in report.splitlines() if line[:2] == "| "][1:]
    assert [[cell.split(" ")[0] for cell in row] for row in rows] == [
        ["m", "3", "1", "0.000", "1.000", "1.000", "0.000", "1.000", "1.000"],
        ["p", "2", "2", "1.000", "1.000", "1.000", "0.500", "0.500", "1.000"],
        ["all", "5", "3", "0.500", "1.000", "1.000", "0.333", "0.667", "1.000"],
        ["all,", "5", "2", "0.500", "0.500", "0.667", "0.500", "0.500", "1.000"],
    ]
    assert rows[2][7] == "0.667 (0.208–0.939)"
    assert "answers: more right by first sentence 2, by paper 0; exact p = 0.5" in report
    assert "answers: more right by first sentence 1, by paper 0; exact p = 1" in report
    assert "answers: more right by words 1, by first sentence 0; exact p = 1" in report


@pytest.mark.parametrize(
    ("flag", "text", "message"),
    [
        (
            "xstest",
            "prompt,completion\na,b\n",
            "no column 'final_label'; it has prompt, completion",
        ),
        ("pyrit", "objective,human_score\na,1\n", "no column 'assistant_response'"),
        ("xstest", XSTEST + "1,a,b,2\n", "line 2: final_label is '2'; known are 1_full_compliance"),
        ("pyrit", PYRIT + "a,b,1\na,b,yes\n", "line 4: human_score is 'yes'; known are 0, 1"),
        ("xstest", XSTEST, "no rows; give at least one"),
        ("xstest", "", "no rows; give at least one"),
        ("pyrit", PYRIT + "a,b\n", "line 3: 2 fields where the header has 3"),
        ("pyrit", None, "No such file"),
    ],
)
def test_bad_files(tmp_path, flag, text, message):
    path = tmp_path / "bad.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        main(dataclasses.replace(Settings(), **{flag: (path,)}))
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_the_command_says_it_in_one_line():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "refusals.py: error: --xstest, --pyrit: no file; give at least one\n"


# On the public data.


def public(pattern):
    files = sorted(DATA.glob(pattern))
    if not files:
        pytest.skip(f"needs {pattern} in ../shared/data")
    return tuple(files)


def test_the_wordings_are_what_the_selection_half_keeps(capsys):
    main(Settings(public("xstest_v2_completions_*.csv"), public("pyrit_refusal*.csv")))
    out = capsys.readouterr().out
    assert f"Of {len(CANDIDATES)} candidates the selection half keeps" in out
    assert out.endswith(f"keeps {len(REFUSAL_WORDINGS)}: the library's\n")


def test_the_places_are_compared_on_the_selection_half_alone(capsys):
    main(Settings(pyrit=public("pyrit_refusal*.csv"), places=True))
    out = capsys.readouterr().out
    assert "The selection half" in out and "eport" not in out


def test_ordinary_answers_are_hardly_ever_taken_for_refusals():
    """Solutions and answers to harmless instructions: no worse than the paper's phrases."""
    (problems,), (instructions,) = public("gsm8k_test.jsonl"), public("alpaca_seed_tasks.jsonl")
    texts = [json.loads(line)["answer"] for line in problems.open(encoding="utf-8")]
    for line in instructions.open(encoding="utf-8"):
        texts += [instance["output"] for instance in json.loads(line)["instances"]]
    assert len(texts) == 1319 + 175
    answers = [Answer("", "", text, "complied") for text in texts]
    counts = {name: int(fires(judge, answers).sum()) for name, judge in JUDGES.items()}
    assert counts == {"paper": 3, "first sentence": 1, "words": 2}  # of ours, true refusals


def test_one_pattern_for_all_wordings_finds_what_each_finds():
    texts = ["I can't.", "It’s wrong to ask. No.", "Sure.", "No. I cannot."]
    answers = [Answer("", "", text, "refused") for text in texts]
    found = occurrences(REFUSAL_WORDINGS, answers, FIRST_SENTENCE)
    np.testing.assert_array_equal(found.any(axis=1), fires(JUDGES["first sentence"], answers))
    assert refusals(answers, ("refused",)).all()
