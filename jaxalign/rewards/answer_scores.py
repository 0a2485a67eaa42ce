"""The score of an answer that R_h normalises (`jaxalign.rewards.helpfulness_reward`), in the step.

    likelihood      mean log-likelihood per token under the frozen start model; offline, ours
    reward model    its score of the chat (bare question, answer); the paper's

Both see the bare request and what stands inside the answer's tags, as the tokens that were sampled.
`jaxalign.methods.alphaalign.scorers` says which one a run has, and scores on the host.
"""

from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp

from jaxalign.models.completion import completion_logps, completion_states, compute_params
from jaxalign.models.heads import logits
from jaxalign.models.transformer import Params, Transformer

ScoreTokens = Callable[[Params, jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]
"""`(params, questions [N, Q], question_mask, completions [B, T], answer [B, T] bool) -> [B]`."""


def _answer_first(tokens: jax.Array, answer: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The answer's tokens moved to the left of `[B, T]`, zeros behind them, and where they are."""
    order = jnp.argsort(~answer, axis=1, stable=True)
    mask = jnp.take_along_axis(answer, order, axis=1)
    return jnp.where(mask, jnp.take_along_axis(tokens, order, axis=1), 0), mask


def answer_likelihood(
    model: Transformer,
    params: Params,
    questions: jax.Array,
    question_mask: jax.Array,
    tokens: jax.Array,
    answer: jax.Array,
) -> jax.Array:
    """Mean log π(answer token | bare question, answer so far) under a frozen model. Ours.

    Args:
      model: the decoder.
      params: frozen parameters.
      questions: `[N, Q]` int32.
      question_mask: `[N, Q]` bool.
      tokens: `[B, T]` int32 completions.
      answer: `[B, T]` bool, the tokens of the answer.

    Returns:
      `[B]` float32 nats per token; an empty answer scores −log V, as a uniform guess does.
    """
    chex.assert_equal_shape([tokens, answer])
    moved, mask = _answer_first(tokens, answer)
    logps = completion_logps(model, params, questions, question_mask, moved, mask)
    count = mask.sum(axis=1)
    mean = jnp.where(mask, logps, 0.0).sum(axis=1) / jnp.maximum(count, 1)
    return jnp.where(count > 0, mean, -jnp.log(float(model.config.vocab_size)))


def reward_model_scores(
    model: Transformer,
    closing: Sequence[int],
    params: Params,
    questions: jax.Array,
    question_mask: jax.Array,
    tokens: jax.Array,
    answer: jax.Array,
) -> jax.Array:
    """Scores of the chats (question, answer) by a reward model, each question computed once.

        r = W h of the last token of [question … assistant's opening][answer][closing]

    Args:
      model: with a score head of one label.
      closing: ids that end the assistant's turn; may be none.
      params: its parameters.
      questions: `[N, Q]` int32, chats up to where the answer begins, in the reward model's form.
      question_mask: `[N, Q]` bool.
      tokens: `[B, T]` int32 completions, B = N·G, of the reward model's vocabulary.
      answer: `[B, T]` bool, the tokens of the answer.

    Returns:
      `[B]` float32.
    """
    chex.assert_rank([questions, tokens], 2)
    chex.assert_equal_shape([questions, question_mask])
    chex.assert_equal_shape([tokens, answer])
    moved, mask = _answer_first(tokens, answer)
    count = mask.sum(axis=1, keepdims=True)
    # One place more than the longest row: the state behind a row's last token is asked for.
    place = jnp.arange(tokens.shape[1] + len(closing) + 1)
    ids = jnp.pad(moved, ((0, 0), (0, len(closing) + 1)))
    for index, token in enumerate(closing):
        ids = jnp.where(place == count + index, token, ids)
    last = count + len(closing)
    states = completion_states(
        model,
        compute_params(params, model.dtype),
        questions,
        question_mask,
        ids,
        place <= last,
    )
    hidden = jnp.take_along_axis(states, last[:, :, None], axis=1)[:, 0]
    return logits(hidden, params["score"]["kernel"].astype(model.dtype))[:, 0]
