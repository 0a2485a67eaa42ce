"""Does an answer belong to its request? How likely it is after it, and after another one. Ours.

    gain = 1/n Σ_t log π(y_t | q, y_<t) − 1/n Σ_t log π(y_t | q', y_<t)

q is the bare request of an answer y of n tokens, q' another one, and π a model such as the one that
training began with. Filler, which is as likely after any request, gains nothing by its own.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxalign.answers.asking import LanguageModel
from jaxalign.answers.completing import in_batches
from jaxalign.data.documents import answer_documents
from jaxalign.data.prompts import Asked, Prompt
from jaxalign.data.templates import bare_messages
from jaxalign.evaluation.language import other_prompts, read_answer
from jaxalign.evaluation.probes import Row
from jaxalign.evaluation.rates import rate
from jaxalign.models.packing import pack, packed_logps, place
from jaxalign.models.sharding import to_devices

_ROWS, _LENGTH = 8, 512


def answer_gain(
    lm: LanguageModel, requests: Sequence[Asked], others: Sequence[Asked], answers: Sequence[str]
) -> np.ndarray:
    """What each answer gains by its own request: nats a token, `[n]`; 0 of an empty answer.

    Args:
      lm: the model that finds answers likely or not.
      requests: what was asked.
      others: what is set in their place.
      answers: texts, without reasoning; they are encoded anew.
    """
    tokens = [lm.tokenizer(text, add_special_tokens=False).input_ids for text in answers]
    lm = lm.cast()
    own, other = (_mean_logps(lm, asked, tokens) for asked in (requests, others))
    return own - other


def _mean_logps(
    lm: LanguageModel, requests: Sequence[Asked], answers: Sequence[Sequence[int]]
) -> np.ndarray:
    """Mean log-probability of each answer's tokens after a request, 0 of none; packed in rows."""
    pairs = list(zip(requests, answers, strict=True))
    documents, prefix = answer_documents(lm.tokenizer, bare_messages, pairs)
    length = max([_LENGTH, *(len(document.tokens) for document in documents)])
    found = np.zeros(len(documents), np.float32)
    rows = place([len(document.tokens) for document in documents], length=length)
    size = min(_ROWS, len(rows))
    for part in in_batches(rows, size):
        chosen = [index for row in part for index in row]
        packed = pack([documents[i] for i in chosen], length=length, rows=size)
        on_devices = to_devices(packed, lm.model.mesh, rows=True)
        shared = to_devices(prefix, lm.model.mesh)
        logps = jax.device_get(_logps(lm.model, lm.params, on_devices.replace(prefix=shared)))
        laid = place([len(documents[i].tokens) for i in chosen], length=length)
        for row, numbers in enumerate(laid):
            for number, index in enumerate(numbers, start=1):
                counted = packed.learned[row] & (packed.documents[row] == number)
                if counted.any():
                    found[chosen[index]] = logps[row][counted].mean()
    return found


_logps = jax.jit(packed_logps, static_argnums=0)


def likelier_for_own(
    lm: LanguageModel, prompts: Sequence[Prompt], answers: Sequence[Sequence[Row]]
) -> dict[str, Any]:
    """Of answers to harmless prompts that don't refuse, the share that gains by its own request.

    The other request is that of `other_prompts` among the harmless prompts.

    Returns:
      as of `rate`.
    """
    harmless = [(p, rows) for p, rows in zip(prompts, answers, strict=True) if not p.is_harmful]
    others = other_prompts([prompt for prompt, _ in harmless])
    asked, instead, texts = [], [], []
    counts = []
    for (prompt, rows), other in zip(harmless, others, strict=True):
        said = [x.answer.strip() for x in map(read_answer, rows) if other and not x.refused]
        counts.append(len(said))
        asked += [prompt.asked] * len(said)
        instead += [other.asked] * len(said) if other else []
        texts += said
    if not texts:
        return rate([])
    gains = iter(answer_gain(lm, asked, instead, texts) > 0)
    verdicts = [[bool(next(gains)) for _ in range(count)] for count in counts]
    return rate([those for those in verdicts if those])
