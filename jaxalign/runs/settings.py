"""Settings that every experiment has, and how a script reads them from the command line."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from jaxalign.data import load_all
from jaxalign.data.prompts import Prompt, of_each_kind
from jaxalign.engine.baselines import Group, InverseFrequency, LeaveOneOut, PerTerm, Shrinkage
from jaxalign.engine.objective import GRPO, Objective
from jaxalign.engine.optimizer import AdamW, Decay, Linear, Optimizer
from jaxalign.engine.ppo import PPO
from jaxalign.engine.reductions import Informative
from jaxalign.engine.step import Updates
from jaxalign.host.errors import InputError
from jaxalign.host.fields import Checked, Count, Natural, Positive, Rule, Weight
from jaxalign.models.files.adapters import check_adapter_replaceable
from jaxalign.models.files.huggingface import check_replaceable
from jaxalign.models.lora import Lora
from jaxalign.reports.evaluation_folder import check_evaluation
from jaxalign.reports.run_folder import MOMENTS, VALIDATION
from jaxalign.reports.seeds_page import seed_folders
from jaxalign.runs.added_rewards import split_weight
from jaxalign.runs.choices import FLAT, flat_parts
from jaxalign.runs.collapse import Collapse
from jaxalign.runs.flags import parse_flags
from jaxalign.runs.keep import BEST, Best, Last
from jaxalign.text.chat_template import day_of


@dataclasses.dataclass(frozen=True)
class Start(Checked):
    """The model that a run starts from, and how it is computed."""

    model: str = "smollm2"
    """Start model: smollm2, a .gguf file, a Hugging Face folder, or a hub id."""
    chat_template: str | None = None
    """Name of the chat template, of a model that has several; by default `default`."""
    template_date: str | None = None
    """What a chat template takes for today, as YYYY-MM-DD; by default the day of the run's start,
    also after --resume. config.json has it where the template asks for it."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Compute dtype; auto takes the faster one in a short probe. Parameters have --param-dtype."""
    remat: Literal["none", "dots", "full"] = "dots"
    """What the backward pass recomputes in each layer, for memory."""
    mesh: tuple[int, int, int] | None = None
    """Devices that share model and work, as data, fsdp and tensor: with `1 8 1` each of eight keeps
    an eighth of every parameter. By default one device."""
    processes: str | None = None
    """Of a run of several processes, which share the mesh and the run folder: auto where a cluster
    knows them (TPU slices, Slurm, GKE), else HOST:PORT,COUNT,INDEX with the address of the first.
    """

    def check_with(self, settings: "Settings") -> None:
        """Refuses processes without a mesh, and a date that is none."""
        del settings
        if self.processes is not None and self.mesh is None:
            raise InputError("processes: several of them need a --mesh over all their devices")
        day_of(self.template_date)


@dataclasses.dataclass(frozen=True)
class Data(Checked):
    """Prompts: to train on, to watch training by, and to evaluate by."""

    prompts: tuple[str, ...] = ("builtin:train",)
    """Training prompts: builtin:train, a .jsonl, .json, .csv, .tsv (each .gz, too) or .parquet
    file, hub:NAME[@SPLIT], tfds:NAME[@SPLIT], disk:FOLDER[@SPLIT]; as KIND=SPEC (harmful=my.csv)
    where the data does not tell the kind."""
    heldout: tuple[str, ...] = ("builtin:heldout",)
    """Prompts for the evaluation before and after, given as above; empty for none."""
    heldout_prompts: Natural = 0
    """How many of them are asked of each kind, evenly spread; 0 for all."""
    validation: tuple[str, ...] = ()
    """Prompts for --evaluate-every, given as above; by default some of the training prompts, which
    are then not trained on. None of them may be held out."""
    validation_prompts: Count = 8
    """How many of them are asked of each kind, evenly spread."""
    text_field: str | None = None
    """Field with the text of all prompts but the builtin ones, where it has no usual name."""
    max_prompt_tokens: Count = 64
    """Longest prompt with its conversation, beyond the prefix that all share. A longer one is
    refused with its id."""

    def check_with(self, settings: "Settings") -> None:
        """Refuses validation prompts that nothing would ask."""
        if self.validation and not settings.loop.evaluate_every:
            raise InputError("validation: nothing asks these prompts: add --evaluate-every")

    def load(self, specs: Sequence[str]) -> list[Prompt]:
        """The prompts of `prompts`, `heldout` or `validation`."""
        return load_all(specs, self.text_field)

    def load_heldout(self) -> list[Prompt]:
        """The prompts for the evaluation before and after."""
        prompts = self.load(self.heldout)
        return of_each_kind(prompts, self.heldout_prompts) if self.heldout_prompts else prompts


@dataclasses.dataclass(frozen=True)
class Completions(Checked):
    """How completions are drawn."""

    max_new_tokens: Count = 64
    """T, longest completion."""
    stop: tuple[str, ...] = ()
    """Names of tokens, all behind one flag, that end a completion beside the model's own ends."""
    temperature: Positive = 0.7
    """Temperature of sampling, and of the policy in RL's loss."""


@dataclasses.dataclass(frozen=True)
class Learning(Checked):
    """The optimizer and its schedule."""

    learning_rate: Positive = 6e-5
    """Peak learning rate."""
    warmup_steps: Natural = 3
    """Steps until the full learning rate."""
    decay_steps: Natural = 16
    """Last steps, over which the learning rate falls to zero."""
    decay: Decay = Linear()
    """How it falls."""
    optimizer: Optimizer = AdamW()
    """What makes updates of gradients, and its constants beside the learning rate."""
    max_grad_norm: Positive = 1.0
    """Gradients are scaled down to this global norm."""
    lora: Lora = Lora()
    """Low-rank adapters, which are trained in place of all parameters where the rank is not 0."""
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype that trained matrices are kept in. bfloat16 saves memory and rounds changes at random,
    so that small ones are not lost; adapters are float32."""

    def check_fields(self, above: str) -> None:
        """Also that there are matrices to keep so."""
        super().check_fields(above)
        if self.lora.rank and self.param_dtype != "float32":
            raise InputError(
                f"{above}param_dtype={self.param_dtype}: adapters are float32 and their base is in "
                "the compute dtype; leave it out, or --lora.rank"
            )


@dataclasses.dataclass(frozen=True)
class Loop(Checked):
    """Steps, and what is done between them."""

    steps: Count = 40
    """Steps in all; with RL each has --epochs x --minibatches updates."""
    checkpoint_every: Count = 10
    """Steps between checkpoints."""
    sample_every: Count = 5
    """Steps between transcripts in samples.jsonl, of a run that samples."""
    evaluate_every: Natural = 0
    """Steps between evaluations by the validation prompts; there is one before the first step and
    after the last, too. A checkpoint comes with each but the first. 0 for none."""
    keep: Last | Best = Last()
    """Which parameters are the result."""
    guard: Collapse | None = None
    """What stops a run before its last step. The result is then the best policy before, by the
    score of --keep best, also where the last would be kept."""

    def evaluates(self, step: int) -> bool:
        """Whether there is an evaluation after so many steps."""
        every = self.evaluate_every
        return every > 0 and (step % every == 0 or step == self.steps)

    @property
    def score(self) -> Best | None:
        """What scores evaluations, so that the best parameters so far are kept; None for nothing.

        A guard goes back to these.
        """
        if isinstance(self.keep, Best):
            return self.keep
        return None if self.guard is None else Best()

    def check_with(self, settings: "Settings") -> None:
        """Refuses to keep the best of no evaluations, or to guard by none."""
        del settings
        if isinstance(self.keep, Best) and not self.evaluate_every:
            raise InputError("keep: the best is chosen by evaluations: add --evaluate-every")
        if self.guard is not None and not self.evaluate_every:
            raise InputError("guard: it reads what evaluations find: add --evaluate-every")


@dataclasses.dataclass(frozen=True)
class Settings(Checked):
    """Settings of every run."""

    run: Path = Path("runs/run")
    """Run folder to write."""
    resume: bool = False
    """Go on from the newest checkpoint in the run folder."""
    seed: Natural = 0
    """Seed of sampling and data order."""
    seeds: Annotated[
        tuple[int, ...],
        Rule(lambda x: min(x, default=0) >= 0, "must be whole numbers, each at least 0"),
    ] = ()
    """Several seeds, each a run in RUN/seed-N, one after the other; RUN/report.html has their mean
    and spread. --resume leaves out those that are done."""
    start: Annotated[Start, FLAT] = Start()
    """The start model."""
    data: Annotated[Data, FLAT] = Data()
    """The prompts."""
    completions: Annotated[Completions, FLAT] = Completions()
    """How completions are drawn."""
    learning: Annotated[Learning, FLAT] = Learning()
    """The optimizer."""
    loop: Annotated[Loop, FLAT] = Loop()
    """The steps."""

    @property
    def rl(self) -> "RL | None":
        """What is of learning from rewards, of a run that does."""
        return None

    @property
    def updates_per_step(self) -> int:
        """One, or of RL one for each minibatch of each epoch."""
        return 1 if self.rl is None else self.rl.updates.epochs * self.rl.updates.minibatches

    @property
    def first_stage(self) -> str | None:
        """What a stage before the training leaves in the run folder, for a resumed run to use."""
        return None

    def load_prompts(self) -> list[Prompt]:
        """The training prompts."""
        return self.data.load(self.data.prompts)

    def part_prompts(self, heldout: Sequence[Prompt]) -> tuple[list[Prompt], list[Prompt]]:
        """The training prompts, and the validation prompts, which are taken out of them.

        Args:
          heldout: must have none of them.

        Raises:
          InputError: a validation prompt is held out too, no prompts of a kind are left to train
            on, or the best can't be told by these.
        """
        prompts, data = self.load_prompts(), self.data
        if not self.loop.evaluate_every:
            return prompts, []
        source = "validation" if data.validation else "prompts"
        asked = data.load(data.validation or data.prompts)
        validation = of_each_kind(asked, data.validation_prompts)
        judged_by = {_wording(prompt) for prompt in heldout}
        for prompt in validation:
            if _wording(prompt) in judged_by:
                raise InputError(
                    f"validation: {prompt.id} is held out too, and training may not be watched by "
                    f"what it is judged by: leave it out of --{source} or --heldout"
                )
        score, kinds = self.loop.score, {prompt.kind for prompt in validation}
        if score is not None and not score.counts(kinds):
            raise InputError(
                f"{source}: keep counts nothing of {' or '.join(sorted(kinds)) or 'no prompts'}: "
                "give prompts of other kinds, or other weights"
            )
        taken = {_wording(prompt) for prompt in validation}
        rest = [prompt for prompt in prompts if _wording(prompt) not in taken]
        for kind in {prompt.kind: None for prompt in prompts}:
            if all(prompt.kind != kind for prompt in rest):
                raise InputError(
                    f"validation_prompts={data.validation_prompts} leaves no {kind} prompts to "
                    "train on: lower it, or give other prompts by --validation"
                )
        return rest, validation

    @property
    def started(self) -> bool:
        """Whether the run folder holds what a resumed run goes on from."""
        kept = self.first_stage
        return has_checkpoint(self.run) or (kept is not None and (self.run / kept).exists())

    def check_plan(self) -> None:
        """Refuses settings whose step can't be planned."""
        if self.rl is None:
            raise InputError(
                "nothing to plan: only steps of RL are, and these settings take none "
                "(experiments/cada.py takes them with --arm rl)"
            )
        for part in flat_parts(self):
            if hasattr(part, "check_plan"):
                part.check_plan()

    def check(self) -> None:
        """Refuses what can't work together or on this machine, before anything slow happens.

        Raises:
          InputError: names the setting and what it may be.
        """
        for part in flat_parts(self):
            if hasattr(part, "check_with"):
                part.check_with(self)

    def check_folder(self) -> None:
        """Refuses a run folder that holds another run, or what is no run's.

        Raises:
          InputError: names what is there and the remedy.
        """
        if seed_folders(self.run):
            raise InputError(f"{self.run} holds runs of --seeds: choose another --run")
        check_replaceable(self.run / "model")
        if self.learning.lora.rank:
            check_adapter_replaceable(self.run / "adapter")
        ours = (self.run / "config.json").exists()
        for name in (VALIDATION, BEST):
            if (self.run / name).exists() and not ours:
                raise InputError(f"{self.run / name} is no run's: choose another --run")
        for name in MOMENTS:
            check_evaluation(self.run / name, flag="--run", replaceable=ours)
        if self.resume and not self.started:
            raise InputError(f"{self.run}: no checkpoint to resume from: leave --resume out")
        if not self.resume and self.started:
            raise InputError(
                f"{self.run} holds a run already: add --resume to go on, choose another --run, or "
                "remove that folder"
            )


def _check_without_groups(objective: Objective) -> None:
    """Refuses what compares the samples of a prompt where there is one."""
    remedies = {"advantages": "whole-batch", "adjust": "none", "keep": "none"}
    for name, remedy in remedies.items():
        part = getattr(objective, name, None)
        if isinstance(
            part, Group | Shrinkage | LeaveOneOut | InverseFrequency | PerTerm | Informative
        ):
            raise InputError(
                f"samples_per_prompt=1: {type(part).__name__} compares the samples of a prompt: "
                f"take 2 or more, or --objective.{name} {remedy}"
            )


@dataclasses.dataclass(frozen=True)
class RL(Checked):
    """Settings of learning from rewards."""

    harmful: Natural = 8
    """Harmful prompts in each step."""
    benign: Natural = 4
    """Plain benign prompts in each step."""
    lookalike: Natural = 4
    """Harmless prompts that look harmful in each step."""
    samples_per_prompt: Count = 4
    """G, completions of each prompt; with 1 they are held to those of other prompts."""
    objective: Objective = GRPO(advantages=Shrinkage())
    """What is minimized: GRPO and what becomes of it with other functions, or PPO."""
    updates: Annotated[Updates, FLAT] = Updates()
    """How often a step's completions are learned from, and in which parts."""
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
    def completions_per_step(self) -> int:
        """Of all prompts."""
        return self.prompts_per_step * self.samples_per_prompt

    def check_fields(self, above: str) -> None:
        """Also that prompts of a step can be parted as asked."""
        super().check_fields(above)
        self.updates.check_fields(above)
        for spec in self.add_reward:
            split_weight(spec)
        if self.samples_per_prompt == 1:
            _check_without_groups(self.objective)
        part = self.prompts_per_step
        if not part:
            raise InputError("harmful, benign and lookalike are all 0: a step needs prompts")
        whole = "step" if self.updates.minibatches == 1 else "minibatch"
        for name, of in (("minibatches", "step"), ("micro_batches", whole)):
            parts = getattr(self.updates, name)
            if part % parts:
                raise InputError(
                    f"{name}={parts} does not divide the {part} prompts of a {of}: "
                    f"change harmful, benign, lookalike or {name}"
                )
            part //= parts

    def check_with(self, settings: Settings) -> None:
        """Refuses a mesh whose data and fsdp do not divide the completions of a micro-batch.

        Raises:
          InputError: names both numbers, or a size below 1.
        """
        if settings.start.mesh is None:
            return
        if min(settings.start.mesh) < 1:
            sizes = " x ".join(map(str, settings.start.mesh))
            raise InputError(f"mesh: data x fsdp x tensor = {sizes} has a size below 1")
        rows = self.completions_per_step // self.updates.micro_batches // self.updates.minibatches
        parts = settings.start.mesh[0] * settings.start.mesh[1]
        if rows % parts:
            raise InputError(
                f"mesh: data x fsdp = {parts} does not divide the {rows} completions of a "
                "micro-batch: change the prompts, samples_per_prompt, micro_batches or minibatches "
                "of a step"
            )


@dataclasses.dataclass(frozen=True)
class Packed(Checked):
    """Settings of learning from answers, on rows that several of them share."""

    examples_per_step: Count = 16
    """Answers in each update."""
    row_length: int = 256
    """Tokens of a row that answers share, with their requests."""
    micro_batches: Count = 1
    """Parts of an update's rows that gradients are accumulated over, for memory."""

    def check_with(self, settings: Settings) -> None:
        """Refuses rows that a prompt with its answer may not fit in."""
        longest = settings.data.max_prompt_tokens + settings.completions.max_new_tokens
        if self.row_length < longest:
            raise InputError(
                f"row_length={self.row_length} is too small for max_prompt_tokens + "
                f"max_new_tokens = {longest}: raise it"
            )


LOOP_ONLY = ("run", "resume", "checkpoint_every", "sample_every", "dtype", "mesh", "processes")
"""Settings that may change on resume."""

AnySettings = TypeVar("AnySettings", bound=Settings)


def parse(
    arguments: Sequence[str], presets: Mapping[str, AnySettings], *, script: str, doc: str | None
) -> AnySettings:
    """The preset named by the first word, a file of settings on top, and flags on top of that.

    Raises:
      InputError: no such preset, or a file that can't be read.
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


def _wording(prompt: Prompt) -> tuple[Any, str]:
    """What is alike in prompts that differ by capitals and spaces alone."""
    return prompt.conversation, " ".join(prompt.text.split()).casefold()


def has_checkpoint(run: Path) -> bool:
    """Whether a run folder holds a whole checkpoint."""
    return any(path.name.isdigit() for path in (run / "checkpoints").glob("*"))
