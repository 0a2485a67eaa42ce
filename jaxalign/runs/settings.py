"""Settings that every experiment has, and how a script reads them from the command line."""

import dataclasses
import json
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from jaxalign.data import load_all
from jaxalign.data.prompts import Prompt
from jaxalign.engine.baselines import Group, InverseFrequency, Shrinkage
from jaxalign.engine.objective import GRPO, Objective
from jaxalign.engine.optimizer import AdamW, Decay, Linear
from jaxalign.engine.ppo import PPO
from jaxalign.engine.surrogates import Cispo
from jaxalign.host.errors import InputError
from jaxalign.models.files.huggingface import check_replaceable
from jaxalign.reports.evaluation_folder import check_evaluation
from jaxalign.reports.run_folder import MOMENTS
from jaxalign.runs.added_rewards import split_weight
from jaxalign.runs.flags import CHOICES, flag_name, parse_flags
from jaxalign.text.chat_template import day_of


class Rule(NamedTuple):
    """What a number may be, and what is said of one that it may not be."""

    allows: Callable[[Any], bool]
    otherwise: str

    def check(self, name: str, value: Any) -> None:
        """Raises an `InputError` for a value that is not allowed."""
        if not self.allows(value):
            raise InputError(f"{name}={value} {self.otherwise}")


def at_least(smallest: int) -> Rule:
    """Of whole numbers."""
    return Rule(lambda x: x >= smallest, f"is too small: at least {smallest}")


ABOVE_ZERO = Rule(lambda x: 0 < x < math.inf, "must be a number above 0")
NOT_NEGATIVE = Rule(lambda x: 0 <= x < math.inf, "must be a number, 0 or above")
SHARE = Rule(lambda x: 0 <= x <= 1, "must be from 0 to 1")
BELOW_ONE = Rule(lambda x: 0 <= x < 1, "must be from 0 to below 1")

Count = Annotated[int, at_least(1)]
Natural = Annotated[int, at_least(0)]
Positive = Annotated[float, ABOVE_ZERO]
Weight = Annotated[float, NOT_NEGATIVE]
Share = Annotated[float, SHARE]
Seed = Annotated[int, at_least(0), Rule(lambda x: x < 2**31, f"is too large: at most {2**31 - 1}")]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of every run."""

    run: Path = Path("runs/run")
    """Run folder to write."""
    resume: bool = False
    """Go on from the newest checkpoint in the run folder."""
    model: str = "smollm2"
    """Start model: smollm2, a .gguf file, a Hugging Face folder, or a hub id."""
    chat_template: str | None = None
    """Name of the chat template, of a model that has several; by default `default`."""
    template_date: str | None = None
    """What a chat template takes for today, as YYYY-MM-DD; by default the day of the run's start,
    also after --resume. config.json has it where the template asks for it."""
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
    max_prompt_tokens: Count = 56
    """Longest prompt, beyond the shared prefix. Longer ones are refused with their text."""
    max_new_tokens: Count = 64
    """T, longest completion."""
    stop: tuple[str, ...] = ()
    """Names of tokens that end a completion, beside the model's own ends."""
    temperature: Positive = 0.7
    """Temperature of sampling, and of the policy in RL's loss."""
    steps: Count = 40
    """Steps in all; with RL each has --epochs x --minibatches updates."""
    learning_rate: Positive = 6e-5
    """Peak learning rate (AdamW)."""
    warmup_steps: Natural = 3
    """Steps until the full learning rate."""
    decay_steps: Natural = 16
    """Last steps, over which the learning rate falls to zero."""
    decay: Decay = Linear()
    """How it falls."""
    optimizer: AdamW = AdamW()
    """Constants of AdamW beside the learning rate."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this global norm."""
    micro_batches: Count = 1
    """Parts of an update's batch that gradients are accumulated over, for memory."""
    checkpoint_every: Count = 10
    """Steps between checkpoints."""
    sample_every: Count = 5
    """Steps between transcripts in samples.jsonl, of a run that samples."""
    seed: Seed = 0
    """Seed of sampling and data order."""

    @property
    def updates_per_step(self) -> int:
        """How many a step has."""
        return 1

    @property
    def first_stage(self) -> str | None:
        """What a stage before the training leaves in the run folder, for a resumed run to use."""
        return None

    def load_prompts(self) -> list[Prompt]:
        """The training prompts."""
        return load_all(self.prompts, self.text_field)

    def check_plan(self) -> None:
        """Refuses settings whose step can't be planned."""
        raise InputError("nothing to plan: only steps of RL are, and this script takes none")

    def check(self) -> None:
        """Refuses settings that can't work, before anything slow happens.

        Raises:
          InputError: names the setting and what it may be.
        """
        for name, hint in typing.get_type_hints(type(self), include_extras=True).items():
            for rule in getattr(hint, "__metadata__", ()):
                rule.check(name, getattr(self, name))
        for name, rule in _OF_OPTIMIZERS.items():
            rule.check(f"optimizer.{name}", getattr(self.optimizer, name))
        if self.processes is not None and self.mesh is None:
            raise InputError("processes: several of them need a --mesh over all their devices")
        day_of(self.template_date)
        check_replaceable(self.run / "model")
        ours = (self.run / "config.json").exists()
        for name in MOMENTS:
            check_evaluation(self.run / name, flag="--run", replaceable=ours)
        kept = self.first_stage
        started = has_checkpoint(self.run) or (kept is not None and (self.run / kept).exists())
        if self.resume and not started:
            raise InputError(f"{self.run}: no checkpoint to resume from: leave --resume out")
        if not self.resume and started:
            raise InputError(
                f"{self.run} holds a run already: add --resume to go on, choose another --run, or "
                "remove that folder"
            )


@dataclasses.dataclass(frozen=True)
class RLSettings(Settings):
    """Settings of a run that learns from rewards."""

    harmful: Natural = 8
    """Harmful prompts in each step."""
    benign: Natural = 4
    """Plain benign prompts in each step."""
    lookalike: Natural = 4
    """Harmless prompts that look harmful in each step."""
    samples_per_prompt: Annotated[int, at_least(2)] = 4
    """G, completions of each prompt."""
    objective: Objective = GRPO(advantages=Shrinkage())
    """What is minimized: GRPO and what becomes of it with other functions, or PPO."""
    epochs: Count = 1
    """Passes over a step's completions."""
    minibatches: Count = 1
    """Updates in each pass, each from its share of the prompts with all their completions."""
    critic_learning_rate: Positive = 1e-4
    """Peak learning rate of PPO's critic; untuned. GRPO leaves it aside."""
    format_weight: Weight = 1.0
    """r_f, the reward of a well-formed completion."""
    refusal_weight: Weight = 1.0
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

    @property
    def has_critic(self) -> bool:
        """Whether a critic is trained beside the policy."""
        return isinstance(self.objective, PPO)

    @property
    def has_reference(self) -> bool:
        """Whether the loss has a KL to the start model."""
        return getattr(self.objective, "kl", None) is not None

    @property
    def prompts_per_step(self) -> int:
        """Of all kinds."""
        return self.harmful + self.benign + self.lookalike

    @property
    def samples(self) -> bool:
        """Whether the steps sample completions of prompts."""
        return True

    def check_plan(self) -> None:
        """Refuses settings whose step can't be planned."""

    def check(self) -> None:
        """Also that prompts and completions of a step can be parted as asked."""
        super().check()
        for spec in self.add_reward:
            split_weight(spec)
        check_objective_settings(self.objective)
        if not self.samples:
            if self.updates_per_step > 1:
                raise InputError("epochs and minibatches are of RL: leave them at 1")
            if self.has_critic:
                raise InputError("objective ppo is of RL: leave it out")
            if self.add_reward:
                raise InputError("add_reward is of RL: leave it out")
            return
        part = self.prompts_per_step
        if not part:
            raise InputError("harmful, benign and lookalike are all 0: a step needs prompts")
        whole = "step" if self.minibatches == 1 else "minibatch"
        for name, of in (("minibatches", "step"), ("micro_batches", whole)):
            if part % getattr(self, name):
                raise InputError(
                    f"{name}={getattr(self, name)} does not divide the {part} prompts of a {of}: "
                    f"change harmful, benign, lookalike or {name}"
                )
            part //= getattr(self, name)
        check_mesh(self)


LOOP_ONLY = ("run", "resume", "checkpoint_every", "sample_every", "dtype", "mesh", "processes")
"""Settings that may change on resume."""

AnySettings = TypeVar("AnySettings", bound=Settings)


def parse(
    arguments: Sequence[str], presets: Mapping[str, AnySettings], *, script: str, doc: str | None
) -> AnySettings:
    """The preset named by the first word, with flags on top.

    Raises:
      InputError: no such preset.
      SystemExit: after help, or tyro's after a message on a flag.
    """
    names = ", ".join(presets)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{doc or ''}\nPresets: {names}")
        raise SystemExit(0 if arguments else 2)
    if arguments[0] not in presets:
        raise InputError(f"unknown preset {arguments[0]!r}: choose one of {names}")
    preset = presets[arguments[0]]
    return parse_flags(preset, arguments[1:], prog=f"{script} {arguments[0]}")


def check_objective_settings(objective: Any) -> None:
    """Refuses constants of an objective that can't work.

    Raises:
      InputError: names the flag and what it may be.
    """
    for path, rule in _OF_OBJECTIVES.items():
        value: Any = objective
        for part in path.split("."):
            value = getattr(value, part, None)  # None where another kind of object is chosen
        if value is not None:
            rule.check(f"objective.{path}", value)
    surrogate, adjust = objective.surrogate, getattr(objective, "adjust", None)
    if isinstance(surrogate, Cispo):
        rule = Rule(lambda x: x > surrogate.min_ratio, "must be above min_ratio")
        rule.check("objective.surrogate.max_ratio", surrogate.max_ratio)
    if isinstance(adjust, InverseFrequency) and adjust.form == "baseline":
        if not isinstance(objective.advantages, Group):
            raise InputError(
                "objective.adjust.form=baseline is a baseline of its own: it goes with "
                "--objective.advantages group, not with "
                f"{flag_name(type(objective.advantages))}"
            )


_OF_OPTIMIZERS = {"b1": BELOW_ONE, "b2": BELOW_ONE, "eps": ABOVE_ZERO, "weight_decay": NOT_NEGATIVE}

_OF_OBJECTIVES = {
    "kl.coefficient": NOT_NEGATIVE,
    "discount": Rule(lambda x: 0 < x <= 1, "must be above 0 and at most 1"),
    "lambda_": SHARE,
    "value_clip": Rule(lambda x: x > 0, "must be a number above 0, or None for no bound"),
    "surrogate.min_ratio": NOT_NEGATIVE,
    "surrogate.low": SHARE,
    "surrogate.high": NOT_NEGATIVE,
    "surrogate.temperature_positive": ABOVE_ZERO,
    "surrogate.temperature_negative": ABOVE_ZERO,
    "surrogate.dual": Rule(lambda x: x > 1, "must be a number above 1, or None for no bound"),
    "advantages.eps": NOT_NEGATIVE,
    "advantages.weight": SHARE,
    "advantages.ddof": Rule(lambda x: x in (0, 1), "must be 0 or 1"),
    "aggregation.length": Rule(lambda x: x >= 1, "must be at least 1, or None"),
    "adjust.num_modes": Rule(lambda x: x >= 2, "must be at least 2"),
    "adjust.weights": Rule(
        lambda x: len(x) > 0 and all(map(math.isfinite, x)), "must be numbers, one for each term"
    ),
    "adjust.max_weight": Rule(lambda x: x >= 1, "must be at least 1, or None for no cap"),
}


def check_row_length(settings: Settings, row_length: int) -> None:
    """Refuses rows that a prompt with its answer may not fit in."""
    longest = settings.max_prompt_tokens + settings.max_new_tokens
    if row_length < longest:
        raise InputError(
            f"row_length={row_length} is too small for max_prompt_tokens + max_new_tokens "
            f"= {longest}: raise it"
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
    rows = settings.prompts_per_step * settings.samples_per_prompt
    rows = rows // settings.micro_batches // settings.minibatches
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
