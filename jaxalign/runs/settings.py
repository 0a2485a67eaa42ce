"""Settings that every experiment has, and how a script reads them from the command line."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from jaxalign.engine.baselines import Group, InverseFrequency, Shrinkage
from jaxalign.engine.objective import GRPO, Objective
from jaxalign.engine.optimizer import AdamW, Decay, Linear
from jaxalign.engine.ppo import PPO
from jaxalign.host.errors import InputError
from jaxalign.models.files.huggingface import check_replaceable
from jaxalign.runs.added_rewards import split_weight
from jaxalign.runs.flags import CHOICES, flag_name, parse_flags


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of every run."""

    run: Path = Path("runs/run")
    """Run folder to write."""
    resume: bool = False
    """Go on from the newest checkpoint in the run folder."""
    model: str = "smollm2"
    """Start model: smollm2, a .gguf file, a Hugging Face folder, or a hub id."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Compute dtype; auto takes the faster one in a short probe. Parameters are float32."""
    remat: Literal["none", "dots", "full"] = "dots"
    """What the backward pass recomputes in each layer, for memory."""
    mesh: tuple[int, int, int] | None = None
    """Devices that share model and work, as data, fsdp and tensor: with `1 8 1` each of eight keeps
    an eighth of every parameter. By default one device."""
    processes: str | None = None
    """Of a run of several processes, which share the mesh and the run folder: auto where a cluster
    knows them (TPU slices, Slurm, GKE), else HOST:PORT,COUNT,INDEX with the address of the first.
    """
    prompts: tuple[str, ...] = ("builtin:train",)
    """Training prompts: builtin:train, a .jsonl or .csv file, hub:NAME[@SPLIT], tfds:NAME[@SPLIT],
    disk:FOLDER[@SPLIT]; as KIND=SPEC (harmful=my.csv) where the data does not tell the kind."""
    heldout: tuple[str, ...] = ("builtin:heldout",)
    """Prompts for the evaluation before and after, given as above; empty for none."""
    text_field: str | None = None
    """Field with the text of all prompts but the builtin ones, where it has no usual name."""
    max_prompt_tokens: int = 56
    """Longest prompt, beyond the shared prefix. Longer ones are refused with their text."""
    max_new_tokens: int = 64
    """T, longest completion."""
    temperature: float = 0.7
    """Temperature of sampling, and of the policy in RL's loss."""
    steps: int = 40
    """Steps in all; with RL each has --epochs x --minibatches updates."""
    learning_rate: float = 6e-5
    """Peak learning rate (AdamW)."""
    warmup_steps: int = 3
    """Steps until the full learning rate."""
    decay_steps: int = 16
    """Last steps, over which the learning rate falls to zero."""
    decay: Decay = Linear()
    """How it falls."""
    optimizer: AdamW = AdamW()
    """Constants of AdamW beside the learning rate."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    micro_batches: int = 1
    """Parts of an update's batch that gradients are accumulated over, for memory."""
    checkpoint_every: int = 10
    """Steps between checkpoints."""
    sample_every: int = 5
    """Steps between transcripts in samples.jsonl, of a run that samples."""
    seed: int = 0
    """Seed of sampling and data order."""

    @property
    def updates_per_step(self) -> int:
        """How many a step has."""
        return 1


@dataclasses.dataclass(frozen=True)
class RLSettings(Settings):
    """Settings of a run that learns from rewards."""

    harmful: int = 8
    """Harmful prompts in each step."""
    benign: int = 4
    """Plain benign prompts in each step."""
    lookalike: int = 4
    """Harmless prompts that look harmful in each step."""
    samples_per_prompt: int = 4
    """G, completions of each prompt."""
    objective: Objective = GRPO(advantages=Shrinkage())
    """What is minimized: GRPO and what becomes of it with other functions, or PPO."""
    epochs: int = 1
    """Passes over a step's completions."""
    minibatches: int = 1
    """Updates in each pass, each from its share of the prompts with all their completions."""
    critic_learning_rate: float = 1e-4
    """Peak learning rate of PPO's critic; untuned. GRPO leaves it aside."""
    format_weight: float = 1.0
    """r_f, the reward of a well-formed completion."""
    refusal_weight: float = 1.0
    """r_a, the reward of refusing where it is right, and of answering where that is."""
    add_reward: tuple[str, ...] = ()
    """Rewards of your own to add, each as FILE.py:FUNCTION=WEIGHT. A function (batch, samples) of
    arrays runs inside the compiled step, a function (requests, completions) of texts between two
    programs; both return a number for each completion."""
    balance: bool = True
    """Weigh refusals more on the side, harmful or harmless, that goes wrong more often."""

    @property
    def updates_per_step(self) -> int:
        """One for each minibatch of each epoch."""
        return self.epochs * self.minibatches


LOOP_ONLY = ("run", "resume", "checkpoint_every", "sample_every", "dtype", "mesh", "processes")
"""Settings that may change on resume."""

AnySettings = TypeVar("AnySettings", bound=Settings)


def parse(
    arguments: Sequence[str], presets: Mapping[str, AnySettings], *, script: str, doc: str
) -> AnySettings:
    """The preset named by the first word, with flags on top.

    Raises:
      InputError: no such preset.
      SystemExit: after help, or tyro's after a message on a flag.
    """
    names = ", ".join(presets)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{doc}\nPresets: {names}")
        raise SystemExit(0 if arguments else 2)
    if arguments[0] not in presets:
        raise InputError(f"unknown preset {arguments[0]!r}: choose one of {names}")
    preset = presets[arguments[0]]
    return parse_flags(preset, arguments[1:], prog=f"{script} {arguments[0]}")


def check(
    settings: Settings,
    *,
    kept: str | None = None,
    samples: bool = True,
    least: Mapping[str, int] | None = None,
    above_zero: Sequence[str] = (),
    not_negative: Sequence[str] = (),
) -> None:
    """Refuses settings that can't work, before anything slow happens.

    Args:
      settings: to check.
      kept: what else in the run folder, beside checkpoints, a run can be resumed from.
      samples: of `RLSettings`, whether the run's steps sample completions of prompts.
      least: smallest values of whole numbers beside the common settings.
      above_zero: numbers beside the common ones that must be above zero.
      not_negative: numbers beside the common ones that must be zero or above.

    Raises:
      InputError: names the setting and what it may be.
    """
    for name, smallest in (_LEAST | dict(least or {})).items():
        _at_least(settings, name, smallest)
    for name in ("temperature", "learning_rate", "max_grad_norm", *above_zero):
        _above_zero(settings, name)
    for name in not_negative:
        _not_negative(settings, name)
    if isinstance(settings, RLSettings):
        _check_rl(settings, samples)
    if settings.processes is not None and settings.mesh is None:
        raise InputError("processes: several of them need a --mesh over all their devices")
    check_replaceable(settings.run / "model")
    started = has_checkpoint(settings.run) or (kept is not None and (settings.run / kept).exists())
    if settings.resume and not started:
        raise InputError(f"{settings.run}: no checkpoint to resume from: leave --resume out")
    if not settings.resume and started:
        raise InputError(
            f"{settings.run} holds a run already: add --resume to go on, choose another --run, or "
            "remove that folder"
        )


def _check_rl(settings: RLSettings, samples: bool) -> None:
    """Refuses settings of RL that can't work; whether its steps sample decides what must fit."""
    for name, smallest in _LEAST_OF_RL.items():
        _at_least(settings, name, smallest)
    _above_zero(settings, "critic_learning_rate")
    for spec in settings.add_reward:
        split_weight(spec)
    for name in ("b1", "b2"):
        if not 0 <= getattr(settings.optimizer, name) < 1:
            raise InputError(
                f"optimizer.{name}={getattr(settings.optimizer, name)} must be from 0 to below 1"
            )
    for name in ("format_weight", "refusal_weight"):
        _not_negative(settings, name)
    check_objective_settings(settings.objective)
    if not samples:
        if settings.updates_per_step > 1:
            raise InputError("epochs and minibatches are of RL: leave them at 1")
        if isinstance(settings.objective, PPO):
            raise InputError("objective ppo is of RL: leave it out")
        return
    prompts = settings.harmful + settings.benign + settings.lookalike
    if not prompts:
        raise InputError("harmful, benign and lookalike are all 0: a step needs prompts")
    if prompts % settings.minibatches:
        raise InputError(
            f"minibatches={settings.minibatches} does not divide the {prompts} prompts of a "
            "step: change harmful, benign, lookalike or minibatches"
        )
    if (prompts // settings.minibatches) % settings.micro_batches:
        whole = "step" if settings.minibatches == 1 else "minibatch"
        raise InputError(
            f"micro_batches={settings.micro_batches} does not divide the "
            f"{prompts // settings.minibatches} prompts of a {whole}: change harmful, benign, "
            "lookalike or micro_batches"
        )
    check_mesh(settings)


def _at_least(settings: Settings, name: str, smallest: int) -> None:
    if getattr(settings, name) < smallest:
        raise InputError(f"{name}={getattr(settings, name)} is too small: at least {smallest}")


def _above_zero(settings: Settings, name: str) -> None:
    if not (getattr(settings, name) > 0 and math.isfinite(getattr(settings, name))):
        raise InputError(f"{name}={getattr(settings, name)} must be a number above 0")


def _not_negative(settings: Settings, name: str) -> None:
    if not (getattr(settings, name) >= 0 and math.isfinite(getattr(settings, name))):
        raise InputError(f"{name}={getattr(settings, name)} must be a number, 0 or above")


def check_objective_settings(objective: Any) -> None:
    """Refuses constants of an objective that can't work.

    Raises:
      InputError: names the flag and what it may be.
    """
    for name, allowed, says in (
        ("kl.coefficient", lambda x: math.isfinite(x) and x >= 0, "a number, 0 or above"),
        ("discount", lambda x: 0 < x <= 1, "above 0 and at most 1"),
        ("lambda_", lambda x: 0 <= x <= 1, "from 0 to 1"),
        ("value_clip", lambda x: x is None or x > 0, "a number above 0, or None for no bound"),
        ("surrogate.low", lambda x: 0 <= x <= 1, "from 0 to 1"),
        ("surrogate.high", lambda x: x >= 0 and math.isfinite(x), "a number, 0 or above"),
        ("surrogate.max_ratio", lambda x: x > objective.surrogate.min_ratio, "above min_ratio"),
        ("surrogate.temperature_positive", lambda x: x > 0, "a number above 0"),
        ("surrogate.temperature_negative", lambda x: x > 0, "a number above 0"),
        ("advantages.eps", lambda x: x >= 0, "a number, 0 or above"),
        ("surrogate.dual", lambda x: x is None or x > 1, "a number above 1, or None for no bound"),
        ("advantages.weight", lambda x: 0 <= x <= 1, "from 0 to 1"),
        ("advantages.ddof", lambda x: x in (0, 1), "0 or 1"),
        ("aggregation.length", lambda x: x is None or x >= 1, "at least 1, or None"),
        (
            "adjust.max_weight",
            lambda x: x is None or x >= 1,
            "at least 1, or None for no cap",
        ),
    ):
        value: Any = objective
        try:
            for part in name.split("."):
                value = getattr(value, part)
        except AttributeError:  # another kind of object has been chosen
            continue
        if not allowed(value):
            raise InputError(f"objective.{name}={value} must be {says}")
    adjust = getattr(objective, "adjust", None)
    if isinstance(adjust, InverseFrequency) and adjust.form == "baseline":
        if not isinstance(objective.advantages, Group):
            raise InputError(
                "objective.adjust.form=baseline is a baseline of its own: it goes with "
                "--objective.advantages group, not with "
                f"{flag_name(type(objective.advantages))}"
            )


def check_mesh(settings: RLSettings) -> None:
    """Refuses a mesh whose data and fsdp do not divide the completions of a micro-batch.

    Raises:
      InputError: names both numbers, or a size below 1.
    """
    if settings.mesh is None:
        return
    if min(settings.mesh) < 1:
        raise InputError(
            f"mesh: data x fsdp x tensor = {' x '.join(map(str, settings.mesh))} has a size below 1"
        )
    prompts = settings.harmful + settings.benign + settings.lookalike
    rows = prompts * settings.samples_per_prompt // settings.micro_batches // settings.minibatches
    parts = settings.mesh[0] * settings.mesh[1]
    if rows % parts:
        raise InputError(
            f"mesh: data x fsdp = {parts} does not divide the {rows} completions of a "
            "micro-batch: change the prompts, samples_per_prompt, micro_batches or minibatches of "
            "a step"
        )


def has_checkpoint(run: Path) -> bool:
    """Whether a run folder holds a whole checkpoint."""
    return any(path.name.isdigit() for path in (run / "checkpoints").glob("*"))


_LEAST = {
    "max_prompt_tokens": 1,
    "max_new_tokens": 1,
    "steps": 1,
    "warmup_steps": 0,
    "decay_steps": 0,
    "micro_batches": 1,
    "checkpoint_every": 1,
    "sample_every": 1,
    "seed": 0,
}
_LEAST_OF_RL = {
    "harmful": 0,
    "benign": 0,
    "lookalike": 0,
    "samples_per_prompt": 2,
    "epochs": 1,
    "minibatches": 1,
}


def to_json(settings: Settings) -> dict[str, Any]:
    """The settings with paths as text."""
    value: dict[str, Any] = json.loads(json.dumps(_plain(settings), default=str))
    return value


def _plain(value: Any) -> Any:
    """Dataclasses as dictionaries; one that was chosen by a flag says what it is."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    chosen = any(type(value) in classes for classes in CHOICES.values())
    return {"is": flag_name(type(value))} | fields if chosen else fields
