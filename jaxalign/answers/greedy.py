"""Greedy answers to any number of requests."""

from collections.abc import Callable, Sequence

import numpy as np

from jaxalign.answers.completing import complete
from jaxalign.data.templates import Template, Tokenizer, encode_chat
from jaxalign.host.errors import InputError
from jaxalign.host.processes import fetch
from jaxalign.models.completion import compute_params
from jaxalign.models.transformer import Transformer
from jaxalign.records import Params
from jaxalign.sampling import Greedy, Stage, stage_key

Progress = Callable[[int, int], None]
"""`(done, total)`, called after each batch."""


def greedy_answers(
    model: Transformer,
    params: Params,
    tokenizer: Tokenizer,
    requests: Sequence[str],
    *,
    template: Template,
    max_new_tokens: int,
    batch_size: int = 32,
    progress: Progress = lambda done, total: None,
) -> list[np.ndarray]:
    """The most probable next token, again and again; all batches have one shape.

    Args:
      model: the decoder.
      params: its parameters.
      tokenizer: a fast Hugging Face tokenizer with a chat template.
      requests: at least one.
      template: how they are asked.
      max_new_tokens: where answers are cut off.
      batch_size: requests at a time.
      progress: called after each batch with how many are done, and of how many.

    Returns:
      token ids of each answer, int32, the stop token included where it came to one.

    Raises:
      InputError: no requests, or one that does not fit the model's context with its answer.
    """
    if not requests:
        raise InputError("no requests to answer; give at least one")
    params = compute_params(params, model.dtype)
    width = max(len(encode_chat(tokenizer, template(request))[1]) for request in requests)
    size = min(batch_size, len(requests))
    answers = []
    for first in range(0, len(requests), size):
        # The last batch is filled up from the front.
        batch = [requests[(first + i) % len(requests)] for i in range(size)]
        rollout = complete(
            model,
            params,
            tokenizer,
            batch,
            stage_key(0, Stage.ANSWERS),  # greedy draws nothing
            template=template,
            max_prompt_tokens=width,
            max_new_tokens=max_new_tokens,
            method=Greedy(),
        )
        tokens, mask = fetch((rollout.tokens, rollout.mask))
        done = min(first + size, len(requests))
        answers += [tokens[row][mask[row]] for row in range(done - first)]
        progress(done, len(requests))
    return answers
