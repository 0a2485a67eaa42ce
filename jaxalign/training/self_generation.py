"""Self-generated answers in a file: a killed run goes on where it stopped, and ends the same.

Every completion is kept with what the verifiers say, so that the filters of
`jaxalign.training.cada` can be looked into.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.prompts import Prompt
from jaxalign.data.templates import Template, encode_prompts
from jaxalign.errors import InputError
from jaxalign.evaluation.suites import decode, judge, stop_tokens
from jaxalign.models.completion import compute_params
from jaxalign.models.sharding import to_devices
from jaxalign.models.transformer import Params, Transformer
from jaxalign.processes import fetch, is_first, least
from jaxalign.rewards import Verifiers, safety_verifiers
from jaxalign.sampling import Rollout, Temperature, sample
from jaxalign.training.run_folder import prompts_digest, read_json, write_json
from jaxalign.training.step_lines import StepLines, read_lines


@dataclasses.dataclass(frozen=True)
class Generated:
    """One completion and what the verifiers say.

    Attributes:
      id: the prompt's.
      prompt: the request.
      category: the hazard.
      completion: the text.
      tokens: its ids, the stop token included: these are learned, the text is never encoded again.
      finished: whether the model ended it.
      well_formed: whether it has the strict format (`rewards.STRICT_FORMAT_PATTERN`).
      refused: whether its answer holds a refusal phrase (`rewards.REFUSAL_PHRASES`).
    """

    id: str
    prompt: str
    category: str
    completion: str
    tokens: list[int]
    finished: bool
    well_formed: bool
    refused: bool


def self_generate(
    model: Transformer,
    params: Params,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    path: Path,
    *,
    template: Template,
    samples_per_prompt: int,
    prompts_per_batch: int,
    max_prompt_tokens: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    facts: dict[str, Any],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Generated]:
    """Samples G completions of every prompt into a file, or goes on with the file that is there.

    Batch b draws with `fold_in(key(seed), b)`, and a batch that was cut short is drawn again, so
    that a run which was killed any number of times writes the same file.

    Args:
      model: the decoder.
      params: its parameters.
      tokenizer: a fast Hugging Face tokenizer with a chat template.
      prompts: what to ask, harmful requests for CADA.
      path: of the JSON lines, one for each completion; beside it, with the suffix .facts.json, goes
        what they depend on.
      template: how the prompts are asked, code and cases included; these are computed once a batch.
      samples_per_prompt: G.
      prompts_per_batch: prompts at a time.
      max_prompt_tokens: the longest prompt, beyond what the template makes all of them share.
      max_new_tokens: T, longest completion.
      temperature: of the draw.
      seed: of the draw.
      facts: what the completions depend on beside the arguments, as JSON, such as the model's name.
      progress: called after each batch with how many prompts are done, and of how many.

    Returns:
      all completions, in the order of the prompts.

    Raises:
      InputError: a prompt is too long, the tokenizer has no verifiers, the file is damaged, or it
        was made under other facts.
    """
    if not prompts:
        raise InputError("no prompts to answer: self-generation needs harmful ones")
    facts = facts | {
        "dtype": jnp.dtype(model.dtype).name,
        "prompts_digest": prompts_digest(prompts),
        "template": [message["content"] for message in template("{}")],
        "samples_per_prompt": samples_per_prompt,
        "prompts_per_batch": prompts_per_batch,
        "max_prompt_tokens": max_prompt_tokens,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "seed": seed,
    }
    _same_facts(path, facts)
    try:
        verifiers = safety_verifiers(tokenizer)
    except ValueError as error:
        raise InputError(f"tokenizer: {error}; use another model") from None
    encoded = encode_prompts(
        tokenizer,
        template,
        [prompt.text for prompt in prompts],
        max_tokens=max_prompt_tokens,
        width=max_prompt_tokens,
    )
    positions = len(encoded.prefix) + max_prompt_tokens + max_new_tokens
    if positions > model.config.max_positions:
        raise InputError(
            f"code, cases, prompt and completion take up to {positions} positions, the model has "
            f"{model.config.max_positions}: use fewer cases, or lower max_new_tokens"
        )
    size = min(prompts_per_batch, len(prompts))
    batches = [
        range(first, min(first + size, len(prompts))) for first in range(0, len(prompts), size)
    ]
    params = compute_params(params, model.dtype)
    key = jax.random.key(seed)
    sizes = [len(rows) * samples_per_prompt for rows in batches]
    first = least(_whole_batches(path, sizes))  # also before the first process changes the file
    generated = read_generated(path)[: sum(sizes[:first])] if first else []
    with contextlib.ExitStack() as stack:
        lines = (
            stack.enter_context(contextlib.closing(StepLines(path, first))) if is_first() else None
        )
        for number, rows in list(enumerate(batches))[first:]:
            # The last batch is filled up with earlier prompts, so that all have one shape.
            asked = np.array([rows.start + i if i < len(rows) else i for i in range(size)])
            rows_asked = (encoded.tokens[asked], encoded.mask[asked])
            tokens, mask = to_devices(rows_asked, model.mesh, rows=True)
            rollout = sample(
                model,
                params,
                tokens,
                mask,
                jax.random.fold_in(key, number),
                samples_per_prompt=samples_per_prompt,
                max_new_tokens=max_new_tokens,
                method=Temperature(temperature),
                stop=stop_tokens(model, tokenizer),
                prefix=to_devices(encoded.prefix, model.mesh),
            )
            answered = [prompts[row] for row in rows for _ in range(samples_per_prompt)]
            for made in _describe(tokenizer, verifiers, answered, rollout):
                generated.append(made)
                if lines is not None:
                    lines.append({"step": number} | dataclasses.asdict(made))
            progress(rows.stop, len(prompts))
    return generated


def _describe(
    tokenizer: Any, verifiers: Verifiers, prompts: Sequence[Prompt], rollout: Rollout
) -> Iterator[Generated]:
    """The first rows of a rollout, one for each prompt given."""
    verdict = judge(verifiers, rollout.tokens, rollout.mask)
    made, all_finished, verdict = fetch(((rollout.tokens, rollout.mask), rollout.finished, verdict))
    for row, prompt in enumerate(prompts):
        tokens, mask = (array[row] for array in made)
        yield Generated(
            id=prompt.id,
            prompt=prompt.text,
            category=prompt.category,
            completion=decode(tokenizer, tokens, mask),
            tokens=tokens[mask].tolist(),
            finished=bool(all_finished[row]),
            well_formed=bool(verdict.well_formed[row]),
            refused=bool(verdict.refused[row]),
        )


def read_generated(path: Path) -> list[Generated]:
    """The completions in a file of `self_generate`.

    Raises:
      InputError: there is no such file, or it is damaged.
    """
    made = []
    for _, row in read_lines(path):
        values = {name: value for name, value in row.items() if name != "step"}
        if set(values) != {field.name for field in dataclasses.fields(Generated)}:
            raise InputError(f"{path}: not a file of self-generated completions; give another one")
        made.append(Generated(**values))
    return made


def _same_facts(path: Path, facts: dict[str, Any]) -> None:
    """Writes the facts beside a new file; refuses an old one that was made under others."""
    kept = path.with_suffix(".facts.json")
    if not path.exists():
        if is_first():
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_json(kept, facts)
        return
    if not kept.exists():
        raise InputError(f"{path}: {kept.name}, which says how it was made, is not beside it")
    theirs = read_json(kept)
    for name, value in facts.items():
        if theirs.get(name) != value:
            raise InputError(
                f"{path}: made with another {name}; give the one it was made with (see "
                f"{kept.name}), or another file"
            )


def _whole_batches(path: Path, sizes: Sequence[int]) -> int:
    """How many batches a file holds before the first one that is cut short."""
    if not path.exists():
        return 0
    counts = [0] * len(sizes)
    for _, row in read_lines(path):
        if row["step"] < len(sizes):
            counts[row["step"]] += 1
    whole = [count == size for count, size in zip(counts, sizes, strict=True)]
    return whole.index(False) if False in whole else len(sizes)
