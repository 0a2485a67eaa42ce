"""What all that asks a model has in common: sizes, batches of one shape, what ends an answer."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeVar

from jaxalign.data.templates import Tokenizer, turn_end
from jaxalign.host.errors import InputError
from jaxalign.host.user_functions import in_short
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


class Stops(NamedTuple):
    """What ends an answer.

    Attributes:
      tokens: ids, mostly one.
      texts: words, and names of tokens that are text in an answer; mostly none.
    """

    tokens: tuple[int, ...]
    texts: tuple[str, ...] = ()

    def joined(self, more: Iterable[str], tokenizer: Tokenizer) -> "Stops":
        """These and more, given by a token's name or as a text."""
        added, named = tokenizer.get_added_vocab(), tokenizer.added_tokens_decoder
        tokens = {*self.tokens, *(added[text] for text in more if text in added)}
        plain = [text for text in more if text not in added or not named[added[text]].special]
        texts = dict.fromkeys((*self.texts, *plain))
        return Stops(tuple(sorted(tokens)), tuple(texts))

    def before(self, text: str) -> str:
        """The text up to the first of the words."""
        found = [place for place in map(text.find, self.texts) if place >= 0]
        return text[: min(found, default=len(text))]


def find_stops(model: Transformer, tokenizer: Tokenizer, named: Sequence[str] = ()) -> Stops:
    """What ends an answer of a model.

    The tokens are those that the model's files name, the tokenizer's end token, the one that the
    chat template writes behind an answer, and those given by name. Where the template writes words
    alone they end it (`turn_end`).

    Raises:
      InputError: a name of no token.
    """
    config, behind, added = model.config, turn_end(tokenizer), tokenizer.get_added_vocab()
    if unknown := [text for text in named if text not in added]:
        raise InputError(
            f"stop: {in_short(unknown[0])} is the name of no token that was added to the "
            f"tokenizer's words; give one of {', '.join(sorted(added)[:20])}"
        )
    tokens = {config.eos_token_id, *config.stop_token_ids, tokenizer.eos_token_id} - {None}
    return Stops(tuple(tokens)).joined([behind, *named] if behind else named, tokenizer)


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
