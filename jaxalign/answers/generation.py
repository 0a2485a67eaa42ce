"""Answers to many requests in a file: a killed run goes on where it stopped, and ends the same.

Requests are answered longest first, so that those of a batch are about equally long, and a batch is
as wide as the next power of two: little padding, and few programs to compile. While the
run is under way the answers are in NAME.part.jsonl, in that order; NAME.jsonl has them in the order
of the requests and appears when there are all of them.
"""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxalign.answers.asking import Answer, Asking, LanguageModel, Questions
from jaxalign.answers.batch_files import facts_path, keep_facts, part_path, resume
from jaxalign.answers.completing import check_sizes, in_batches, longest_first, short_enough
from jaxalign.data.prompts import Request, conversation_field, prompts_digest
from jaxalign.data.templates import Tokenizer, encode_requests
from jaxalign.host.errors import InputError
from jaxalign.host.json_files import fingerprint, write_whole
from jaxalign.host.processes import all_of, is_first, locked_for_all
from jaxalign.host.step_lines import read_lines
from jaxalign.rewards import split
from jaxalign.sampling import Stage
from jaxalign.text.chat_template import template_date
from jaxalign.text.encoding import encode_text

Progress = Callable[[int, int, int], None]
"""`(done, total, tokens)`: requests of the file, and tokens that this run has generated."""


@dataclasses.dataclass(frozen=True)
class Generation:
    """What a run of `generate` did: how many answers the file has, and how many were cut off.

    `skipped` has the ids of requests that were too long to ask; tokens and seconds, compilation
    included, are those of this run.
    """

    answers: int
    cut_off: int
    skipped: tuple[str, ...]
    tokens: int
    seconds: float


def generate(
    lm: LanguageModel,
    requests: Sequence[Request],
    path: Path,
    asking: Asking,
    *,
    openings: Sequence[str] | None = None,
    opening_tokens: int | None = None,
    facts: dict[str, Any],
    progress: Progress = lambda done, total, tokens: None,
) -> Generation | None:
    """Writes G answers to every request, or goes on with what an earlier run has written.

    A run that was killed any number of times writes the same file: a batch that was cut short is
    drawn again. Requests longer than `asking.max_prompt_tokens`, their openings not counted, are
    skipped.

    Each line is an object: `id`, `prompt`, `kind` and `category` of the request (null if unknown),
    `conversation` (role and content of the turns before it, where there are any), `sample` (from
    0), `completion` (the text, a tool's answers included), `tokens` (how many the model generated),
    `finished` (false if it was cut off), with a tool `consulted` and `own`, the text without the
    tool's answers and an opening, and with openings `opening`, the text that the model was made to
    begin with. It is part of `completion`; a tool does not read it.

    The path is NAME.jsonl; what the answers depend on, the arguments and `facts` (JSON: the tool's
    rules, say), goes to NAME.facts.json, with the ids of requests that were skipped. Openings,
    one for each request, are what its answers begin with: plain text, in which `<|im_end|>` is
    letters, "" for none; `opening_tokens` cuts them to so many tokens, counted behind the answer's
    tag where one has that tag, and None leaves them whole. `progress` is called at the
    start and after each batch.

    Returns:
      what was done; None if the file was finished before, or another process of several writes it.

    Raises:
      InputError: no requests, none of them short enough, openings cut below 1, request and answer
        together longer than the model's context, a file that is damaged, was made under other
        facts or that another process writes, or a path that does not end in .jsonl.
      ValueError: not as many openings as requests.
    """
    start = time.monotonic()
    check_sizes(opening_tokens=opening_tokens)
    part = part_path(path)
    if not requests:
        raise InputError("no requests to answer; give at least one")
    prefix, rows = encode_requests(lm.tokenizer, asking.template, [x.asked for x in requests])
    fitting, long = short_enough(rows, asking.max_prompt_tokens)
    skipped = [requests[index].id for index in long]
    asked = longest_first(fitting, rows)
    facts = facts | asking_facts(lm, requests, asking)
    forced: list[list[int]] = [[] for _ in requests]
    if openings is not None:
        forced = [opening_ids(lm.tokenizer, text, opening_tokens) for text in openings]
        rows = [row + opening for row, opening in zip(rows, forced, strict=True)]
        asked = longest_first(asked, rows)
        digest = fingerprint(list(openings))
        facts |= {"openings_digest": digest, "opening_tokens": opening_tokens}
    questions = Questions(prefix, rows, in_batches(asked, asking.batch_size))
    questions.check_positions(
        lm.model,
        asking.max_new_tokens,
        remedy="lower max_new_tokens, or max_prompt_tokens to skip long prompts, or take a shorter "
        "template",
    )

    def describe(answer: Answer, sample: int) -> dict[str, Any]:
        request, opening = requests[answer.request], forced[answer.request]
        whole = np.array([*opening, *answer.written], np.int32)
        row: dict[str, Any] = {
            "id": request.id,
            "prompt": request.text,
            "kind": request.kind,
            "category": request.category,
            **conversation_field(request.conversation),
            "sample": sample,
            "completion": lm.text(whole, answer.ending),
            "tokens": len(answer.tokens),
            "finished": answer.finished,
        }
        if asking.tool is not None:
            own = lm.text(answer.tokens, answer.ending)
            row |= {"consulted": answer.consulted, "own": own}
        if openings is not None:
            row["opening"] = lm.text(np.array(opening, np.int32))
        return row

    # What is finished is only read, by any number of processes.
    finished = all_of(path.exists())
    with contextlib.nullcontext() if finished else locked_for_all(path, "another file"):
        found = path if finished or all_of(path.exists()) else part
        keep_facts(found, facts, kept=facts_path(path), more={"skipped": skipped})
        order = [index for index in asked for _ in range(asking.samples)]
        if found == path:
            count = len(path.read_bytes().splitlines())
            if count != len(order):
                raise InputError(
                    f"{path}: has {count} lines where {len(order)} answers were written; give "
                    "another file, or delete this one to have it made again"
                )
            if is_first():
                part.unlink(missing_ok=True)  # a run may have been killed before it came to that
            return None

        done, batches = resume(lm, questions, asking, Stage.ANSWERS, part, describe=describe)
        generated = 0
        progress(done // asking.samples, len(asked), generated)
        for batch in batches:
            generated += sum(row["tokens"] for row in batch)
            done += len(batch)
            progress(done // asking.samples, len(asked), generated)
        if not is_first():
            return None
        written = _put_in_order(part, path, order)
        return Generation(
            answers=len(written),
            cut_off=sum(not row["finished"] for row in written),
            skipped=tuple(skipped),
            tokens=generated,
            seconds=time.monotonic() - start,
        )


def asking_facts(lm: LanguageModel, requests: Sequence[Request], asking: Asking) -> dict[str, Any]:
    """What answers depend on, as JSON."""
    stops = lm.stops(asking.stop)
    return {
        "weights": lm.digest,
        "dtype": lm.dtype,
        "prompts": len(requests),
        "prompts_digest": prompts_digest(requests),
        "template": [message["content"] for message in asking.template("{}")],
        "template_date": template_date(lm.tokenizer),
        "chat_template": getattr(lm.tokenizer, "template_name", None),
        "method": type(asking.method).__name__,
        **dataclasses.asdict(asking.method),
        "samples": asking.samples,
        "max_prompt_tokens": asking.max_prompt_tokens,
        "max_new_tokens": asking.max_new_tokens,
        "batch_size": asking.batch_size,
        "seed": asking.seed,
        "stop": [*stops.tokens, *stops.texts],
    }


def opening_ids(tokenizer: Tokenizer, text: str, limit: int | None) -> list[int]:
    """The tokens of an opening: up to the answer's tag all, behind it (or without it) `limit`."""
    at = split(text).answer_at
    return encode_text(tokenizer, text[:at]) + encode_text(tokenizer, text[at:])[:limit]


def _put_in_order(part: Path, path: Path, order: Sequence[int]) -> list[dict[str, Any]]:
    """Writes the finished file from the answers of the requests `order`; returns its rows."""
    rows = [row for _, row in read_lines(part)]
    if len(rows) != len(order):
        raise InputError(
            f"{part}: {len(rows)} answers where {len(order)} were written; let one run at a time "
            "write it, and start this one again"
        )
    if any(not isinstance(row.get("finished"), bool) for row in rows):
        raise InputError(f"{part}: a line is no answer; delete the file to have it made again")
    by_request = sorted(zip(order, rows, strict=True), key=lambda pair: pair[0])  # samples stay
    rows = [{name: x for name, x in row.items() if name != "step"} for _, row in by_request]
    write_whole(path, (json.dumps(row).encode() + b"\n" for row in rows))
    part.unlink()
    return rows
