"""The TPU scripts, with a stand-in for gcloud that knows its flags and keeps what it is told."""

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from experiments.ascl import COLD_START_FOLDER as ASCL_START
from experiments.cada import GENERATED as CADA_START

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "tpu_setup"
TRAIN = ["python", "experiments/alphaalign.py", "qwen2.5-7b", "--run", "../bucket/a run"]

# Flags of each command as `gcloud compute tpus … --help` and `xpk … --help` list them.
FAKE = """#!{python}
import json, os, sys
from pathlib import Path

PLACE = ["--zone", "--project"]
FLAGS = {{
    "queued-resources create": PLACE + [
        "--node-id", "--accelerator-type", "--runtime-version", "--spot",
    ],
    "queued-resources describe": PLACE + ["--format"],
    "queued-resources delete": PLACE + ["--force", "--quiet"],
    "tpu-vm scp": PLACE + ["--worker"],
    "tpu-vm ssh": PLACE + ["--worker", "--command"],
    "cluster create": PLACE + ["--cluster", "--tpu-type", "--num-slices", "--spot", "--on-demand"],
    "cluster delete": PLACE + ["--cluster"],
    "workload create": PLACE + [
        "--cluster", "--workload", "--tpu-type", "--num-slices", "--base-docker-image",
        "--script-dir", "--command", "--max-restarts", "--restart-on-exit-codes",
    ],
    "workload delete": PLACE + ["--cluster", "--workload"],
}}
words = sys.argv[1:]
if words[:2] == ["compute", "tpus"]:
    words = words[2:]
command, rest = " ".join(words[:2]), words[2:]
for word in rest:
    if word.startswith("--") and word.split("=")[0] not in FLAGS[command]:
        sys.exit(f"unrecognized arguments: {{word}}")
folder = Path(os.environ["FAKE"])
with (folder / "calls").open("a") as calls:
    calls.write(json.dumps([command, *rest]) + "\\n")
answers = folder / command.replace(" ", "_")
if answers.exists():
    first, *others = json.loads(answers.read_text())
    answers.write_text(json.dumps(others or [first]))
    if first.startswith("ERROR"):
        sys.exit(first)
    print(first)
"""


@pytest.fixture
def cloud(tmp_path):
    """Runs a script with the stand-ins on PATH: `run(script, *arguments, **variables)`."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("gcloud", "xpk"):
        (tools / name).write_text(FAKE.format(python=sys.executable))
        (tools / name).chmod(0o755)

    class Cloud:
        def answer(self, command, *answers):
            (tmp_path / command.replace(" ", "_")).write_text(json.dumps(answers))

        def run(self, script, *arguments, **variables):
            environment = {
                "PATH": f"{tools}:{os.environ['PATH']}",
                "HOME": str(tmp_path),
                "FAKE": str(tmp_path),
                "POLL": "0.01",
                "NAME": "align",
                "ZONE": "us-west4-a",
                **variables,
            }
            return subprocess.run(
                [SCRIPTS / script, *arguments], env=environment, capture_output=True, text=True
            )

        @property
        def calls(self):
            path = tmp_path / "calls"
            return (
                [json.loads(line) for line in path.read_text().splitlines()]
                if path.exists()
                else []
            )

    return Cloud()


TPU = ["align", "--zone=us-west4-a"]
DESCRIBE = ["queued-resources describe", *TPU, "--format=value(state.state)"]
DELETE = ["queued-resources delete", *TPU, "--force", "--quiet"]


def create(accelerator="v5litepod-16", runtime="v2-alpha-tpuv5-lite", *more):
    flags = ["--node-id=align", f"--accelerator-type={accelerator}", f"--runtime-version={runtime}"]
    return ["queued-resources create", *TPU, *flags, *more]


@pytest.mark.parametrize(
    ("accelerator", "runtime"),
    [
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-16", "v2-alpha-tpuv5"),
        ("v6e-8", "v2-alpha-tpuv6e"),
    ],
)
def test_create_waits_until_it_is_there(cloud, accelerator, runtime):
    cloud.answer("queued-resources describe", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    done = cloud.run("create.sh", ACCELERATOR=accelerator, SPOT="1")
    assert done.returncode == 0, done.stderr
    assert cloud.calls == [create(accelerator, runtime, "--spot"), DESCRIBE, DESCRIBE, DESCRIBE]
    assert [line.split()[-1] for line in done.stdout.splitlines()[1:]] == [
        "WAITING_FOR_RESOURCES",
        "PROVISIONING",
        "ACTIVE",
    ]


def test_create_says_when_it_will_not_come(cloud):
    cloud.answer("queued-resources describe", "FAILED")
    done = cloud.run("create.sh", ACCELERATOR="v6e-8", PROJECT="mine")
    assert done.returncode == 2
    assert done.stderr == (
        "tpu_setup: align is FAILED and will not come; tpu_setup/delete.sh, then try again or "
        "elsewhere\n"
    )
    assert "--project=mine" in cloud.calls[0] and "--spot" not in cloud.calls[0]


def test_prepare_copies_the_commit_and_installs_it(cloud):
    assert cloud.run("prepare.sh", BUCKET="runs").returncode == 0
    copy, install = cloud.calls
    assert copy[0] == "tpu-vm scp" and copy[1].endswith("/jaxalign.tar.gz")
    assert copy[2:] == ["align:jaxalign.tar.gz", "--zone=us-west4-a", "--worker=all"]
    assert install[:4] == ["tpu-vm ssh", "align", "--zone=us-west4-a", "--worker=all"]
    assert install[4] == (
        "--command=rm -rf jaxalign && tar -xzf jaxalign.tar.gz && "
        "bash jaxalign/tpu_setup/worker_prepare.sh runs "
    )
    assert not Path(copy[1]).parent.exists()  # nothing is left here


def test_launch_quotes_the_command(cloud):
    assert cloud.run("launch.sh", *TRAIN).returncode == 0
    ((*head, command),) = cloud.calls
    assert head == ["tpu-vm ssh", "align", "--zone=us-west4-a", "--worker=all"]
    assert command == (
        "--command=bash jaxalign/tpu_setup/worker_launch.sh "
        r"python experiments/alphaalign.py qwen2.5-7b --run ../bucket/a\ run "
    )


def test_watch_stop_and_delete(cloud):
    cloud.answer("queued-resources describe", "ACTIVE")
    for script in ("watch.sh", "stop.sh", "delete.sh"):
        assert cloud.run(script).returncode == 0
    describe, codes, tail, stop, delete = cloud.calls
    assert describe == DESCRIBE and delete == DELETE
    assert codes[3] == "--worker=all" and "run.exit" in codes[4]
    assert tail[3:] == ["--worker=0", "--command=tail -n 20 -F run.log"]
    assert stop[3:] == ["--worker=all", '--command=kill -TERM -- "-$(cat run.pid)"']


def test_keep_resumes_after_a_preemption(cloud):
    """Running, taken away, asked for again, prepared, launched, running, ended with code 3."""
    active = ["ACTIVE"] * 3
    cloud.answer("queued-resources describe", "ACTIVE", "SUSPENDED", "PROVISIONING", *active)
    cloud.answer("tpu-vm ssh", "running", "", "", "running", "3")
    done = cloud.run("keep.sh", *TRAIN, ACCELERATOR="v5litepod-16", BUCKET="runs", SPOT="1")
    assert done.returncode == 3, done.stderr
    assert [call[0].split()[1] for call in cloud.calls] == [
        *("describe", "ssh"),
        *("describe", "delete", "create", "describe", "describe", "scp", "ssh", "ssh"),
        *("describe", "ssh", "describe", "ssh"),
    ]
    assert "align is SUSPENDED: another one" in done.stdout
    assert "the run has ended with exit code 3" in done.stdout


@pytest.mark.parametrize("said", ["gone", "75", "134", "137"])
def test_keep_starts_all_again_where_one_was_lost(cloud, said):
    cloud.answer("queued-resources describe", "ACTIVE")
    cloud.answer("tpu-vm ssh", said, f"code {said}\ncode", "", "", "", "0")
    done = cloud.run("keep.sh", *TRAIN, ACCELERATOR="v5litepod-16", BUCKET="runs")
    assert done.returncode == 0, done.stderr
    assert [call[0].split()[1] for call in cloud.calls] == [
        *("describe", "ssh", "ssh", "ssh", "scp", "ssh", "ssh", "describe", "ssh")
    ]
    assert "kill -KILL" in cloud.calls[3][-1] and "--worker=all" in cloud.calls[3]
    assert f"a worker was lost ({said}): all of them start again" in done.stdout


def test_keep_ends_with_the_code_of_the_worker_that_failed(cloud):
    """The first worker only sees that the other one is gone."""
    cloud.answer("queued-resources describe", "ACTIVE")
    cloud.answer("tpu-vm ssh", "75", "code 75\ncode 2")
    done = cloud.run("keep.sh", *TRAIN, ACCELERATOR="v5litepod-16", BUCKET="runs")
    assert done.returncode == 2
    assert "a worker has ended with exit code 2; see its run.log" in done.stdout


def test_keep_does_not_start_again_for_ever(cloud):
    cloud.answer("queued-resources describe", "ACTIVE")
    cloud.answer("tpu-vm ssh", "134")
    variables = {"ACCELERATOR": "v5litepod-16", "BUCKET": "runs", "RESTARTS": "2"}
    done = cloud.run("keep.sh", *TRAIN, **variables)
    assert done.returncode == 2 and done.stdout.count("all of them start again") == 2
    assert done.stderr == "tpu_setup: a worker was lost once more; see run.log on all of them\n"


@pytest.mark.parametrize("flags", [[], ["--run", "runs/a"], ["--run", "bucket/a"]])
def test_keep_wants_the_run_folder_in_the_bucket(cloud, flags):
    variables = {"ACCELERATOR": "v5litepod-16", "BUCKET": "runs"}
    done = cloud.run("keep.sh", *TRAIN[:3], *flags, **variables)
    assert done.returncode == 2 and not cloud.calls
    assert done.stderr == (
        "tpu_setup: the run folder has to outlive the TPU; add --run ../bucket/FOLDER to the "
        "command\n"
    )
    cloud.answer("queued-resources describe", "ACTIVE")
    cloud.answer("tpu-vm ssh", "0")
    assert cloud.run("keep.sh", *TRAIN[:3], "--run=../bucket/a", **variables).returncode == 0


def test_keep_says_when_a_worker_does_not_answer(cloud):
    cloud.answer("queued-resources describe", "ACTIVE")
    cloud.answer("tpu-vm ssh", "", "no such file")
    done = cloud.run("keep.sh", *TRAIN, ACCELERATOR="v5litepod-16", BUCKET="runs")
    assert done.stdout.count("the first worker can't be reached; trying again in 0.01 s") == 1
    assert done.returncode == 2
    assert done.stderr == (
        "tpu_setup: the first worker says 'no such file', which is no exit code\n"
    )


def test_watch_ends_where_there_is_no_login(cloud):
    cloud.answer("queued-resources describe", "ERROR: (gcloud) PERMISSION_DENIED: log in")
    assert cloud.run("watch.sh").returncode == 2
    assert [call[0] for call in cloud.calls] == ["queued-resources describe"]


def test_a_login_that_fails_is_not_taken_for_a_missing_tpu(cloud):
    cloud.answer("queued-resources describe", "ERROR: (gcloud) PERMISSION_DENIED: log in")
    done = cloud.run("keep.sh", *TRAIN, ACCELERATOR="v5litepod-16", BUCKET="runs")
    assert done.returncode == 2
    assert done.stderr == "tpu_setup: ERROR: (gcloud) PERMISSION_DENIED: log in\n"
    assert [call[0] for call in cloud.calls] == ["queued-resources describe"]


def test_a_tpu_that_is_missing_is_created(cloud):
    cloud.answer("queued-resources describe", "ERROR: NOT_FOUND: Resource 'align'", "ACTIVE")
    cloud.answer("tpu-vm ssh", "", "", "0")
    done = cloud.run("keep.sh", *TRAIN, ACCELERATOR="v5litepod-16", BUCKET="runs")
    assert done.returncode == 0, done.stderr
    assert cloud.calls[1] == create()


def test_clusters(cloud):
    place = ["--cluster=mine", "--zone=us-west4-a"]
    variables = {"CLUSTER": "mine", "ACCELERATOR": "v5litepod-16"}
    for words in (["create"], ["run", *TRAIN], ["delete"], ["delete-cluster"]):
        assert cloud.run("xpk.sh", *words, **variables).returncode == 0
    created, run, deleted, gone = cloud.calls
    size = ["--tpu-type=v5litepod-16", "--num-slices=1"]
    assert created == ["cluster create", *place, *size, "--on-demand"]
    assert run[:6] == ["workload create", *place, "--workload=align", *size]
    assert run[6] == "--base-docker-image=python:3.12"
    assert run[8:10] == ["--max-restarts=10", "--restart-on-exit-codes=75"]
    assert run[10].endswith(
        r"with_resume.sh python experiments/alphaalign.py qwen2.5-7b --run ../bucket/a\ run "
    )
    assert deleted == ["workload delete", *place, "--workload=align"]
    assert gone == ["cluster delete", *place]


@pytest.mark.parametrize(
    "script",
    [
        "create.sh",
        "prepare.sh",
        "launch.sh",
        "watch.sh",
        "stop.sh",
        "keep.sh",
        "delete.sh",
        "xpk.sh",
    ],
)
def test_a_dry_run_prints_what_would_be_run(cloud, script):
    arguments = {"launch.sh": TRAIN, "keep.sh": TRAIN, "xpk.sh": ["run", *TRAIN]}.get(script, [])
    variables = {"ACCELERATOR": "v5litepod-16", "BUCKET": "runs", "CLUSTER": "mine", "DRY_RUN": "1"}
    done = cloud.run(script, *arguments, **variables)
    assert done.returncode == 0, done.stderr
    shown = ("+ gcloud compute tpus ", "+ git ", "+ xpk ")
    assert all(line.startswith(shown) for line in done.stdout.splitlines())
    assert done.stdout and not cloud.calls


@pytest.mark.parametrize(
    ("script", "variables", "message"),
    [
        (
            "create.sh",
            {"NAME": ""},
            "NAME is not set; set it in the environment, such as NAME=align",
        ),
        ("create.sh", {}, "ACCELERATOR is not set"),
        ("create.sh", {"ACCELERATOR": "v3-8"}, "use v5litepod-N, v5p-N or v6e-N"),
        ("launch.sh", {}, "no command; give one such as python"),
        ("keep.sh", {"ACCELERATOR": "v6e-8"}, "BUCKET is not set"),
        (
            "keep.sh",
            {"ACCELERATOR": "v6e-8", "BUCKET": "runs"},
            "no command; give one such as python",
        ),
        ("xpk.sh", {"CLUSTER": "mine"}, "use create, run, delete or delete-cluster"),
    ],
)
def test_bad_input_is_one_line(cloud, script, variables, message):
    done = cloud.run(script, **variables)
    assert done.returncode == 2 and not cloud.calls
    (line,) = done.stderr.splitlines()
    assert line.startswith("tpu_setup: ") and message in line


# --- on a worker ---------------------------------------------------------------------------------


def exit_code(home):
    """Of the run, once its process is gone."""
    ended = '[[ -s run.exit ]] && ! kill -0 "$(cat run.pid)" 2>/dev/null'
    waiting = f"until {ended}; do sleep 0.02; done; cat run.exit"
    return subprocess.run(
        ["timeout", "20", "bash", "-c", waiting], cwd=home, capture_output=True, text=True
    ).stdout.strip()


def launch_on_worker(home, *command):
    folder = home / "jaxalign" / "tpu_setup"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("worker_launch.sh", "with_resume.sh"):
        shutil.copy(SCRIPTS / name, folder)
    line = ["bash", folder / "worker_launch.sh", *command]
    return subprocess.run(line, cwd=home, capture_output=True, text=True)


def test_a_worker_runs_in_the_background_and_keeps_the_exit_code(tmp_path):
    done = launch_on_worker(tmp_path, "bash", "-c", "echo here: $PWD; exit 5")
    assert done.returncode == 0, done.stderr
    assert exit_code(tmp_path) == "5"
    assert (tmp_path / "run.log").read_text() == f"here: {tmp_path}/jaxalign\n"


@pytest.mark.parametrize("form", ["--run {}", "--run={}"])
@pytest.mark.parametrize(
    ("held", "more"),
    [
        ("", ""),
        ("checkpoints/10", " --resume"),
        ("checkpoints/10.orbax-checkpoint-tmp", ""),
        (ASCL_START, " --resume"),
        (CADA_START, " --resume"),
    ],
)
def test_a_command_resumes_what_its_folder_holds(tmp_path, held, more, form):
    """What a script refuses to begin anew it has to be told to go on with."""
    (tmp_path / "a run" / held).mkdir(parents=True)
    given = ["--run=a run"] if "=" in form else ["--run", "a run"]
    command = ["bash", "-c", 'echo "$@"', "show", *given, "--seed", "1"]
    line = ["bash", SCRIPTS / "with_resume.sh", *command]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == f"{form.format('a run')} --seed 1{more}\n"


def test_a_worker_is_launched_with_resume(tmp_path):
    (tmp_path / "old" / "checkpoints" / "10").mkdir(parents=True)
    launch_on_worker(tmp_path, "bash", "-c", 'echo "$@"', "show", "--run", "../old")
    assert exit_code(tmp_path) == "0"
    assert (tmp_path / "run.log").read_text() == "--run ../old --resume\n"


def test_a_worker_that_is_stopped_is_busy_until_it_has_saved(tmp_path):
    saves = "trap 'sleep 1; echo saved; exit 7' TERM; echo up; while true; do sleep 0.05; done"
    launch_on_worker(tmp_path, "bash", "-c", saves)
    pid = (tmp_path / "run.pid").read_text().strip()
    until_up = "until grep -q up run.log; do sleep 0.02; done"
    subprocess.run(["timeout", "20", "bash", "-c", until_up], cwd=tmp_path, check=True)
    stop = (SCRIPTS / "stop.sh").read_text().split("on_workers all '")[1].split("'")[0]
    subprocess.run(["bash", "-c", stop], cwd=tmp_path, check=True)
    again = launch_on_worker(tmp_path, "true")
    assert again.returncode == 2
    assert again.stderr == (
        f"worker_launch: process {pid} is still running; tpu_setup/stop.sh ends it\n"
    )
    assert not (tmp_path / "run.exit").exists()
    assert exit_code(tmp_path) == "7"
    assert (tmp_path / "run.log").read_text().endswith("saved\n")
    assert launch_on_worker(tmp_path, "true").returncode == 0


def test_the_pins_install_jax_for_tpus():
    """A pin that jax[tpu] does not allow would fail on every worker, and nowhere else."""
    pins = [
        Requirement(line)
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    pinned = {pin.name: pin for pin in pins if not pin.marker or pin.marker.evaluate()}
    wanted = [Requirement(line) for line in requires("jax")]
    for need in wanted:
        if need.marker and not need.marker.evaluate({"extra": "tpu"}):
            continue
        if need.name in pinned:
            (version,) = (pin.version for pin in pinned[need.name].specifier)
            assert need.specifier.contains(version), f"{need} does not allow {pinned[need.name]}"


def test_shellcheck_has_nothing_to_say():
    checker = Path(sys.executable).with_name("shellcheck")
    command = [str(checker if checker.exists() else shutil.which("shellcheck"))]
    done = subprocess.run([*command, *sorted(SCRIPTS.glob("*.sh"))], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
