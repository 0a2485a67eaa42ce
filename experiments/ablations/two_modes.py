"""IFPO on the smallest model that can drift: a policy with two modes, in exact expectation.

    python experiments/ablations/two_modes.py
    python experiments/ablations/two_modes.py --group 16 --steps 2000 --shared 2 --out runs/mine

A request of class c is harmful, benign or a look-alike. The policy consults with probability
p_c = σ(θ + δ_c): θ is what all classes share, δ_c what tells them apart. The outcome is right (1)
with probability q_c1 after consulting and q_c0 without. Nothing else is learned, so all that moves
is how often each class consults.

Drift. The expected gradient of the objective with respect to the logit of p,

    g(p) = E [ 1/G Σ_i A_i(r, m) (m_i − p) ],    m_i ~ Bernoulli(p),  r_i ~ Bernoulli(q_{m_i})

is a finite sum over the number of consultations n and of successes in either mode, taken here with
the library's own advantages; docs/ascl.md has it to first order in q_1 − q_0, and what follows.

Training. The same policy with sampled groups, as in a real run: N prompts a step, G samples each,
plain gradient ascent on (θ, δ), where θ learns `shared` times as fast: 0 lets each class go its own
way, and the larger it is the more the classes carry each other along. A table for each shows where
they stand at the end.
"""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.host.command import run_command
from jaxalign.host.fields import Checked, Count, Positive
from jaxalign.host.json_files import write_json
from jaxalign.host.markdown import markdown_table
from jaxalign.losses import group_advantages, inverse_frequency_advantages
from jaxalign.records import KINDS as CLASSES
from jaxalign.reports.plots import KIND_LINES, drawn_panels


@dataclasses.dataclass(frozen=True)
class Arm:
    """How advantages are made: GRPO where `form` is None."""

    label: str
    form: Literal["weight", "baseline"] | None = None
    scope: Literal["group", "batch"] = "group"
    max_weight: float | None = None

    def advantages(self, rewards: jax.Array, modes: jax.Array) -> jax.Array:
        """`[N, G]` rewards and modes to `[N, G]` advantages."""
        if self.form is None:
            return group_advantages(rewards)
        return inverse_frequency_advantages(
            rewards,
            modes,
            num_modes=2,
            form=self.form,
            scope=self.scope,
            max_weight=self.max_weight,
        )


ARMS = (
    Arm("GRPO"),
    Arm("weight, group", "weight"),
    Arm("weight, group, cap 1.5", "weight", max_weight=1.5),
    Arm("weight, batch", "weight", "batch"),
    Arm("baseline, group", "baseline"),
    Arm("baseline, batch", "baseline", "batch"),
)


@dataclasses.dataclass(frozen=True)
class Settings(Checked):
    """The world, and the run in it."""

    right_consulting: tuple[float, float, float] = (0.95, 0.80, 0.85)
    """q_c1 of harmful, benign, look-alike: rules help to refuse, and mislead on harmless ones."""
    right_alone: tuple[float, float, float] = (0.70, 0.90, 0.75)
    """q_c0, without consulting."""
    shares: tuple[float, float, float] = (0.5, 0.25, 0.25)
    """Share of each class in a step."""
    start: float = 0.5
    """p of every class at first."""
    group: Count = 8
    """G, samples of a prompt."""
    prompts: Count = 16
    """N, prompts in a step."""
    steps: Count = 600
    """Of training."""
    learning_rate: Positive = 0.3
    """Of plain gradient ascent on θ and δ."""
    shared: tuple[float, ...] = (0.0, 1.0, 4.0)
    """How fast θ learns, relative to δ: what carries the classes along with each other. Each is a
    run of all arms."""
    seeds: Count = 20
    """Runs of each arm."""
    out: Path = Path("runs/two_modes")
    """Folder for results.json, drift.png and training.png."""


def drift(arm: Arm, p: np.ndarray, right: tuple[float, float], group: int) -> np.ndarray:
    """g(p), the exact expected gradient at each of P consulting rates, of scope "group".

    Args:
      arm: the advantages; their scope is not "batch".
      p: `[P]` in (0, 1).
      right: q_0 and q_1.
      group: G.

    Returns:
      `[P]` float64.
    """
    states = [
        (n, a, b) for n in range(group + 1) for a in range(n + 1) for b in range(group - n + 1)
    ]
    n, a, b = (np.array(column) for column in zip(*states, strict=True))
    place = np.arange(group)
    # The first n samples consult, and of each mode the first ones succeed.
    modes = place < n[:, None]
    rewards = np.where(modes, place < a[:, None], place - n[:, None] < b[:, None])
    advantage = np.asarray(
        arm.advantages(jnp.asarray(rewards, jnp.float32), jnp.asarray(modes)), np.float64
    )
    choose = np.array([[math.comb(i, j) for j in range(group + 1)] for i in range(group + 1)])
    outcomes = choose[n, a] * right[1] ** a * (1 - right[1]) ** (n - a)
    outcomes = outcomes * choose[group - n, b] * right[0] ** b * (1 - right[0]) ** (group - n - b)
    p = p[:, None]
    chance = choose[group, n] * p**n * (1 - p) ** (group - n) * outcomes
    pull = (advantage * (modes - p[:, :, None])).mean(axis=-1)
    return (chance * pull).sum(axis=1)


def fixed_point(arm: Arm, right: tuple[float, float], group: int) -> float | None:
    """The p in (0.001, 0.999) that the drift leads back to from both sides; None for none."""
    p = np.linspace(0.001, 0.999, 999)
    g = np.where(np.abs(g := drift(arm, p, right, group)) < 1e-7, 0.0, g)
    places = np.flatnonzero((g[:-1] > 0) & (g[1:] <= 0))
    return float(p[places[0] + 1]) if places.size else None


def train(arm: Arm, settings: Settings, shared: float) -> np.ndarray:
    """Samples groups and follows their gradients; `[seeds, steps + 1, 3]` consulting rates."""
    counts = [round(share * settings.prompts) for share in settings.shares]
    of_class = jnp.repeat(jnp.arange(3), jnp.array(counts), total_repeat_length=sum(counts))
    right = jnp.array([settings.right_alone, settings.right_consulting])  # [2, 3]
    logit = math.log(settings.start / (1 - settings.start))

    def step(
        carry: tuple[jax.Array, jax.Array], key: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        theta, delta = carry
        p = jax.nn.sigmoid(theta + delta)
        choice, outcome = jax.random.uniform(key, (2, sum(counts), settings.group))
        own = p[of_class][:, None]
        modes = (choice < own).astype(jnp.int32)
        rewards = (outcome < right[modes, of_class[:, None]]).astype(jnp.float32)
        pull = (arm.advantages(rewards, modes) * (modes - own)).mean(axis=1)
        by_class = jax.ops.segment_sum(pull, of_class, 3) / sum(counts)
        theta = theta + settings.learning_rate * shared * by_class.sum()
        delta = delta + settings.learning_rate * by_class
        return (theta, delta), p

    def run(key: jax.Array) -> jax.Array:
        start = (jnp.array(logit), jnp.zeros(3))
        (theta, delta), rates = jax.lax.scan(step, start, jax.random.split(key, settings.steps))
        return jnp.concatenate([rates, jax.nn.sigmoid(theta + delta)[None]])

    return np.asarray(jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), settings.seeds)))


GAPS = (-0.05, -0.02, 0.0, 0.02, 0.05)
"""q_1 − q_0 in the table of fixed points."""


def main(settings: Settings) -> dict[str, Any]:
    """Runs all arms, prints the tables, writes results.json and the plots."""
    settings.out.mkdir(parents=True, exist_ok=True)
    rates = {
        shared: {arm.label: train(arm, settings, shared) for arm in ARMS}
        for shared in settings.shared
    }
    rows = {
        str(shared): {label: describe(value, settings) for label, value in arms.items()}
        for shared, arms in rates.items()
    }
    p = np.linspace(0.01, 0.99, 99)
    both = zip(settings.right_alone, settings.right_consulting, strict=True)
    right = dict(zip(CLASSES, both, strict=True))
    apart = [arm for arm in ARMS if arm.scope == "group"]
    exact = {
        arm.label: {name: drift(arm, p, q, settings.group) for name, q in right.items()}
        for arm in apart
    }
    at_start = {
        label: {name: float(np.interp(settings.start, p, g)) for name, g in classes.items()}
        for label, classes in exact.items()
    }
    fixed = {
        f"{arm.label}, q_0 = {q}": [fixed_point(arm, (q, q + x), settings.group) for x in GAPS]
        for arm in apart
        for q in (0.8, 0.2)
    }
    columns = (*CLASSES, "benign peak", "right")
    for shared, table in rows.items():
        cells = {
            label: [f"{row[name]['mean']:.3f} ± {row[name]['sd']:.3f}" for name in columns]
            for label, row in table.items()
        }
        lines = [[label, *those, f"{table[label]['best']:.3f}"] for label, those in cells.items()]
        print(markdown_table([f"shared = {shared}", *columns, "best possible"], lines))
    lines = [[x, *(f"{g:+.3f}" for g in classes.values())] for x, classes in at_start.items()]
    print(markdown_table([f"drift at p = {settings.start}", *CLASSES], lines))
    lines = [[x, *("none" if y is None else f"{y:.2f}" for y in ys)] for x, ys in fixed.items()]
    print(markdown_table(["fixed points of the drift, q_1 - q_0 =", *map(str, GAPS)], lines))
    saved = json.loads(json.dumps(dataclasses.asdict(settings), default=str))
    results = {"settings": saved, "end": rows, "drift_at_start": at_start}
    write_json(settings.out / "results.json", results | {"gaps": GAPS, "fixed_points": fixed})
    plot_drift(p, exact, settings.out / "drift.png")
    panels = {
        f"{label}\nshared = {shared:g}": value
        for shared, arms in rates.items()
        for label, value in arms.items()
    }
    plot_training(panels, settings.out / "training.png", columns=len(ARMS))
    print(f"wrote {settings.out}/results.json, drift.png, training.png")
    return rows


def describe(rates: np.ndarray, settings: Settings) -> dict[str, Any]:
    """Mean and deviation over seeds: rates at the end, benign's highest, right outcomes."""
    end = rates[:, -1]
    alone, consulting = np.array(settings.right_alone), np.array(settings.right_consulting)
    shares = np.array(settings.shares)
    right = ((alone + end * (consulting - alone)) * shares).sum(axis=1)
    peak = rates[:, :, CLASSES.index("benign")].max(axis=1)
    columns = dict(zip(CLASSES, end.T, strict=True)) | {"benign peak": peak, "right": right}
    return {
        name: {"mean": float(x.mean()), "sd": float(x.std(ddof=1))} for name, x in columns.items()
    } | {"best": float((np.maximum(alone, consulting) * shares).sum())}


def plot_drift(p: np.ndarray, exact: dict[str, dict[str, np.ndarray]], path: Path) -> None:
    """The exact drift against the consulting rate, a panel for each class."""
    dashes = ("-", "--", "-.", ":")
    with drawn_panels(path, (12, 3.8), columns=3) as panels:
        for panel, name in zip(panels, CLASSES, strict=True):
            for (label, classes), dash in zip(exact.items(), dashes, strict=True):
                panel.plot(p, classes[name], dash, label=label)
            panel.axhline(0, color="black", linewidth=0.8)
            panel.set(title=name, xlabel="p, how often the class consults")
        panels[0].set_ylabel("g(p), exact; above 0: towards consulting")
        panels[0].legend(frameon=False, fontsize=8)


def plot_training(rates: dict[str, np.ndarray], path: Path, *, columns: int = 3) -> None:
    """Consulting rates `[seeds, steps, 3]`, a panel for each arm: seeds faint, their mean bold."""
    columns = min(columns, len(rates))
    rows = -(-len(rates) // columns)
    size, share = (4 * columns, 3.2 * rows), {"sharex": True, "sharey": True}
    with drawn_panels(path, size, rows, columns, **share) as panels:
        for panel, (label, value) in zip(panels, rates.items(), strict=False):
            for index, name in enumerate(CLASSES):
                color, _ = KIND_LINES[name]
                panel.plot(value[:, :, index].T, color=color, alpha=0.15, linewidth=0.6)
                mean = np.nanmean(value[:, :, index], axis=0)
                panel.plot(mean, color=color, linewidth=2, label=name)
            panel.set(title=label, ylim=(-0.02, 1.02))
        panels[0].legend(frameon=False, fontsize=9)
        panels[0].figure.supxlabel("step")
        panels[0].figure.supylabel("share of samples that consult")


if __name__ == "__main__":
    run_command("two_modes", Settings, main, __doc__)
