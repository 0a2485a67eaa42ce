"""Shows that a rebuilt engine computes what commit f049777 did: samples, metrics, gradients.

    git worktree add /tmp/before f049777
    python experiments/golden/compare.py --before /tmp/before
    python experiments/golden/compare.py --before /tmp/before --cases grpo ppo-split --keep kept
    python experiments/golden/compare.py --before /tmp/later --script after.py

The last commit that draws f049777's noise is the one before "Key noise by row and position": with
it as --after all cases are the same. Later trees are compared with a later one.

`cases.py` has the cases, every pair of algorithm, path, micro-batches and devices among them.
`before.py` runs them with f049777's API, `after.py` with the working tree's, each in a process of
its own for 1 and for 8 virtual devices. Compared are

    samples       of three steps of training, exactly; their log-probabilities
    metrics       of these steps, and of one update on the rollout that `before` drew; rewards too
    gradients     of that update
    parameters    after the three steps

The errors of gradients, parameters, rewards and log-probabilities are those of a tensor, relative
to its largest entry; those of metrics are relative to the metric, or to 0.1 if it is smaller: a
GRPO loss is a sum that cancels, and what is left at 1e-7 is rounding. Ends with 1 if anything
differs.
"""

import argparse
import dataclasses
import hashlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from cases import CASES, FACTORS, Case, named
from common import Arrays, read

HERE = Path(__file__).resolve().parent
TOLERANCE = 1e-5
SMALLEST_METRIC = 0.1
TRIES = 3
MOST_REMARKS = 20
_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
"""Compiling is most of the time."""


# --- running -------------------------------------------------------------------------------------


def run_side(
    script: str, checkout: Path, folder: Path, fixed: Path | None, cases: Sequence[Case]
) -> None:
    """Writes the files of one side's cases, in one process for each number of devices.

    Args:
      script: `before.py` or `after.py`.
      checkout: whose jaxalign it imports.
      folder: where it writes.
      fixed: where the other side has written; None for the first one.
      cases: what to run; what is in the folder already is not run again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for devices in FACTORS["devices"]:
        names = [case.name for case in cases if case.devices == devices]
        missing = [name for name in names if not (folder / f"{name}.npz").exists()]
        if missing:
            begun = time.monotonic()
            _run(script, checkout, folder, fixed, devices, missing)
            seconds = time.monotonic() - begun
            print(f"{script}, {devices} devices, {len(missing)} cases: {seconds:.0f} s", flush=True)


def _run(
    script: str,
    checkout: Path,
    folder: Path,
    fixed: Path | None,
    devices: int,
    names: Sequence[str],
) -> None:
    flags = f"{_FLAGS} --xla_force_host_platform_device_count={devices}"
    environment = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": flags,
        "PYTHONPATH": str(checkout),
        # A program that both sides have to the letter is compiled once.
        "JAX_COMPILATION_CACHE_DIR": str((fixed or folder) / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    command = [sys.executable, str(HERE / script), "--checkout", str(checkout)]
    command += ["--folder", str(folder), "--devices", str(devices)]
    command += [] if fixed is None else ["--fixed", str(fixed)]
    for attempt in range(TRIES):
        done = subprocess.run(
            [*command, *names], env=os.environ | environment, capture_output=True, text=True
        )
        if done.returncode == 0:
            return
        # On few cores the threads of XLA's CPU client can wait for each other in a collective; it
        # aborts after 40 seconds. That says nothing of the program, and its files are kept.
        crashed = devices > 1 and done.returncode == -signal.SIGABRT
        if not crashed or attempt == TRIES - 1:
            break
        print(f"{script}, {devices} devices: crashed, once more", flush=True)
    sys.exit(f"{script} with {checkout} and {devices} devices failed:\n{done.stderr[-4000:]}")


# --- comparing -----------------------------------------------------------------------------------


@dataclasses.dataclass
class Line:
    """What a case's comparison found.

    Attributes:
      name: of the case.
      samples: whether all samples are equal.
      worst: largest relative error of `logps`, `metrics`, `gradients`, `parameters`.
      remarks: what differs, what only one side has, and what makes the case say nothing.
      differs: whether the case counts as different.
    """

    name: str
    samples: bool = True
    worst: dict[str, float] = dataclasses.field(
        default_factory=lambda: dict.fromkeys(("logps", "metrics", "gradients", "parameters"), 0.0)
    )
    remarks: list[str] = dataclasses.field(default_factory=list)
    differs: bool = False

    def __str__(self) -> str:
        cells = ["yes" if self.samples else "NO", *map(_number, self.worst.values())]
        verdict = "DIFFERS" if self.differs else "same"
        return f"{self.name:34}" + "".join(f"{cell:>12}" for cell in (*cells, verdict))


HEADER = f"{'case':34}" + "".join(
    f"{name:>12}" for name in ("samples", "logps", "metrics", "gradients", "parameters", "")
)


def compare(name: str, before: Arrays, after: Arrays) -> Line:
    """Compares what two sides wrote of a case."""
    line = Line(name)
    for path in sorted(before.keys() | after.keys()):
        kind = kind_of(path)
        if path not in before or path not in after:
            line.remarks.append(f"{path}: only {'before' if path in before else 'after'}")
            line.differs |= kind != "metrics"
            continue
        if kind == "samples":
            wrong = not np.array_equal(before[path], after[path])
            line.samples &= not wrong
            said = "not equal"
        else:
            smallest = SMALLEST_METRIC if "/metrics/" in path else 0.0
            error = relative_error(before[path], after[path], smallest)
            line.worst[kind] = max(line.worst[kind], error)
            wrong, said = error > TOLERANCE, f"relative error {_number(error)}"
        if wrong:
            line.differs = True
            line.remarks.append(f"{path}: {said}")
    for remark in emptiness(before, after):
        line.differs = True
        line.remarks.append(remark)
    return line


def kind_of(path: str) -> str:
    """The column of the table that an array belongs to."""
    first, *_, last = path.split("/")
    if first == "samples":
        return "logps" if last == "logps" else "samples"
    return {"gradients": "gradients", "parameters": "parameters"}.get(first, "metrics")


def relative_error(before: np.ndarray, after: np.ndarray, smallest: float = 0.0) -> float:
    """The largest difference over the largest entry of `before`, or over `smallest` if it is more.

    NaN equals NaN, as the metric of a kind of prompts without rows; shapes must be the same.
    """
    if before.shape != after.shape:
        return math.inf
    a, b = before.astype(np.float64), after.astype(np.float64)
    if np.array_equal(a, b, equal_nan=True):
        return 0.0
    scale = max(float(np.max(np.abs(a))), smallest)
    error = float(np.max(np.abs(a - b)))
    return error / scale if scale > 0 and math.isfinite(error) else math.inf


def emptiness(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> list[str]:
    """Why a comparison would say little: nothing shared, learned or rewarded."""
    shared = before.keys() & after.keys()
    found = [
        f"no {kind} that both sides have"
        for kind in ("samples", "metrics", "gradients", "parameters")
        if not any(kind_of(path) == kind for path in shared)
    ]
    gradients = [x for path, x in before.items() if kind_of(path) == "gradients"]
    if not all(np.isfinite(x).all() and x.any() for x in gradients):
        found.append("a gradient is zero everywhere or not finite")
    if "fixed/rewards" in before and np.ptp(before["fixed/rewards"]) == 0:
        found.append("all rewards are equal")
    return found


def _number(error: float) -> str:
    return "0" if error == 0 else f"{error:.1e}"


# --- the program ---------------------------------------------------------------------------------


def main() -> int:
    """Runs both sides, prints the table and returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path, required=True, help="a checkout, f049777's or later")
    parser.add_argument(
        "--script", default="before.py", help="after.py for a checkout that has the new API"
    )
    parser.add_argument("--after", type=Path, default=HERE.parents[1], help="the rebuilt tree")
    parser.add_argument("--cases", nargs="*", default=[], help="parts of names; default: all")
    parser.add_argument("--keep", type=Path, help="folder that keeps before's files for next time")
    options = parser.parse_args()
    cases = named(options.cases)
    if not cases:
        parser.error(f"no case is named so; there are {', '.join(case.name for case in CASES)}")
    with tempfile.TemporaryDirectory() as temporary:
        first = (
            options.keep or Path(temporary)
        ) / f"before-{digest(options.script, options.before)}"
        second = Path(temporary) / "after"
        run_side(options.script, options.before.resolve(), first.resolve(), None, cases)
        run_side("after.py", options.after.resolve(), second, first.resolve(), cases)
        lines = [
            compare(case.name, *(read(side / f"{case.name}.npz") for side in (first, second)))
            for case in cases
        ]
    print(HEADER)
    for line in lines:
        print(line)
        for remark in line.remarks[:MOST_REMARKS]:
            print(f"    {remark}")
        if len(line.remarks) > MOST_REMARKS:
            print(f"    and {len(line.remarks) - MOST_REMARKS} more")
    wrong = sum(line.differs for line in lines)
    print(f"{len(lines)} cases, {wrong} differ" + ("" if wrong else ": the same numbers"))
    return 1 if wrong else 0


def digest(script: str, checkout: Path) -> str:
    """Of what before's files depend on, so that kept ones are never those of other cases."""
    sources = [(HERE / name).read_bytes() for name in ("cases.py", "common.py", script)]
    place = str(checkout.resolve()).encode()
    return hashlib.sha256(b"".join([*sources, place])).hexdigest()[:12]


if __name__ == "__main__":
    raise SystemExit(main())
