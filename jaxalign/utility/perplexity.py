"""How likely a model finds what the start model answered to harmless requests: what tuning costs.

    perplexity = exp( −1/n Σ_t log π(token_t | request, answer before) )

over the n tokens of the start model's greedy answers. It grows as a model moves away from what it
would have said; it does not tell whether what it says instead is worse.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.answers.asking import Asking, LanguageModel, Progress, answers
from jaxalign.answers.completing import in_batches
from jaxalign.data.documents import answer_documents
from jaxalign.models.packing import Document, PackedBatch, pack, packed_logps, place
from jaxalign.models.transformer import Transformer
from jaxalign.records import Params

ReferenceAnswers = tuple[list[Document], np.ndarray]
"""What the start model said: requests with answers, and the `[P0]` ids that open all of them."""


def reference_answers(
    lm: LanguageModel,
    requests: Sequence[str],
    asking: Asking,
    *,
    progress: Progress = lambda done, total: None,
) -> ReferenceAnswers:
    """What the start model answers; arguments, and what is raised, are those of `answers`."""
    said = [answer.tokens.tolist() for answer in answers(lm, requests, asking, progress=progress)]
    pairs = list(zip(requests, said, strict=True))
    return answer_documents(lm.tokenizer, asking.template, pairs)


def perplexity(lm: LanguageModel, reference: ReferenceAnswers, *, rows_per_batch: int = 8) -> float:
    """Perplexity of the reference's answers under a model.

    Rows are packed, each of 512 tokens, or of the longest document's.
    """
    documents, prefix = reference
    lengths = [len(document.tokens) for document in documents]
    length = max(512, *lengths)
    total = 0.0
    for rows in in_batches(place(lengths, length=length), rows_per_batch):
        part = [documents[index] for row in rows for index in row]
        packed = pack(part, length=length, rows=rows_per_batch, prefix=prefix)
        total += float(_negative_logp(lm.model, lm.params, packed))
    return float(np.exp(total / sum(int(document.learned.sum()) for document in documents)))


@functools.partial(jax.jit, static_argnums=0)
def _negative_logp(model: Transformer, params: Params, batch: PackedBatch) -> jax.Array:
    """Sum of −log π over the tokens that count."""
    return jnp.where(batch.learned, -packed_logps(model, params, batch), 0.0).sum()
