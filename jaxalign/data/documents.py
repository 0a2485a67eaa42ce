"""Texts to learn from, as token ids: a request and its answer, of which the answer counts."""

from collections.abc import Sequence

import numpy as np

from jaxalign.data.prompts import Asked
from jaxalign.data.templates import Template, Tokenizer, encode_requests
from jaxalign.models.packing import Document


def answer_documents(
    tokenizer: Tokenizer, template: Template, answers: Sequence[tuple[Asked, Sequence[int]]]
) -> tuple[list[Document], np.ndarray]:
    """Documents of requests, asked by a template, and of their answers' token ids.

    Returns:
      the documents, in which the answers are to be learned, and the ids that open all of them and
      are left out of each.
    """
    prefix, rows = encode_requests(tokenizer, template, [asked for asked, _ in answers])
    documents = []
    for row, (_, tokens) in zip(rows, answers, strict=True):
        whole = np.asarray([*row, *tokens], np.int32)
        documents.append(Document(whole, np.arange(len(whole)) >= len(row)))
    return documents, prefix
