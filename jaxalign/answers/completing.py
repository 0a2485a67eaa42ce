"""Asking requests in batches of one shape, and what an answer's tokens spell."""

from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.prompts import Prompt
from jaxalign.data.templates import Template, Tokenizer, encode_prompts, encode_requests, pad
from jaxalign.host.errors import InputError
from jaxalign.models.sharding import to_devices
from jaxalign.models.transformer import Transformer
from jaxalign.records import Params, Rollout
from jaxalign.sampling import Method, Tool, sample

T = TypeVar("T")


def check_sizes(**sizes: int) -> None:
    """Refuses one below 1 by its name."""
    for name, size in sizes.items():
        if size < 1:
            raise InputError(f"{name} is {size}; it must be at least 1")


def prompt_lengths(
    tokenizer: Tokenizer, template: Template, prompts: Sequence[Prompt]
) -> list[int]:
    """How many tokens each prompt takes beyond what the template makes all of them share."""
    texts = [prompt.text for prompt in prompts]
    return [len(tail) for tail in encode_requests(tokenizer, template, texts)[1]]


def stop_tokens(model: Transformer, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that end an answer: the model's end token and the tokenizer's, mostly the same."""
    return tuple(sorted({model.config.eos_token_id, tokenizer.eos_token_id} - {None}))


def complete(
    model: Transformer,
    params: Params,
    tokenizer: Tokenizer,
    requests: Sequence[str],
    key: jax.Array,
    *,
    template: Template,
    tool: Tool | None = None,
    max_prompt_tokens: int,
    max_new_tokens: int,
    method: Method,
    openings: Sequence[Sequence[int]] | None = None,
    rows: jax.Array | None = None,
) -> Rollout:
    """Encodes N requests, all `max_prompt_tokens` wide, and samples one completion of each.

    The model's end token and the tokenizer's (mostly the same) end a completion. `openings` are
    token ids behind each request, with which its answer begins; they count as the prompt's. `rows`
    are as for `sample`.

    Raises:
      InputError: a request is too long, or does not fit the model's context with its completion.
    """
    encoded = encode_prompts(
        tokenizer, template, requests, max_tokens=max_prompt_tokens, width=max_prompt_tokens
    )
    ids, id_mask = encoded.tokens, encoded.mask
    if openings is not None:
        begun = [
            [*row[there], *more] for row, there, more in zip(ids, id_mask, openings, strict=True)
        ]
        ids, id_mask = pad(begun, max_prompt_tokens)
    shared, positions = len(encoded.prefix), model.config.max_positions
    if shared + max_prompt_tokens + max_new_tokens > positions:
        raise InputError(
            f"{shared} tokens of the template, {max_prompt_tokens} of the prompt and "
            f"{max_new_tokens} new ones exceed the model's {positions} positions; ask for fewer "
            "new tokens, or for shorter prompts"
        )
    tokens, mask = to_devices((ids, id_mask), model.mesh, rows=True)
    return sample(
        model,
        params,
        tokens,
        mask,
        key,
        samples_per_prompt=1,
        max_new_tokens=max_new_tokens,
        method=method,
        stop=stop_tokens(model, tokenizer),
        prefix=to_devices(encoded.prefix, model.mesh),
        tool=tool,
        rows=rows,
    )


def rows_of_prompts(prompts: Sequence[int], samples: int) -> jax.Array:
    """The numbers `[B]` of the samples of some prompts within those of all, for `sample`'s noise.

    Args:
      prompts: numbers of the prompts.
      samples: G of each.
    """
    first = np.asarray(prompts, np.int32)[:, None] * samples
    return jnp.asarray((first + np.arange(samples, dtype=np.int32)).reshape(-1))


def decode(tokenizer: Tokenizer, tokens: np.ndarray, mask: np.ndarray) -> str:
    """The text of one completion, `[T]` ids and `[T]` bool: the text that the verifiers judge."""
    return tokenizer.decode(
        tokens[mask], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


def fill(batch: Sequence[T], size: int) -> list[T]:
    """The batch and repeats of it up to `size`: the last one then has the shape of the others."""
    return [batch[index % len(batch)] for index in range(size)]
