"""Rewards of a user's own, added to a script's by `--add-reward FILE.py:FUNCTION=WEIGHT`."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.alphaalign import main
from jaxalign.data import Prompt
from jaxalign.host.errors import InputError
from jaxalign.records import Batch, Prompts, Rollout
from jaxalign.rewards import PromptFacts, device_reward
from jaxalign.rewards.terms import resolve_on_host
from jaxalign.runs import added_rewards
from jaxalign.runs.added_rewards import load_added_rewards, split_weight

MINE = """
import jax.numpy as jnp

REQUESTS = {"How do I forge a passport?", "Name a fruit."}

def length(batch, samples):
    assert batch.prompts.tokens.shape[0] == 2
    return jnp.sum(samples.mask, axis=1) / samples.mask.shape[1]

def vowels(requests, completions):
    assert len(requests) == len(completions) == 4 and set(requests) == REQUESTS
    return [sum(letter in "aeiou" for letter in text) for text in completions]
"""


@pytest.fixture
def arguments(tiny_model_folder, tmp_path):
    """A run of one step, and its folder."""
    rows = [
        {"prompt": "How do I forge a passport?", "kind": "harmful"},
        {"prompt": "Name a fruit.", "kind": "benign"},
    ]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mine.py").write_text(MINE)
    return [
        "demo",
        f"--model={tiny_model_folder}",
        f"--run={tmp_path / 'run'}",
        f"--prompts={prompts}",
        "--dtype=float32",
        "--template=bare",
        "--steps=1",
        "--samples-per-prompt=2",
        "--max-new-tokens=8",
        "--harmful=1",
        "--benign=1",
        "--lookalike=0",
        "--sample-every=1",
        "--helpfulness-weight=0",
        "--heldout",
    ]


def test_a_function_of_arrays_and_one_of_texts_are_added(arguments, tmp_path):
    """One inside the compiled step, one on the host; beside the script's own reward."""
    mine = tmp_path / "mine.py"
    added = ["--add-reward", f"{mine}:length=0.5", f"{mine}:vowels=-0.25"]
    assert main([*arguments, "--reward=paper", *added]) == 0
    (metrics,) = map(json.loads, (tmp_path / "run" / "metrics.jsonl").open())
    terms = {name: metrics[f"terms/{name}"] for name in ("safety", "length", "vowels")}
    total = terms["safety"] + 0.5 * terms["length"] - 0.25 * terms["vowels"]
    assert metrics["reward"] == pytest.approx(total, abs=1e-5) and terms["vowels"] > 0
    assert metrics["terms/length"] == pytest.approx(metrics["completion_length"] / 8)
    both = metrics["terms/vowels/harmful"] + metrics["terms/vowels/benign"]
    assert both / 2 == pytest.approx(terms["vowels"])
    samples = list(map(json.loads, (tmp_path / "run" / "samples.jsonl").open()))
    assert len(samples) == 2
    for sample in samples:
        assert sample["vowels"] == sum(letter in "aeiou" for letter in sample["completion"])
        assert 0 < sample["length"] <= 1
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["add_reward"] == [f"{mine}:length=0.5", f"{mine}:vowels=-0.25"]


@pytest.mark.parametrize("name", ["safety", "step", "completion", "reward"])
def test_a_name_of_the_scripts_own_is_one_line(name, arguments, capsys):
    """A term of its name would take the place of a transcript's column."""
    assert main([*arguments, f"--add-reward=mine.py:{name}=1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"something is called {name} already: rename the function")


def test_a_run_ends_with_one_line(arguments, tmp_path, capsys):
    bad = tmp_path / "bad.py"
    bad.write_text("def bad(requests, completions):\n    raise KeyError('x')\n")
    assert main([*arguments, f"--add-reward={bad}:bad=1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"alphaalign: error: --add-reward {bad}:bad: it raised KeyError: 'x'; mend it"


# --- without a model -----------------------------------------------------------------------------

PROMPTS = [
    Prompt("0", "How do I forge a passport?", "harmful", "fraud"),
    Prompt("1", "Name a fruit.", "benign", "general"),
]
COMPLETIONS = ["No.", "I cannot.", "Apple", "A pear, a plum"]


@pytest.fixture
def rollout(smollm2_tokenizer):
    """A batch of two prompts, and two completions of each."""
    rows = smollm2_tokenizer(COMPLETIONS, padding=True, return_tensors="np")
    tokens, mask = rows.input_ids, rows.attention_mask.astype(bool)
    nothing, asked = np.zeros(4), np.ones((2, 3), np.int32)
    samples = Rollout(tokens, mask, mask, 0.0 * tokens, nothing, nothing, nothing, [0, 0, 1, 1])
    facts = PromptFacts(np.arange(2), asked, asked)
    return Batch(Prompts(asked, asked > 0), facts=facts), samples


def score(spec, tokenizer, rollout):
    """Of a reward that says 1 and what is added to it."""
    add = load_added_rewards([spec], tokenizer, PROMPTS)
    reward = add(device_reward(lambda batch, samples: jnp.ones(4), "one"))
    return resolve_on_host(reward, *rollout, jnp.asarray)(*rollout)


def test_texts_and_arrays_are_those_of_the_completions(smollm2_tokenizer, rollout, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(MINE)
    added = score(f"{mine}:vowels=0.5", smollm2_tokenizer, rollout)
    assert added.terms["vowels"].tolist() == [[1, 2], [1, 4]]  # small ones
    np.testing.assert_allclose(added.rewards, 1 + 0.5 * added.terms["vowels"])
    added = score(f"{mine}:length=-1", smollm2_tokenizer, rollout)
    np.testing.assert_allclose(added.details["length"], rollout[1].mask.mean(axis=1))
    batch, samples = rollout
    last = samples.mask & (samples.tokens == smollm2_tokenizer(COMPLETIONS[3]).input_ids[-1])
    ended = batch, dataclasses.replace(samples, ending=last)  # by " plum"
    added = score(f"{mine}:vowels=0.5", smollm2_tokenizer, ended)
    assert added.terms["vowels"].tolist() == [[1, 2], [1, 3]]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("length", "length: give FILE.py:FUNCTION=WEIGHT, such as mine.py:short=0.1"),
        ("length=", "length=: give FILE.py:FUNCTION=WEIGHT"),
        ("length=much", "length=much: give FILE.py:FUNCTION=WEIGHT"),
        ("length=nan", "length=nan: give FILE.py:FUNCTION=WEIGHT"),
        ("width=1", "has no function width; name one that it has"),
    ],
)
def test_what_names_no_reward_is_one_line(spec, message, tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text(MINE)
    with pytest.raises(InputError) as error:
        load_added_rewards([f"{mine}:{spec}"], None, PROMPTS)
    assert_one_line(error, mine, message)


@pytest.mark.parametrize(
    ("parameters", "body", "message"),
    [
        ("completions", "return [0.0]", "it takes 1 arguments; write it as (batch, samples) for"),
        ("a, b, c", "return [0.0]", "it takes 3 arguments"),
        ("requests, completions", "return [0.0]", "it returned 1 numbers for 4 answers"),
        (
            "requests, completions",
            "return [0.0] * 3 + [float('nan')]",
            "it gave nan to answer 4",
        ),
        ("requests, completions", "raise KeyError('x')", "it raised KeyError: 'x'; mend it"),
        ("batch, samples", "raise KeyError('x')", "it raised KeyError: 'x'; mend it"),
        ("batch, samples", "return samples.mask.sum()", "it returned the shape () for 4 complet"),
        ("batch, samples", "return samples.mask", "it returned the shape (4, "),
        ("batch, samples", "return None", "it returned None for 4 completions; return one number"),
        ("batch, samples", "return (x for x in ())", "it returned <generator object bad."),
    ],
)
def test_a_function_that_does_not_work_is_one_line(
    parameters, body, message, smollm2_tokenizer, rollout, tmp_path
):
    bad = tmp_path / "bad.py"
    bad.write_text(f"def bad({parameters}):\n    {body}\n")
    with pytest.raises(InputError) as error:
        score(f"{bad}:bad=1", smollm2_tokenizer, rollout)
    assert_one_line(error, bad, f"bad: {message}")


def assert_one_line(error, file, message):
    text = str(error.value)
    assert text.startswith(f"--add-reward {file}:") and "\n" not in text and message in text


def test_two_functions_of_one_name_are_refused(tmp_path):
    files = [tmp_path / "one.py", tmp_path / "two.py"]
    for file in files:
        file.write_text(MINE)
    with pytest.raises(InputError, match="two functions are called length, and metrics are named"):
        load_added_rewards([f"{file}:length=1" for file in files], None, [])


def test_texts_are_read_in_one_process_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(added_rewards, "are_several", lambda: True)
    mine = tmp_path / "mine.py"
    mine.write_text(MINE)
    with pytest.raises(InputError, match="in one process only: leave --processes out, or write it"):
        load_added_rewards([f"{mine}:vowels=1"], None, [])
    assert load_added_rewards([f"{mine}:length=1"], None, [])


def test_the_weight_stands_behind_the_last_sign():
    assert split_weight("a=b/mine.py:short=-1e-2") == ("a=b/mine.py:short", -0.01)
    assert split_weight("mine.py:short=0.1") == ("mine.py:short", 0.1)
