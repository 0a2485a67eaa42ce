"""The files a run writes while it trains, and what a kill and a resume leave of them."""

import json
import os
import signal
import subprocess
import sys
import textwrap

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxalign.host.errors import InputError
from jaxalign.host.metrics import MetricsWriter, SamplesWriter, read_metrics, read_samples

SAMPLE = {
    "prompt": "How do I kill a process?",
    "kind": "lookalike",
    "completion": "Use kill.\nThen wait.\u2028",
    "reward": 1.5,
    "well_formed": True,
    "refused": False,
    "helpfulness": 0.25,
}


def write_steps(folder, steps, **options):
    with MetricsWriter(folder, **options) as writer:
        for step in steps:
            writer.write(step, {"reward": step / 2})


def lines(folder, name="metrics.jsonl"):
    return (folder / name).read_text().splitlines()


def test_every_kind_of_scalar(tmp_path):
    with MetricsWriter(tmp_path / "runs" / "new") as writer:
        metrics = {
            "python": 0.1,
            "integer": 3,
            "numpy": np.float32(0.5),
            "jax": jnp.float32(0.25),
            "bfloat16": jnp.bfloat16(1.5),
            "flag": jnp.bool_(True),
        }
        writer.write(12, metrics)
    (row,) = read_metrics(tmp_path / "runs" / "new")
    assert row.pop("time") >= 0
    assert row == {
        "step": 12,
        "python": 0.1,
        "integer": 3.0,
        "numpy": 0.5,
        "jax": 0.25,
        "bfloat16": 1.5,
        "flag": 1.0,
    }


def test_a_line_is_on_disk_before_the_writer_closes(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(0, {"reward": 1.0})
        assert read_metrics(tmp_path)[0]["reward"] == 1.0


def test_nonfinite_numbers_become_null_and_are_not_forgotten(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write(0, {"a": float("nan"), "b": jnp.inf, "c": -np.inf, "d": 2.0})
    (row,) = [json.loads(line, parse_constant=pytest.fail) for line in lines(tmp_path)]
    assert (row["a"], row["b"], row["c"], row["d"]) == (None, None, None, 2.0)
    assert row["nonfinite"] == {"a": "nan", "b": "inf", "c": "-inf"}


@pytest.mark.parametrize("name", ["step", "time", "nonfinite"])
def test_names_of_the_writer_are_refused(tmp_path, name):
    with MetricsWriter(tmp_path) as writer, pytest.raises(ValueError, match=name):
        writer.write(0, {name: 1.0})


def test_vectors_are_refused(tmp_path):
    with MetricsWriter(tmp_path) as writer, pytest.raises(TypeError):
        writer.write(0, {"reward": jnp.ones(3)})


def test_resume_has_each_step_once(tmp_path):
    write_steps(tmp_path, range(8))
    write_steps(tmp_path, range(5, 10), resume_step=5)
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == list(range(10))
    assert [row["reward"] for row in rows] == [step / 2 for step in range(10)]


def test_resume_keeps_old_lines_byte_for_byte_and_goes_on_with_the_clock(tmp_path):
    old = b'{"step": 0, "time": 100.0,  "reward": 1.00}\n{"step": 1, "time": 250.5}\n'
    (tmp_path / "metrics.jsonl").write_bytes(old)
    write_steps(tmp_path, [2], resume_step=2)
    assert (tmp_path / "metrics.jsonl").read_bytes().startswith(old)
    assert 250.5 <= read_metrics(tmp_path)[-1]["time"] < 300


def test_new_run_starts_the_file_anew(tmp_path):
    write_steps(tmp_path, range(3))
    write_steps(tmp_path, [0])
    assert [row["step"] for row in read_metrics(tmp_path)] == [0]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_cut_at_any_byte_is_survived(tmp_path):
    write_steps(tmp_path, range(2))
    path = tmp_path / "metrics.jsonl"
    whole = path.read_bytes()
    first, second = whole.splitlines(keepends=True)
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        complete = (cut >= len(first) - 1) + (cut >= len(whole) - 1)
        assert [row["step"] for row in read_metrics(tmp_path)] == list(range(complete))
        with SamplesWriter(tmp_path):  # its neighbour's file is none of its business
            assert path.read_bytes() == whole[:cut]
    path.write_bytes(whole[: len(first) + 9])
    write_steps(tmp_path, [1, 2], resume_step=1)
    assert [row["step"] for row in read_metrics(tmp_path)] == [0, 1, 2]


@pytest.mark.parametrize(
    "broken", [b"{", b"", b"[1]", b'{"time": 1}', b'{"step": "2"}', b"\xff\xfe", b'{"step": 2} x']
)
def test_a_malformed_line_is_named_and_left_alone(tmp_path, broken):
    path = tmp_path / "metrics.jsonl"
    content = b'{"step": 0}\n' + broken + b'\n{"step": 2}\n'
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"metrics.jsonl, line 2: .*'step'"):
        read_metrics(tmp_path)
    with pytest.raises(InputError, match="line 2"):
        MetricsWriter(tmp_path, resume_step=1)
    assert path.read_bytes() == content


def test_no_file(tmp_path):
    with pytest.raises(InputError, match="metrics.jsonl: no such file"):
        read_metrics(tmp_path)
    with pytest.raises(InputError, match="samples.jsonl: no such file"):
        read_samples(tmp_path)


def test_samples_of_several_prompts_and_steps(tmp_path):
    with SamplesWriter(tmp_path) as writer:
        for step in (0, 10, 20):
            writer.write(step, [SAMPLE, {**SAMPLE, "reward": np.float32(0.5)}])
    with SamplesWriter(tmp_path, resume_step=15) as writer:
        writer.write(20, [{**SAMPLE, "refused": np.bool_(True), "helpfulness": float("nan")}])
    rows = read_samples(tmp_path)
    assert [row["step"] for row in rows] == [0, 0, 10, 10, 20]
    assert rows[0] == {"step": 0, **SAMPLE}
    assert rows[1]["reward"] == 0.5
    assert rows[-1]["refused"] is True
    assert rows[-1]["helpfulness"] is None and rows[-1]["nonfinite"] == {"helpfulness": "nan"}
    assert len(lines(tmp_path, "samples.jsonl")) == 5, "one line each, whatever the text holds"


@settings(deadline=None, max_examples=50)
@given(text=st.text(st.characters(), max_size=30))
def test_any_text_comes_back(tmp_path_factory, text):
    # Lone surrogates included: a byte-level tokenizer cut short can produce them.
    folder = tmp_path_factory.mktemp("run")
    with SamplesWriter(folder) as writer:
        writer.write(0, [{**SAMPLE, "completion": text + "\ud83d"}])
    assert read_samples(folder)[0]["completion"] == text + "\ud83d"


def test_tensorboard_has_the_finite_scalars(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    with MetricsWriter(tmp_path) as writer:
        writer.write(0, {"reward": 0.5, "grad_norm": float("nan")})
        writer.write(1, {"reward": 0.75, "grad_norm": 2.0})
    (path,) = (tmp_path / "tensorboard").iterdir()
    data = path.read_bytes()
    scalars = []
    while data:  # a record: length (8 bytes), its checksum (4), the event, its checksum (4)
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        scalars += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        data = data[16 + length :]
    assert scalars == [(0, "reward", 0.5), (1, "reward", 0.75), (1, "grad_norm", 2.0)]


def test_kill_9_in_mid_run_and_resume(tmp_path):
    script = f"""
        import itertools
        from jaxalign.host.metrics import MetricsWriter
        writer = MetricsWriter({str(tmp_path)!r})
        for step in itertools.count():
            writer.write(step, {{"reward": step / 2}})
            if step == 20:
                print("ready", flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stdout=subprocess.PIPE,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    before = read_metrics(tmp_path)
    assert [row["step"] for row in before] == list(range(len(before))) and len(before) > 20
    write_steps(tmp_path, range(10, 25), resume_step=10)
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(25))
