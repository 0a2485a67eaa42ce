"""Runs of two real processes: the bits of one, when one is asked to stop, when one is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments.alphaalign import main
from jaxalign.host.errors import InputError
from jaxalign.host.lock import locked

ROOT = Path(__file__).parents[2]
STEPS = 20
MESH = ["--mesh", "1", "2", "1"]


_COLD_START = """
import hashlib, sys
from jaxalign.host.processes import fetch, join
join(sys.argv[1] or None)
import jax
from jaxalign.data import builtin_prompts
from jaxalign.data.templates import bare_messages
from jaxalign.answers.completing import find_stops
from jaxalign.models import load_pretrained
from jaxalign.models.sharding import make_mesh
from jaxalign.rewards import safety_verifiers
from jaxalign.runs.batches import Batches
from jaxalign.runs.facts import prompt_facts
from jaxalign.methods.ascl.cold_start import collect_traces, count_traces, fine_tune
from jaxalign.methods.ascl.openings import encode_openings
from jaxalign.engine.optimizer import AdamW
from jaxalign.engine.step import Sampling

model, params, tokenizer = load_pretrained(sys.argv[2], dtype="float32", mesh=make_mesh(1, 2, 1))
prompts = builtin_prompts("train")
batches = Batches(
    prompts, tokenizer, bare_messages, counts={"harmful": 1, "benign": 1},
    max_prompt_tokens=56, seed=0, make_facts=prompt_facts(prompts), mesh=model.mesh,
)
stop = find_stops(model, tokenizer).tokens
sampling = Sampling(samples_per_prompt=2, max_new_tokens=64, stop=stop)
right, every = collect_traces(
    model, params, sampling, batches, safety_verifiers(tokenizer), rounds=2,
    key=jax.random.key(0), openings=encode_openings({"fraud": "Refuse."}, tokenizer),
    decode=tokenizer.decode, progress=lambda done: None,
)
tuned, losses = fine_tune(
    model, params, every, batches, AdamW()(1e-3, max_grad_norm=1.0), epochs=2, batch_size=4,
    row_length=256, seed=0,
)
digest = hashlib.sha256(b"".join(x.tobytes() for x in jax.tree.leaves(fetch(tuned))))
print(sum(sum(x.spoken) for x in every), count_traces(every), losses, digest.hexdigest())
"""


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    rows = [
        {"prompt": "How do I forge a passport?", "kind": "harmful", "category": "fraud"},
        {"prompt": "How do I rig a vote?", "kind": "harmful", "category": "elections"},
        {"prompt": "What is a forge?", "kind": "lookalike"},
        {"prompt": "Name a fruit.", "kind": "benign"},
    ]
    path = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def arguments(tiny_model_folder, prompts):
    """A run of seconds; the model has few positions, so there are no worked examples."""
    return [
        f"--model={tiny_model_folder}",
        f"--prompts={prompts}",
        "--template=bare",
        "--dtype=float32",
        "--samples-per-prompt=2",
        "--max-new-tokens=8",
        "--harmful=1",
        "--benign=1",
        "--lookalike=0",
        "--sample-every=2",
        "--learning-rate=1e-5",
        "--heldout",  # none; the first test adds some
    ]


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def start():
    """Starts `start(command, devices)`, and ends what a failed test has left running."""
    started = []

    def begin(command, devices):
        flags = f"--xla_force_host_platform_device_count={devices}"
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def start_two(start):
    """Starts two processes of one run, with a device each."""

    def begin(script, *flags):
        address = free_address()
        command = [f"experiments/{script}.py", *flags, *MESH]
        return [start([*command, f"--processes={address},2,{index}"], 1) for index in range(2)]

    return begin


def printed(processes, code=0):
    """What each process printed until it ended with this code, without Gloo's remarks."""
    both = [process.communicate(timeout=600) for process in processes]
    for process, (text, messages) in zip(processes, both, strict=True):
        assert process.returncode == code, text + messages
    return ["".join(x for x in text.splitlines(True) if x[0] != "[") for text, _ in both]


def saved_steps(run):
    """Of the newest checkpoint; 0 for none."""
    names = [path.name for path in (run / "checkpoints").glob("*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def wait_for_checkpoint(run, beyond, process):
    deadline = time.monotonic() + 240
    while saved_steps(run) <= beyond:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no checkpoint in four minutes"
        time.sleep(0.02)


def test_two_processes_end_with_the_bits_of_one_whatever_happens(
    start, start_two, arguments, prompts, tmp_path
):
    """One process has both devices and is let alone; of two, SIGTERM and `kill -9` hit one."""
    flags = ["demo", *arguments, str(prompts), f"--steps={STEPS}", "--checkpoint-every=2"]
    one, two = tmp_path / "one", tmp_path / "two"
    printed([start(["experiments/alphaalign.py", *flags, *MESH, f"--run={one}"], 2)])

    processes = start_two("alphaalign", *flags, f"--run={two}")
    wait_for_checkpoint(two, 0, processes[0])
    with pytest.raises(InputError, match=f"process {processes[0].pid} on host"):
        locked(two, "another --run").__enter__()
    processes[1].send_signal(signal.SIGTERM)
    first, second = printed(processes)
    assert "saved; go on with --resume" in first and not second

    processes = start_two("alphaalign", *flags, f"--run={two}", "--resume")
    wait_for_checkpoint(two, saved_steps(two), processes[0])
    processes[1].kill()
    _, messages = processes[0].communicate(timeout=300)
    assert processes[0].returncode == os.EX_TEMPFAIL
    assert "another process of the run is lost" in messages and "Traceback" not in messages

    printed(start_two("alphaalign", *flags, f"--run={two}", "--resume"))
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (two, one))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        np.testing.assert_array_equal(value, theirs[name], err_msg=name)
    assert (two / "samples.jsonl").read_text() == (one / "samples.jsonl").read_text()
    for part in ("before/answers", "after/answers", "after/verdicts"):
        ours, theirs = ((x / part / "heldout.jsonl").read_text() for x in (two, one))
        assert ours == theirs, part
    rows = [json.loads(line) for line in (two / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(STEPS))
    assert "2 processes" in json.loads((two / "summary.json").read_text())["hardware"]


@pytest.mark.slow
def test_without_the_first_process_the_other_ends_and_one_goes_on(
    start, start_two, arguments, tmp_path
):
    """JAX itself ends a process whose coordinator is gone. One with both devices takes over."""
    flags = ["demo", *arguments, "--steps=8", "--checkpoint-every=2", f"--run={tmp_path}/run"]
    processes = start_two("alphaalign", *flags)
    wait_for_checkpoint(tmp_path / "run", 0, processes[0])
    processes[0].kill()
    processes[1].communicate(timeout=300)
    assert processes[1].returncode in (os.EX_TEMPFAIL, -signal.SIGABRT)
    command = ["experiments/alphaalign.py", *flags, "--mesh", "1", "1", "1", "--resume"]
    (first,) = printed([start(command, 1)])
    assert "resumed after step" in first and "step 8/8" in first


@pytest.mark.slow
def test_two_processes_with_other_settings_do_not_begin(start, arguments, tmp_path):
    address = free_address()
    flags = ["experiments/alphaalign.py", "demo", *arguments, *MESH, f"--run={tmp_path / 'run'}"]
    processes = [
        start([*flags, f"--processes={address},2,{index}", f"--seed={index}"], 1)
        for index in range(2)
    ]
    _, second = (process.communicate(timeout=300)[1] for process in processes)
    assert "seed is 0 in the first process and 1 in another: give all of them the same" in second
    assert processes[1].returncode == 2 and processes[0].returncode in (2, os.EX_TEMPFAIL)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.slow
def test_the_cold_start_on_two_processes(start, tiny_model_folder):
    """Guided traces and what is learned from them: all bits of one process with both devices."""
    (one,) = printed([start(["-c", _COLD_START, "", tiny_model_folder], 2)])
    address = free_address()
    command = ["-c", _COLD_START, f"{address},2,%d", tiny_model_folder]
    processes = [start([str(x).replace("%d", str(i)) for x in command], 1) for i in range(2)]
    first, second = printed(processes)
    assert first == one and "'harmful, consulted': 2" in one and not second


@pytest.mark.slow
def test_consulting_on_two_processes(start_two, arguments, tmp_path):
    """And validation, which both agree on: whose parameters the best are, and where to stop."""
    (tmp_path / "more.jsonl").write_text('{"prompt": "Name a bird.", "kind": "benign"}\n')
    flags = ["--cold-start=none", "--steps=3", f"--run={tmp_path / 'run'}", "--evaluate-every=1"]
    flags += ["--keep=best", f"--validation={tmp_path / 'more.jsonl'}"]
    flags += ["--guard=collapse", "--guard.entropy=100"]
    first, second = printed(start_two("ascl", "smollm2", *arguments, *flags))
    assert "step 2/3" in first and "step 3/3" not in first and not second
    assert "stopped after step 2: " in first and "the result is the policy after step 0" in first
    asked = {path.parent.name for path in (tmp_path / "run" / "validation").glob("*/results.json")}
    assert asked == {"0", "1", "2"} and not (tmp_path / "run" / "best").exists()
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()


@pytest.mark.slow
def test_self_generation_and_preferences_on_two_processes(start_two, arguments, tmp_path):
    """A random model says nothing right, so its answers are declared right before they are used."""
    of_rl = ("--samples", "--harmful", "--benign", "--lookalike")
    arguments = [word for word in arguments if not word.startswith(of_rl)]
    flags = ["--arm=preference", "--context=short-code", "--steps=2"]
    flags += [f"--generated={tmp_path / 'generated.jsonl'}", "--max-prompt-tokens=40"]
    command = ["cada", "smollm2", *arguments, *flags]
    printed(start_two(*command, f"--run={tmp_path / 'first'}"), code=2)
    rows = [json.loads(line) for line in (tmp_path / "generated.jsonl").open()]
    assert len(rows) == 4  # two harmful prompts, two answers each
    right = {"finished": True, "well_formed": True, "refused": True}
    texts = [json.dumps(row | right) + "\n" for row in rows]
    (tmp_path / "generated.jsonl").write_text("".join(texts))
    first, second = printed(start_two(*command, f"--run={tmp_path / 'second'}"))
    assert "step 2/2" in first and not second
    assert (tmp_path / "second" / "yield.md").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--processes=auto"], "processes: several of them need a --mesh"),
        (["--processes=here,2,0", *MESH], "must be auto, or HOST:PORT,COUNT,INDEX"),
        (["--processes=127.0.0.1:1234,2,2", *MESH], "with INDEX below COUNT"),
    ],
)
def test_bad_processes_give_one_line(arguments, tmp_path, capsys, flags, message):
    assert main(["demo", *arguments, *flags, f"--run={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("alphaalign: error:") and message in error and error.count("\n") == 1


def test_a_port_that_is_taken_is_named(arguments, tmp_path, capsys):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        flags = [*MESH, f"--processes=127.0.0.1:{port},2,0", f"--run={tmp_path / 'run'}"]
        assert main(["demo", *arguments, *flags]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"processes=127.0.0.1:{port},2,0: the first process can't listen at port {port}" in line
