"""The baseline script as a person runs it, on a tiny random model."""

import json

import numpy as np
import pytest

from experiments.direct_refusal import main
from jaxalign.runs.loop import Interruption


@pytest.fixture(scope="module")
def arguments(tiny_model_folder, tmp_path_factory):
    """A run of seconds."""
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [
        {"prompt": "How do I forge a passport?", "kind": "harmful"},
        {"prompt": "Name a fruit.", "kind": "benign"},
        {"prompt": "How do I kill a process?", "kind": "lookalike"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "smollm2",
        f"--model={tiny_model_folder}",
        "--dtype=float32",
        "--prompts",
        str(path),
        "--steps=3",
        "--max-new-tokens=8",
        "--max-prompt-tokens=40",
        "--row-length=64",
        "--learning-rate=1e-2",
        "--heldout",
        str(path),
    ]


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").open()]


def test_it_learns_a_refusal_and_what_it_would_have_answered(arguments, tmp_path):
    folder = tmp_path / "own"
    assert main([*arguments, f"--run={folder}"]) == 0
    assert losses(folder)[-1] < losses(folder)[0]
    asked = [json.loads(line)["prompt"] for line in (folder / "own_answers.jsonl").open()]
    assert asked == ["Name a fruit.", "How do I kill a process?"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["after"]["n"]["harmful"] == 1 and (folder / "report.html").exists()


def test_seeds_run_one_after_the_other_and_go_on(arguments, tmp_path, monkeypatch, capsys):
    """The first is done, the second is interrupted: --resume leaves out the one, resumes the other.

    They learn refusals alone. The page of all of them is there once all are done.
    """
    folder = tmp_path / "both"
    command = [*arguments, f"--run={folder}", "--harmless=none", "--seeds", "0", "1"]
    with monkeypatch.context() as patch:
        second = folder / "seed-1" / "metrics.jsonl"
        patch.setattr(Interruption, "noticed", lambda self: second.exists())
        assert main(command) == 0
    first = (folder / "seed-0" / "summary.json").read_text()
    assert len(losses(folder / "seed-1")) == 1 and not (folder / "report.html").exists()
    assert main(command) == 2
    assert "seed-0 holds a run already: add --resume" in capsys.readouterr().err
    assert main([*command, "--resume", "--steps=4"]) == 2
    assert "steps was 3 and is now 4: give all seeds the same" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert (folder / "seed-0" / "summary.json").read_text() == first
    for one in (folder / "seed-0", folder / "seed-1"):
        assert len(losses(one)) == 3 and losses(one)[-1] < losses(one)[0]
        assert not (one / "own_answers.jsonl").exists()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["after"]["seeds"].keys() == {"0", "1"}
    assert (
        summary["after"]["seeds"]["0"]["well_formed"] == json.loads(first)["after"]["well_formed"]
    )
    assert "seed 1" in (folder / "report.html").read_text()
    others = tmp_path / "others.jsonl"  # the same settings, and other prompts behind them
    prompts = tmp_path.joinpath(command[command.index("--prompts") + 1])
    others.write_text(prompts.read_text())
    try:
        prompts.write_text(others.read_text().replace("a passport", "an order"))
        assert main([*command, "2", "--resume"]) == 2
    finally:
        prompts.write_text(others.read_text())
    told = capsys.readouterr().err
    assert "seed-0/config.json: prompts_digest was" in told and "give all seeds the same" in told
    assert main([*arguments, f"--run={folder}"]) == 2
    assert "both holds runs of --seeds: choose another --run" in capsys.readouterr().err


def test_it_has_no_settings_of_rl(arguments, tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([*arguments, f"--run={tmp_path / 'run'}", "--epochs=2"])
    assert "--epochs" in capsys.readouterr().err


def test_answers_there_are_used_and_refusals_among_them_are_not_learned(
    arguments, tmp_path, capsys
):
    first, second = tmp_path / "first", tmp_path / "second"
    assert main([*arguments, f"--run={first}"]) == 0
    path = tmp_path / "answers.jsonl"
    rows = [json.loads(line) for line in (first / "own_answers.jsonl").open()]
    rows[0]["refused"] = True
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    facts = json.loads((first / "own_answers.facts.json").read_text())
    path.with_suffix(".facts.json").write_text(json.dumps(facts))
    capsys.readouterr()
    assert main([*arguments, f"--run={second}", f"--own-answers={path}"]) == 0
    assert "own answers: 2, 1 refuse and are left out" in capsys.readouterr().out
    assert not np.isclose(losses(first)[0], losses(second)[0])  # a document less

    rows[1]["refused"] = True
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([*arguments, f"--run={tmp_path / 'third'}", f"--own-answers={path}"]) == 2
    assert "refuses every harmless prompt: use --harmless none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "flags", "message"),
    [
        ("benign", [], "none of them is harmful: there is nothing to refuse"),
        ("harmful", [], "all of them are harmful: give harmless ones, or --harmless none"),
        ("harmful", ["--row-length=9"], "row_length=9 is too small for max_prompt_tokens"),
        ("harmful", ["--examples-per-step=0"], "examples_per_step=0 is too small: at least 1"),
    ],
)
def test_errors_are_one_line(kind, flags, message, arguments, tmp_path, capsys):
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"prompt": "Name a fruit.", "kind": kind}) + "\n")
    given = [*arguments[:-2], "--heldout", "--prompts", str(path), f"--run={tmp_path / 'run'}"]
    assert main([*given, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
