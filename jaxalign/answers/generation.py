"""Answers to many requests in a file: a killed run goes on where it stopped, and ends the same.

Requests are answered longest first, so that those of a batch are about equally long, and a batch is
as wide as the next power of two: little padding, and few programs to compile. While the
run is under way the answers are in NAME.part.jsonl, in that order; NAME.jsonl has them in the order
of the requests and appears when there are all of them.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxalign.answers.batch_files import facts_path, keep_facts, part_path, whole_batches
from jaxalign.answers.completing import check_sizes, decode, fill, rows_of_prompts, stop_tokens
from jaxalign.data.prompts import Request, prompts_digest
from jaxalign.data.templates import Template, Tokenizer, encode_requests, encode_text, pad
from jaxalign.host.errors import InputError
from jaxalign.host.processes import fetch
from jaxalign.host.step_lines import StepLines, read_lines
from jaxalign.models.completion import compute_params
from jaxalign.models.files.weights import weights_digest
from jaxalign.models.sharding import to_devices
from jaxalign.models.transformer import Transformer
from jaxalign.records import Params, Rollout
from jaxalign.rewards import ANSWER_TAGS
from jaxalign.sampling import Greedy, Method, Stage, Tool, sample, stage_key

LEAST_WIDTH = 32
"""Requests of a batch are padded to 32, 64, 128, … tokens, or to the longest of all."""

Progress = Callable[[int, int, int], None]
"""`(done, total, tokens)`: requests of the file, and tokens that this run has generated."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """What a run of `generate` did.

    Attributes:
      answers: how many are in the file.
      cut_off: how many of them are longer than `max_new_tokens`.
      skipped: ids of the requests that were too long to ask.
      tokens: how many this run generated.
      seconds: how long it took, compilation included.
    """

    answers: int
    cut_off: int
    skipped: tuple[str, ...]
    tokens: int
    seconds: float


def generate(
    model: Transformer,
    params: Params,
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    path: Path,
    *,
    template: Template,
    tool: Tool | None = None,
    method: Method = Greedy(),  # noqa: B008  (frozen)
    samples: int = 1,
    max_prompt_tokens: int,
    max_new_tokens: int,
    batch_size: int = 32,
    seed: int = 0,
    openings: Sequence[str] | None = None,
    opening_tokens: int | None = None,
    facts: dict[str, Any],
    progress: Progress = lambda done, total, tokens: None,
) -> Generation | None:
    """Writes G answers to every request, or goes on with what an earlier run has written.

    Sample s of request r draws as row r·G + s of one large batch, so the answers do not depend on
    `batch_size` (up to rounding), and a run that was killed any number of times writes the same
    file: a batch that was cut short is drawn again.

    Each line is an object: `id`, `prompt`, `kind` and `category` of the request (null if unknown),
    `sample` (from 0), `completion` (the text, a tool's answers included), `tokens` (how many the
    model generated), `finished` (false if it was cut off), with a tool `consulted`, and with
    openings `opening`, the text that the model was made to begin with. It is part of `completion`;
    a tool does not read it.

    Args:
      model: the decoder.
      params: its parameters.
      tokenizer: a fast Hugging Face tokenizer with a chat template.
      requests: what to ask.
      path: of the answers, NAME.jsonl; what they depend on goes to NAME.facts.json, with the ids
        of requests that were skipped.
      template: turns a request into messages (`jaxalign.data.templates`).
      tool: what answers may call.
      method: how tokens are chosen.
      samples: G.
      max_prompt_tokens: the most tokens a request may take beyond what all share, its opening not
        counted; longer ones are skipped.
      max_new_tokens: where answers are cut off.
      batch_size: requests at a time.
      seed: of a method that draws.
      openings: for each request the text that its answers begin with, "" for none; plain text, in
        which `<|im_end|>` is letters.
      opening_tokens: cuts openings to so many tokens, counted behind the answer's tag where one
        has that tag; None leaves them whole.
      facts: what the answers depend on beside the arguments, as JSON: the tool's rules, say.
      progress: called at the start and after each batch.

    Returns:
      what was done; None if the file was finished before.

    Raises:
      InputError: no requests, none of them short enough, a size below 1, request and answer
        together longer than the model's context, a file that is damaged or was made under other
        facts, or a path that does not end in .jsonl.
      ValueError: not as many openings as requests.
    """
    start = time.monotonic()
    check_sizes(
        **({} if opening_tokens is None else {"opening_tokens": opening_tokens}),
        samples=samples,
        max_prompt_tokens=max_prompt_tokens,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
    )
    part = part_path(path)
    if not requests:
        raise InputError("no requests to answer; give at least one")
    prefix, tails = encode_requests(tokenizer, template, [request.text for request in requests])
    asked = _longest_first(tails, max_prompt_tokens)
    forced = None
    if openings is not None:
        forced = [opening_ids(tokenizer, text, opening_tokens) for text in openings]
        tails = [tail + opening for tail, opening in zip(tails, forced, strict=True)]
        asked.sort(key=lambda index: -len(tails[index]))
    longest = len(tails[asked[0]])
    _check_positions(model, len(prefix), longest, max_new_tokens)
    skipped = [requests[index].id for index in sorted(set(range(len(requests))) - set(asked))]
    facts = facts | {
        "weights": weights_digest(params),
        "dtype": jnp.dtype(model.dtype).name,
        "prompts": len(requests),
        "prompts_digest": prompts_digest(requests),
        "template": [message["content"] for message in template("{}")],
        "method": type(method).__name__,
        **dataclasses.asdict(method),
        "samples": samples,
        "max_prompt_tokens": max_prompt_tokens,
        "max_new_tokens": max_new_tokens,
        "batch_size": batch_size,
        "seed": seed,
    }
    if openings is not None:
        digest = hashlib.sha256(json.dumps(list(openings)).encode()).hexdigest()[:16]
        facts |= {"openings_digest": digest, "opening_tokens": opening_tokens}
    found = path if path.exists() else part
    keep_facts(found, facts, kept=facts_path(path), more={"skipped": skipped})
    order = [index for index in asked for _ in range(samples)]
    if found == path:
        _check_count(path, len(order))
        part.unlink(missing_ok=True)  # a run may have been killed before it came to that
        return None

    size = min(batch_size, len(asked))
    batches = [asked[first : first + size] for first in range(0, len(asked), size)]
    params = compute_params(params, model.dtype)
    shared = to_devices(prefix, model.mesh)
    key = stage_key(seed, Stage.ANSWERS)

    def launch(number: int) -> Rollout:
        filled = fill(batches[number], size)
        rows = [tails[index] for index in filled]
        tokens, mask = to_devices(pad(rows, _width(rows, longest)), model.mesh, rows=True)
        return sample(
            model,
            params,
            tokens,
            mask,
            key,
            samples_per_prompt=samples,
            max_new_tokens=max_new_tokens,
            method=method,
            stop=stop_tokens(model, tokenizer),
            prefix=shared,
            tool=tool,
            rows=rows_of_prompts(filled, samples),
        )

    first = whole_batches(part, [len(batch) * samples for batch in batches])
    done, generated = min(first * size, len(asked)), 0
    progress(done, len(asked), generated)
    with contextlib.closing(StepLines(part, first)) as lines:
        for number, rollout in _one_ahead(range(first, len(batches)), launch):
            batch = [requests[index] for index in batches[number]]
            begun = forced and [forced[index] for index in batches[number]]
            for answer in _answers(tokenizer, batch, begun, rollout, samples, bool(tool)):
                lines.append({"step": number} | answer)
                generated += answer["tokens"]
            done += len(batch)
            progress(done, len(asked), generated)
    rows = _put_in_order(part, path, order)
    return Generation(
        answers=len(rows),
        cut_off=sum(not row["finished"] for row in rows),
        skipped=tuple(skipped),
        tokens=generated,
        seconds=time.monotonic() - start,
    )


def opening_ids(tokenizer: Tokenizer, text: str, limit: int | None) -> list[int]:
    """The tokens of an opening: up to the answer's tag all, behind it (or without it) `limit`.

    Args:
      tokenizer: a fast Hugging Face tokenizer.
      text: plain text, in which the names of special tokens are letters.
      limit: the most tokens behind the tag; None for all.
    """
    before, tag, answer = text.rpartition(ANSWER_TAGS[0])
    frame = encode_text(tokenizer, before + tag) if tag else []
    return frame + encode_text(tokenizer, answer)[:limit]


def _longest_first(tails: Sequence[Sequence[int]], max_tokens: int) -> list[int]:
    """Which requests are short enough, the longest first: what takes most memory is seen early."""
    order = sorted(range(len(tails)), key=lambda index: -len(tails[index]))
    asked = [index for index in order if len(tails[index]) <= max_tokens]
    if not asked:
        raise InputError(
            f"every prompt takes more than {max_tokens} tokens (the shortest "
            f"{len(tails[order[-1]])}); raise max_prompt_tokens"
        )
    return asked


def _check_positions(model: Transformer, prefix: int, longest: int, new: int) -> None:
    positions = model.config.max_positions
    if prefix + longest + new > positions:
        raise InputError(
            f"{prefix} tokens of the template, {longest} of the longest prompt and {new} new ones "
            f"exceed the model's {positions} positions; lower max_new_tokens, or max_prompt_tokens "
            "to skip long prompts, or take a shorter template"
        )


def _width(rows: Sequence[Sequence[int]], longest: int) -> int:
    needed = max(map(len, rows))
    return min(longest, max(LEAST_WIDTH, 1 << (needed - 1).bit_length()))


def _one_ahead(
    numbers: Iterable[int], launch: Callable[[int], Rollout]
) -> Iterator[tuple[int, Rollout]]:
    """Each batch once the next one is under way: the device does not wait while text is made."""
    held: tuple[int, Rollout] | None = None
    for number in numbers:
        launched = number, launch(number)
        if held is not None:
            yield held
        held = launched
    if held is not None:
        yield held


def _answers(
    tokenizer: Tokenizer,
    requests: Sequence[Request],
    openings: Sequence[Sequence[int]] | None,
    rollout: Rollout,
    samples: int,
    consulting: bool,
) -> Iterator[dict[str, Any]]:
    """The first rows of a rollout, `samples` for each request given."""
    made = fetch((rollout.tokens, rollout.mask, rollout.present, rollout.finished, rollout.mode))
    for row in range(len(requests) * samples):
        tokens, mask, present, finished, mode = (array[row] for array in made)
        request = requests[row // samples]
        written = tokens[present]
        extra: dict[str, Any] = {"consulted": bool(mode)} if consulting else {}
        if openings is not None:
            opening = np.asarray(openings[row // samples], np.int32)
            written = np.concatenate([opening, written])
            extra["opening"] = _text(tokenizer, opening)
        yield {
            "id": request.id,
            "prompt": request.text,
            "kind": request.kind,
            "category": request.category,
            "sample": row % samples,
            "completion": _text(tokenizer, written),
            "tokens": int(mask.sum()),
            "finished": bool(finished),
        } | extra


def _text(tokenizer: Tokenizer, tokens: np.ndarray) -> str:
    return decode(tokenizer, tokens, np.ones(len(tokens), bool))


def _put_in_order(part: Path, path: Path, order: Sequence[int]) -> list[dict[str, Any]]:
    """Writes the finished file from the answers of the requests `order`; returns its rows."""
    rows = [row for _, row in read_lines(part)]
    if len(rows) != len(order):
        raise InputError(
            f"{part}: {len(rows)} answers where {len(order)} were written; let one run at a time "
            "write it, and start this one again"
        )
    by_request = sorted(zip(order, rows, strict=True), key=lambda pair: pair[0])  # samples stay
    rows = [{name: x for name, x in row.items() if name != "step"} for _, row in by_request]
    aside = path.with_suffix(".tmp")
    with aside.open("w", encoding="ascii") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)
    part.unlink()
    return rows


def _check_count(path: Path, due: int) -> None:
    with path.open("rb") as file:
        count = sum(1 for _ in file)
    if count != due:
        raise InputError(
            f"{path}: has {count} lines where {due} answers were written; give another file, or "
            "delete this one to have it made again"
        )
