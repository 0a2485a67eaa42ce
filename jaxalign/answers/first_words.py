"""What a language model would say first: probabilities of a few words, from one prefill.

A question is put to the model as a chat, the beginning of its reply is given, and the probabilities
of the words that may come next are read. Nothing is generated or parsed, so there is an answer
always. Questions about one chat share its prefill, and chats of a call the tokens that all of them
begin with.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.answers.asking import LanguageModel, Progress
from jaxalign.answers.completing import check_sizes, fill, in_batches, longest_first, width_of
from jaxalign.data.templates import Message, Tokenizer, encode_chat, pad
from jaxalign.host.errors import InputError
from jaxalign.models.heads import output_weight
from jaxalign.models.transformer import Transformer
from jaxalign.records import Params
from jaxalign.text.encoding import encode_text

LEAST_WIDTH = 64
"""Chats of a batch are padded to 64, 128, 256, … tokens, and as many of what all share are read
once: few programs to compile."""


@dataclasses.dataclass(frozen=True)
class Question:
    """A reply that has begun, and how it may go on.

    Attributes:
      lead: how the reply begins; may be empty.
      words: what may follow it, told apart by their first tokens.
    """

    lead: str
    words: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Form:
    """How a model is asked what it makes of an answer.

    Attributes:
      chat: makes messages of request and answer.
      questions: at least one.
      score: of the probabilities of each question's words, `[n, words]`, to `[n]` in [0, 1].
    """

    chat: Callable[[str, str], list[Message]]
    questions: Sequence[Question]
    score: Callable[[Sequence[np.ndarray]], np.ndarray]


def one_turn(prompt: str) -> Callable[[str, str], list[Message]]:
    """Request and answer in the places of a prompt's two `{}`, which every chat template takes."""
    return lambda request, answer: [{"role": "user", "content": prompt.format(request, answer)}]


def form_scores(
    lm: LanguageModel,
    form: Form,
    requests: Sequence[str],
    answers: Sequence[str],
    *,
    batch_size: int,
    progress: Progress = lambda done, total: None,
) -> np.ndarray:
    """A model's score of each answer to its request, `[n]` float32.

    The arguments, and what is raised, are otherwise those of `first_word_probabilities`.
    """
    chats = [form.chat(*pair) for pair in zip(requests, answers, strict=True)]
    found = first_word_probabilities(
        lm, chats, form.questions, batch_size=batch_size, progress=progress
    )
    return form.score(found)


def first_word_probabilities(
    lm: LanguageModel,
    chats: Sequence[Sequence[Message]],
    questions: Sequence[Question],
    *,
    batch_size: int,
    progress: Progress = lambda done, total: None,
) -> list[np.ndarray]:
    """How likely each word of each question is, among the words of that question.

    With z_k the logit of word k's first token behind the chat and the lead::

        p_k = exp z_k / Σ_j exp z_j

    Leads and words are encoded together, so a space between them counts as the tokenizer has it; of
    several questions none sees the others. Ours. There are n chats, at least one, ready for the
    assistant's reply; `progress` is told how many are read, and of how many.

    Returns:
      of each question `[n, number of its words]` float32, rows that sum to 1.

    Raises:
      InputError: two words of a question begin with the same token, a chat that is longer than the
        model's context, a tokenizer without a chat template, or a batch size below 1.
    """
    check_sizes(batch_size=batch_size)
    leads, words = zip(*(spell(lm.tokenizer, question) for question in questions), strict=True)
    rows = [sum(encode_chat(lm.tokenizer, chat), start=[]) for chat in chats]
    longest = max(map(len, rows)) + max(map(len, leads))
    if longest > (positions := lm.model.config.max_positions):
        raise InputError(
            f"the longest request and answer take {longest} tokens with the judge's prompt, its "
            f"context holds {positions}; use a judge with a longer one, or shorter answers"
        )
    shared = _shared_length(rows)
    prefix = np.asarray(rows[0][:shared], np.int32)
    tails = [row[shared:] for row in rows]
    lead_tokens, _ = pad(leads, max(map(len, leads)) + 1)  # one more, whose prediction is read
    lengths = np.array([len(lead) for lead in leads], np.int32)
    word_tokens, known = pad(words, max(map(len, words)))
    size = min(batch_size, 1 << (len(tails) - 1).bit_length())
    scores = np.zeros((len(tails), *word_tokens.shape), np.float32)
    done = 0
    for batch in in_batches(longest_first(range(len(tails)), tails), size):
        asked = [tails[index] for index in fill(batch, size)]
        tokens, mask = pad(asked, width_of(asked, least=LEAST_WIDTH))
        found = _word_logits(
            lm.model, lm.params, prefix, tokens, mask, lead_tokens, lengths, word_tokens
        )
        scores[batch] = np.asarray(found)[: len(batch)]
        done += len(batch)
        progress(done, len(tails))
    scores = np.where(known, scores, -np.inf)
    powers = np.exp(scores - scores.max(axis=2, keepdims=True))
    shares = powers / powers.sum(axis=2, keepdims=True)
    return [shares[:, index, there] for index, there in enumerate(known)]


def spell(tokenizer: Tokenizer, question: Question) -> tuple[list[int], list[int]]:
    """The tokens of the lead, and the first token in which each word differs from the others.

    Raises:
      InputError: two words cannot be told apart by one token.
    """
    spelled = [encode_text(tokenizer, question.lead + word) for word in question.words]
    common = len(os.path.commonprefix(spelled))
    firsts = [tokens[common] for tokens in spelled if len(tokens) > common]
    if len(set(firsts)) < len(question.words):
        raise InputError(
            f"the tokenizer does not tell {', '.join(map(repr, question.words))} behind "
            f"{question.lead!r} apart by one token; use another model as the judge"
        )
    return spelled[0][:common], firsts


def _shared_length(rows: Sequence[list[int]]) -> int:
    """How many of the tokens that all rows begin with are read once; it leaves one of each row."""
    common = len(os.path.commonprefix([min(rows), max(rows)]))
    common = min(common, min(map(len, rows)) - 1)
    return 0 if common < LEAST_WIDTH else 1 << (common.bit_length() - 1)


@functools.partial(jax.jit, static_argnums=0)
def _word_logits(
    decoder: Transformer,
    params: Params,
    prefix: Any,
    prompts: Any,
    mask: Any,
    leads: Any,
    lengths: Any,
    words: Any,
) -> jax.Array:
    """Logits `[N, Q, K]` float32 of Q questions' words `[Q, K]` behind N prompts `[N, P]`.

    All prompts open with `prefix`, `[P0]`, and each is followed by every lead, `[Q, T]` with T
    above the longest of `lengths`, `[Q]`. The mask is bool, all else int32.
    """
    chex.assert_rank([prefix, prompts, mask, leads, lengths, words], [1, 2, 2, 2, 1, 2])
    chex.assert_equal_shape_prefix([leads, lengths, words], 1)
    count = prompts.shape[0]
    present = jnp.arange(leads.shape[1]) <= lengths[:, None]
    hidden = decoder.states(
        params,
        prompts,
        mask,
        jnp.tile(leads, (count, 1)),
        jnp.tile(present, (count, 1)),
        prefix=prefix,
    )
    last = jnp.tile(lengths, count)[:, None, None]
    chosen = jnp.take_along_axis(hidden, last, axis=1)[:, 0].reshape(count, *lengths.shape, -1)
    weight = output_weight(params)[words].astype(chosen.dtype)
    return jnp.einsum("nqd,qkd->nqk", chosen, weight, preferred_element_type=jnp.float32)
