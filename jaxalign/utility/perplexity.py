"""How likely a model finds what the start model answered to harmless requests: what tuning costs.

    perplexity = exp( −1/n Σ_t log π(token_t | request, answer before) )

over the n tokens of the start model's greedy answers. It grows as a model moves away from what it
would have said; it does not tell whether what it says instead is worse.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.answers.greedy import Progress, greedy_answers
from jaxalign.data.documents import answer_documents
from jaxalign.data.templates import Template, Tokenizer, bare_messages
from jaxalign.models.packing import Document, PackedBatch, pack, packed_logps, place
from jaxalign.models.transformer import Transformer
from jaxalign.records import Params


@dataclasses.dataclass(frozen=True)
class ReferenceAnswers:
    """What the start model said.

    Attributes:
      documents: request and answer, of which the answer counts.
      prefix: `[P0]` ids that open all of them.
    """

    documents: list[Document]
    prefix: np.ndarray


def reference_answers(
    model: Transformer,
    params: Params,
    tokenizer: Tokenizer,
    requests: Sequence[str],
    *,
    template: Template = bare_messages,
    max_new_tokens: int = 96,
    batch_size: int = 32,
    progress: Progress = lambda done, total: None,
) -> ReferenceAnswers:
    """Lets the start model answer requests, greedily.

    Args:
      model: the decoder.
      params: the start model's parameters.
      tokenizer: a fast Hugging Face tokenizer with a chat template.
      requests: at least one.
      template: how they are asked.
      max_new_tokens: where answers are cut off.
      batch_size: requests at a time.
      progress: called after each batch with how many are done, and of how many.

    Raises:
      InputError: no requests, or one that does not fit the model's context with its answer.
    """
    answers = greedy_answers(
        model,
        params,
        tokenizer,
        requests,
        template=template,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        progress=progress,
    )
    pairs = list(zip(requests, [answer.tolist() for answer in answers], strict=True))
    documents, prefix = answer_documents(tokenizer, template, pairs)
    return ReferenceAnswers(documents, prefix)


def perplexity(
    model: Transformer,
    params: Params,
    answers: ReferenceAnswers,
    *,
    rows_per_batch: int = 8,
) -> float:
    """Perplexity of the reference's answers under a model.

    Args:
      model: the decoder.
      params: the parameters to measure.
      answers: of `reference_answers`.
      rows_per_batch: packed rows at a time, each of 512 tokens, or of the longest document's.
    """
    lengths = [len(document.tokens) for document in answers.documents]
    length = max(512, *lengths)
    batches = -(-len(place(lengths, length=length)) // rows_per_batch)
    rows = batches * rows_per_batch
    whole = pack(answers.documents, length=length, rows=rows, prefix=answers.prefix)
    arrays = dataclasses.replace(whole, prefix=None)
    total = 0.0
    for first in range(0, rows, rows_per_batch):
        part = jax.tree.map(lambda x, at=first: x[at : at + rows_per_batch], arrays)
        part = dataclasses.replace(part, prefix=whole.prefix)
        total += float(_negative_logp(model, params, part))
    return float(np.exp(total / int(whole.learned.sum())))


@functools.partial(jax.jit, static_argnums=0)
def _negative_logp(model: Transformer, params: Params, batch: PackedBatch) -> jax.Array:
    """Sum of −log π over the tokens that count."""
    return jnp.where(batch.learned, -packed_logps(model, params, batch), 0.0).sum()
