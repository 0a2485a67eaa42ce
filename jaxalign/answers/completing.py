"""What all that asks a model has in common: sizes, batches of one shape, what tokens spell."""

import contextlib
from collections.abc import Iterable, Sequence
from typing import TypeVar

from jaxalign.data.templates import Tokenizer, encode_frame
from jaxalign.host.errors import InputError
from jaxalign.models.transformer import Transformer

T = TypeVar("T")


def check_sizes(**sizes: int | None) -> None:
    """Refuses one below 1 by its name; None is no size."""
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise InputError(f"{name} is {size}; it must be at least 1")


def short_enough(rows: Sequence[Sequence[int]], limit: int | None) -> tuple[list[int], list[int]]:
    """The numbers of the prompts that take at most so many tokens (None: any), and of the others.

    Raises:
      InputError: every prompt is longer.
    """
    kept = [index for index, row in enumerate(rows) if limit is None or len(row) <= limit]
    if not kept:
        raise InputError(
            f"every prompt takes more than {limit} tokens (the shortest {min(map(len, rows))}); "
            "raise max_prompt_tokens"
        )
    return kept, sorted(set(range(len(rows))) - set(kept))


def stop_tokens(model: Transformer, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that end an answer, mostly one.

    They are those that the model's files name, the tokenizer's end token, and the special token
    that the chat template writes behind an answer.
    """
    config = model.config
    found = {config.eos_token_id, *config.stop_token_ids, tokenizer.eos_token_id}
    if tokenizer.chat_template:
        added = tokenizer.added_tokens_decoder
        with contextlib.suppress(InputError):  # of a template that takes no answers
            _, behind = encode_frame(tokenizer, "")
            found.add(next((x for x in behind if x in added and added[x].special), None))
    return tuple(sorted(found - {None}))


def fill(batch: Sequence[T], size: int) -> list[T]:
    """The batch and repeats of it up to `size`: the last one then has the shape of the others."""
    return [batch[index % len(batch)] for index in range(size)]


def in_batches(order: Sequence[T], batch_size: int) -> list[Sequence[T]]:
    """At most `batch_size` at a time."""
    return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]


def longest_first(numbers: Iterable[int], rows: Sequence[Sequence[int]]) -> list[int]:
    """Numbers of rows by length: what takes most memory is seen early, a batch pads little."""
    return sorted(numbers, key=lambda number: -len(rows[number]))


def width_of(rows: Iterable[Sequence[int]], *, least: int, most: int | None = None) -> int:
    """The next power of two that holds the rows, within bounds: few widths, few programs."""
    width = max(least, 1 << (max(map(len, rows)) - 1).bit_length())
    return width if most is None else min(most, width)
