"""Texts to learn from, as token ids: a request and its answer, of which the answer counts."""

from collections.abc import Sequence

import numpy as np

from jaxalign.data.templates import Template, Tokenizer, encode_chat
from jaxalign.models.packing import Document


def answer_documents(
    tokenizer: Tokenizer, template: Template, answers: Sequence[tuple[str, Sequence[int]]]
) -> tuple[list[Document], np.ndarray]:
    """Documents of requests, asked by a template, and of their answers' token ids.

    Returns:
      the documents, in which the answers are to be learned, and the ids that open all of them and
      are left out of each.
    """
    documents, prefix = [], np.zeros(0, np.int32)
    for request, tokens in answers:
        head, tail = encode_chat(tokenizer, template(request))
        prefix = np.asarray(head, np.int32)
        whole = np.asarray([*tail, *tokens], np.int32)
        documents.append(Document(whole, np.arange(len(whole)) >= len(tail)))
    return documents, prefix
