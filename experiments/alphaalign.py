"""AlphaAlign (arXiv 2507.14987): safety reward + helpfulness reward, one compiled step.

    python experiments/alphaalign.py demo
    python experiments/alphaalign.py demo --run runs/mine --steps 100 --learning-rate 2e-5
    python experiments/alphaalign.py demo --run runs/mine --steps 100 --learning-rate 2e-5 --resume

Presets (the first word): what each is for and the hardware it is meant for stand at its definition
below. Everything can be overridden by a flag; `--help` after the preset lists them.

The run folder gets config.json, metrics.jsonl, tensorboard/, samples.jsonl, checkpoints/,
evaluation_before.json, evaluation_after.json, summary.json, model/ (opens in transformers),
PNG plots and report.html.
"""

import dataclasses
import datetime
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from jaxalign.data import KINDS, Prompt, batch_at, load_prompts
from jaxalign.data.templates import (
    Template,
    alphaalign_messages,
    bare_messages,
    encode_prompts,
)
from jaxalign.errors import InputError
from jaxalign.evaluation.report import write_report
from jaxalign.evaluation.suites import evaluate, prompt_lengths, stop_tokens
from jaxalign.models import load_pretrained, save_pretrained
from jaxalign.models.huggingface import check_replaceable
from jaxalign.models.precision import fastest_dtype
from jaxalign.progress import progress_bar
from jaxalign.rewards import safety_verifiers
from jaxalign.sampling import Temperature
from jaxalign.training.alphaalign import PromptFacts, alphaalign_reward, make_reward_params
from jaxalign.training.loop import DivergedError, Interruption, LoopConfig, train
from jaxalign.training.metrics import METRICS_FILE, read_metrics
from jaxalign.training.run_folder import hardware, prompts_digest, read_json, write_json
from jaxalign.training.state import init_state
from jaxalign.training.step import Algorithm, Batch, StepResult, make_step, rollout


@dataclasses.dataclass(frozen=True)
class AlphaAlign:
    """Settings of a run."""

    run: Path = Path("runs/alphaalign")
    """Run folder to write."""
    resume: bool = False
    """Go on from the newest checkpoint in the run folder."""
    model: str = "smollm2"
    """Start model: smollm2, a .gguf file, a Hugging Face folder, or a hub id."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Compute dtype; auto takes the faster one in a short probe. Parameters are float32."""
    remat: Literal["none", "dots", "full"] = "dots"
    """What the backward pass recomputes in each layer, for memory."""
    template: Literal["examples", "bare"] = "examples"
    """examples: instruction and two worked examples as chat turns, which small models need."""
    prompts: tuple[str, ...] = ("builtin:train",)
    """Training prompts: builtin:train, a .jsonl or .csv file, hub:NAME[@SPLIT], tfds:NAME[@SPLIT],
    disk:FOLDER[@SPLIT]; as KIND=SPEC (harmful=my.csv) where the data does not tell the kind."""
    heldout: tuple[str, ...] = ("builtin:heldout",)
    """Prompts for the evaluation before and after, given as above; empty for none."""
    text_field: str | None = None
    """Field with the text of all prompts but the builtin ones, where it has no usual name."""
    harmful: int = 8
    """Harmful prompts in each step."""
    benign: int = 4
    """Plain benign prompts in each step."""
    lookalike: int = 4
    """Harmless prompts that look harmful in each step."""
    samples_per_prompt: int = 4
    """G, completions of each prompt."""
    max_prompt_tokens: int = 56
    """Longest prompt, beyond the shared prefix. Longer ones are refused with their text."""
    max_new_tokens: int = 64
    """T, longest completion."""
    temperature: float = 0.7
    """Of the policy, in sampling and in the loss."""
    steps: int = 46
    """Updates in all."""
    learning_rate: float = 6e-5
    """AdamW's highest."""
    warmup_steps: int = 3
    """Steps until the full learning rate."""
    decay_steps: int = 38
    """Last steps, over which the learning rate falls linearly to zero."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this global norm."""
    baseline: Literal["group", "batch", "shrinkage"] = "shrinkage"
    """Advantages against the prompt's own samples (GRPO), the whole batch, or halfway."""
    format_weight: float = 1.0
    """r_f of the safety reward."""
    refusal_weight: float = 1.0
    """r_a of the safety reward."""
    balance: bool = True
    """Weigh refusals more on the side, harmful or harmless, that goes wrong more often."""
    helpfulness_weight: float = 0.3
    """Weight of the helpfulness reward; 0 leaves its scoring pass out."""
    kl_coefficient: float = 0.0
    """Weight of a k2 KL to the start model in the loss; 0 runs no reference model."""
    micro_batches: int = 1
    """Parts of the batch that gradients are accumulated over, for memory."""
    checkpoint_every: int = 10
    """Steps between checkpoints."""
    sample_every: int = 5
    """Steps between transcripts in samples.jsonl."""
    seed: int = 0
    """Of sampling and data order."""


PRESETS: dict[str, AlphaAlign] = {
    # SmolLM2-135M on two CPU cores; README.md has the measured time and results.
    "demo": AlphaAlign(run=Path("runs/demo")),
    # The same architecture with 1.7B parameters, on one 80 GB accelerator; ours, not yet run.
    "smollm2-1.7b": AlphaAlign(
        run=Path("runs/smollm2-1.7b"),
        model="HuggingFaceTB/SmolLM2-1.7B-Instruct",
        samples_per_prompt=8,
        max_prompt_tokens=256,
        max_new_tokens=256,
        steps=200,
        decay_steps=150,
        learning_rate=2e-6,
        micro_batches=4,
    ),
}


class Interrupted(Exception):
    """SIGTERM or Ctrl-C outside of training; its text says when."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one preset; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        settings = parse(arguments)
        with Interruption() as interruption:
            return run(settings, interruption)
    except (InputError, OSError, DivergedError) as error:
        print(f"alphaalign: error: {error}", file=sys.stderr)
        return 1 if isinstance(error, DivergedError) else 2
    except KeyboardInterrupt:
        print("alphaalign: stopped at once: --resume goes on from the last checkpoint")
        return 130
    except Interrupted as stop:
        print(f"interrupted {stop}: go on with --resume where there is a checkpoint")
        return 0


def parse(arguments: Sequence[str]) -> AlphaAlign:
    """The preset named by the first word, with flags on top."""
    names = ", ".join(PRESETS)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(f"{__doc__}\nPresets: {names}")
        raise SystemExit(0 if arguments else 2)
    if arguments[0] not in PRESETS:
        raise InputError(f"unknown preset {arguments[0]!r}: choose one of {names}")
    return tyro.cli(
        AlphaAlign,
        prog=f"alphaalign.py {arguments[0]}",
        default=PRESETS[arguments[0]],
        args=list(arguments[1:]),
    )


def run(settings: AlphaAlign, interruption: Interruption) -> int:
    """Evaluates, trains, evaluates again and writes the run folder."""
    begun = time.perf_counter()
    folder = settings.run
    check(settings)
    train_prompts = gather(settings.prompts, settings.text_field)
    heldout = gather(settings.heldout, settings.text_field)
    dtype = choose_dtype(settings)
    model, params, tokenizer = load_pretrained(settings.model, dtype=dtype, remat=settings.remat)
    template = alphaalign_messages if settings.template == "examples" else bare_messages
    stop = stop_tokens(model, tokenizer)
    try:
        verifiers = safety_verifiers(tokenizer)
    except ValueError as error:
        raise InputError(f"{settings.model}: {error}") from error
    make_batch = Batches(settings, train_prompts, tokenizer, template)
    make_batch.check(model.config.max_positions)

    folder.mkdir(parents=True, exist_ok=True)
    saved = to_json(settings) | {
        "compute_dtype": jnp.dtype(dtype).name,
        "prompts_digest": prompts_digest(train_prompts),
    }
    earlier = read_metrics(folder)[-1]["time"] if settings.resume and has_steps(folder) else 0.0
    if not settings.resume:
        write_json(folder / "config.json", saved)

    def assess(name: str, params: Any) -> dict[str, Any]:
        print(f"asking {len(heldout)} held-out prompts {name} training")
        with progress_bar() as bar:
            line = bar.add_task(f"{name} training", total=len(heldout))

            def heed(done: int, total: int) -> None:
                bar.update(line, completed=done, total=total)
                if interruption.requested:
                    raise Interrupted(f"after {done} of {total} prompts of the evaluation")

            result = evaluate(
                model,
                params,
                tokenizer,
                heldout,
                template=template,
                max_prompt_tokens=settings.max_prompt_tokens,
                max_new_tokens=settings.max_new_tokens,
                progress=heed,
            )
        write_json(folder / f"evaluation_{name}.json", result.to_json())
        print(f"{name} training: {json.dumps(short(result.summary()))}")
        if result.skipped:
            print(f"{len(result.skipped)} held-out prompts were too long and not asked")
        return result.summary()

    before = None
    if heldout:
        kept = folder / "evaluation_before.json"
        if settings.resume and kept.exists():
            evaluation = read_json(kept)
            before = evaluation["rates"]
            earlier += evaluation["seconds"]
        else:
            before = assess("before", params)

    algorithm = Algorithm(
        samples_per_prompt=settings.samples_per_prompt,
        max_new_tokens=settings.max_new_tokens,
        stop=stop,
        method=Temperature(settings.temperature),
        baseline=settings.baseline,
        kl_coefficient=settings.kl_coefficient,
        micro_batches=settings.micro_batches,
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(settings.max_grad_norm),
        optax.adamw(learning_rates(settings), b1=ADAM_BETAS[0], b2=ADAM_BETAS[1], weight_decay=0.0),
    )
    reward = alphaalign_reward(
        model,
        format_weight=settings.format_weight,
        refusal_weight=settings.refusal_weight,
        helpfulness_weight=settings.helpfulness_weight,
        balance=settings.balance,
    )
    start = params if settings.helpfulness_weight else None
    reward_params = make_reward_params(verifiers, start, dtype)
    reference = params if settings.kl_coefficient else None
    state = init_state(params, optimizer)
    del params, start  # or the float32 start model would stay in memory
    state, interrupted = train(
        make_step(model, optimizer, algorithm, reward),
        state,
        lambda step: make_batch(step)[0],
        root_key=jax.random.key(settings.seed),
        folder=folder,
        config=LoopConfig(
            steps=settings.steps,
            checkpoint_every=settings.checkpoint_every,
            sample_every=settings.sample_every,
        ),
        settings={k: v for k, v in saved.items() if k not in LOOP_ONLY},
        reward_params=reward_params,
        describe=lambda step, result: transcripts(make_batch(step)[1], tokenizer, result),
        reference=reference,
        interruption=interruption,
        resume=settings.resume,
    )
    if interrupted:
        return 0

    summary: dict[str, Any] = {"before": before}
    if heldout:
        summary["after"] = assess("after", state.params)
    summary |= {
        "steps": int(state.step),
        "seconds": earlier + time.perf_counter() - begun,
        "rollout_tokens_per_second": rollout_speed(
            model, algorithm, state.params, make_batch(0)[0]
        ),
        "skipped_updates": int(state.skipped),
        "compute_dtype": jnp.dtype(dtype).name,
        "hardware": hardware(),
        "date": datetime.date.today().isoformat(),
    }
    write_json(folder / "summary.json", summary)
    save_pretrained(folder / "model", model, state.params, tokenizer)
    print(f"wrote {write_report(folder)}")
    return 0


def learning_rates(settings: AlphaAlign) -> optax.Schedule:
    """Linear warm-up, a constant rate, linear decay to zero."""
    peak = settings.learning_rate
    warmup = min(settings.warmup_steps, settings.steps)
    decay = min(settings.decay_steps, settings.steps - warmup)
    return optax.join_schedules(
        [
            optax.linear_schedule(peak / (warmup + 1), peak, warmup),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, 0.0, decay),
        ],
        [warmup, settings.steps - decay],
    )


ADAM_BETAS = (0.5, 0.95)
"""Short memories, ours: a run has tens of steps, and the pull to refuse turns within a few."""

LOOP_ONLY = ("run", "resume", "checkpoint_every", "sample_every", "dtype")
"""Settings that may change on resume."""


def choose_dtype(settings: AlphaAlign) -> Any:
    """The dtype asked for; of a resumed run, the one it had; else the faster one in a probe."""
    config = settings.run / "config.json"
    if settings.dtype != "auto":
        name, reason = settings.dtype, "as asked for"
    elif settings.resume and config.exists():
        name, reason = read_json(config)["compute_dtype"], "as before"
    else:
        dtype, reason = fastest_dtype()
        print(f"compute dtype: {reason}")
        return dtype
    print(f"compute dtype: {name}, {reason}")
    return jnp.dtype(name)


LEAST = {
    "harmful": 0,
    "benign": 0,
    "lookalike": 0,
    "samples_per_prompt": 2,
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


def check(settings: AlphaAlign) -> None:
    """Refuses settings that can't work, before anything slow happens."""
    for name, least in LEAST.items():
        if getattr(settings, name) < least:
            raise InputError(f"{name}={getattr(settings, name)} is too small: at least {least}")
    for name in ("temperature", "learning_rate", "max_grad_norm"):
        if not (getattr(settings, name) > 0 and math.isfinite(getattr(settings, name))):
            raise InputError(f"{name}={getattr(settings, name)} must be a number above 0")
    for name in ("format_weight", "refusal_weight", "helpfulness_weight", "kl_coefficient"):
        if not (getattr(settings, name) >= 0 and math.isfinite(getattr(settings, name))):
            raise InputError(f"{name}={getattr(settings, name)} must be a number, 0 or above")
    prompts = settings.harmful + settings.benign + settings.lookalike
    if not prompts:
        raise InputError("harmful, benign and lookalike are all 0: a step needs prompts")
    if prompts % settings.micro_batches:
        raise InputError(
            f"micro_batches={settings.micro_batches} does not divide the {prompts} prompts of a "
            "step: change harmful, benign, lookalike or micro_batches"
        )
    check_replaceable(settings.run / "model")
    started = any((settings.run / "checkpoints").glob("[0-9]*"))
    if settings.resume and not started:
        raise InputError(f"{settings.run}: no checkpoint to resume from: leave --resume out")
    if not settings.resume and started:
        raise InputError(
            f"{settings.run} holds a run already: add --resume to go on, choose another --run, or "
            "remove that folder"
        )


def gather(specs: Sequence[str], text_field: str | None) -> list[Prompt]:
    """Prompts of all specs, each a SPEC or KIND=SPEC."""
    prompts: list[Prompt] = []
    for spec in specs:
        kind, equals, rest = spec.partition("=")
        known = bool(equals) and kind in KINDS
        if equals and kind.isalpha() and not known and not Path(spec).exists():
            raise InputError(f"{spec}: unknown kind {kind!r}; use {', '.join(KINDS)}")
        source = rest if known else spec
        field = None if source.startswith("builtin:") else text_field
        prompts += load_prompts(source, kind=kind if known else None, text_field=field)
    return prompts


class Batches:
    """The batch of each step: a pure function of the step number."""

    def __init__(
        self, settings: AlphaAlign, prompts: list[Prompt], tokenizer: Any, template: Template
    ) -> None:
        self._settings = settings
        self._prompts = prompts
        self._tokenizer = tokenizer
        self._template = template
        self._counts = {kind: getattr(settings, kind) for kind in KINDS}

    def check(self, max_positions: int) -> None:
        """Refuses what a later step would trip over: prompts too long, a kind without prompts."""
        batch, _ = self(0)
        limit = self._settings.max_prompt_tokens
        positions = batch.prefix.size + limit + self._settings.max_new_tokens
        if positions > max_positions:
            raise InputError(
                f"prefix, max_prompt_tokens={limit} and max_new_tokens="
                f"{self._settings.max_new_tokens} take {positions} positions, the model has "
                f"{max_positions}: lower one of them"
            )
        lengths = prompt_lengths(self._tokenizer, self._template, self._prompts)
        for prompt, length in zip(self._prompts, lengths, strict=True):
            if length > limit:
                raise InputError(
                    f"prompt {prompt.id} takes {length} tokens, the limit is {limit}: shorten it "
                    "or raise max_prompt_tokens"
                )

    def __call__(self, step: int) -> tuple[Batch, list[Prompt]]:
        """The arrays of a step's batch, and its prompts in the same order."""
        settings = self._settings
        prompts = batch_at(self._prompts, step, counts=self._counts, seed=settings.seed)
        texts = [prompt.text for prompt in prompts]
        encode = lambda template, requests: encode_prompts(  # noqa: E731
            self._tokenizer,
            template,
            requests,
            max_tokens=settings.max_prompt_tokens,
            width=settings.max_prompt_tokens,
        )
        asked = encode(self._template, texts)
        bare = encode(bare_messages, texts)
        harmless = [prompt.kind != "harmful" for prompt in prompts]
        opening = np.broadcast_to(bare.prefix, (len(texts), len(bare.prefix)))
        questions = np.concatenate([opening, bare.tokens], axis=1)
        question_mask = np.concatenate([np.ones(opening.shape, bool), bare.mask], axis=1)
        facts = PromptFacts(
            kind=np.array([KINDS.index(prompt.kind) for prompt in prompts], np.int32),
            questions=questions[harmless],
            question_mask=question_mask[harmless],
        )
        batch = Batch(asked.tokens, asked.mask, asked.prefix, facts)
        return jax.tree.map(jnp.asarray, batch), prompts


def transcripts(prompts: list[Prompt], tokenizer: Any, result: StepResult) -> list[dict[str, Any]]:
    """One row per prompt: its first sample, with the rewards."""
    tokens, mask = np.asarray(result.samples.tokens), np.asarray(result.samples.mask)
    details = {name: np.asarray(value) for name, value in result.score.details.items()}
    group = len(tokens) // len(prompts)
    return [
        {
            "prompt": prompt.text,
            "kind": prompt.kind,
            "completion": tokenizer.decode(tokens[row][mask[row]], skip_special_tokens=True),
            **{name: value[row].item() for name, value in details.items()},
        }
        for row, prompt in zip(range(0, len(tokens), group), prompts, strict=True)
    ]


def rollout_speed(model: Any, algorithm: Algorithm, params: Any, batch: Batch) -> float:
    """Generated tokens per second of one rollout, compilation left out."""
    key = jax.random.key(0)
    jax.block_until_ready(rollout(model, algorithm, params, batch, key))
    begun = time.perf_counter()
    samples = jax.block_until_ready(rollout(model, algorithm, params, batch, key))
    return float(samples.mask.sum()) / (time.perf_counter() - begun)


def to_json(settings: AlphaAlign) -> dict[str, Any]:
    """The settings with paths as text."""
    return json.loads(json.dumps(dataclasses.asdict(settings), default=str))


def has_steps(folder: Path) -> bool:
    """Whether a run has written metrics."""
    return (folder / METRICS_FILE).exists() and bool(read_metrics(folder))


def short(summary: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a summary that fit on a line."""
    return {k: round(v, 3) for k, v in summary.items() if isinstance(v, int | float)}


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # so that a redirected log can be watched
    raise SystemExit(main())
