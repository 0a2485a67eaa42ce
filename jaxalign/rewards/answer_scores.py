"""The score of an answer that R_h normalises (`jaxalign.rewards.helpfulness_reward`), in the step.

`Likelihood` is offline and ours, `RewardModel` the paper's. Both see the bare request and what
stands inside the answer's tags, as the tokens that were sampled, and both are pytrees, so that
their parameters are arguments of the compiled step.
`jaxalign.methods.alphaalign.scorers` says which one a run has, and scores on the host.
"""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from jaxalign.models.completion import compute_params
from jaxalign.models.heads import logits
from jaxalign.models.transformer import Transformer
from jaxalign.records import Params


@struct.dataclass
class PromptFacts:
    """What helpfulness and functions on the host know of N prompts (`Batch.facts`).

    Attributes:
      index: `[N]` int32, which of the run's prompts each is.
      questions: `[N', Q]` int32, the bare questions of the last N' prompts as chats: those that are
        not harmful and hence get a helpfulness score; N' may be 0, and Q where the host scores.
      question_mask: `[N', Q]` bool.
    """

    index: jax.Array
    questions: jax.Array
    question_mask: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Likelihood:
    """How likely an answer is under a frozen model, and how much its question does for that. Ours.

        r = mean_t l_t(q) + w mean_t n_t (l_t(q) − l_t(q')),   l_t(q) = log π(y_t | q, y_<t)

    q is the answer's own bare question and q' that of the next prompt of the batch, the first one's
    for the last. n_t is 0 for a token that stands in q, else 1: an answer earns by what its
    question makes likelier, not by repeating it. Filler is as likely after any question, so by the
    first mean alone it does well.

    Attributes:
      params: frozen, in the compute dtype (`Likelihood.of`).
      model: the decoder.
      relevance: w; at 0 the second pass is left out.
    """

    params: Params
    model: Any = dataclasses.field(metadata={"static": True})
    relevance: float = dataclasses.field(default=0.0, metadata={"static": True})

    @classmethod
    def of(cls, model: Transformer, params: Params, relevance: float = 0.0) -> "Likelihood":
        """Casts the parameters to the model's compute dtype once."""
        return cls(compute_params(params, model.dtype), model, relevance)

    def __call__(
        self, questions: jax.Array, question_mask: jax.Array, tokens: jax.Array, answer: jax.Array
    ) -> jax.Array:
        """Scores answers.

        Args:
          questions: `[N, Q]` int32.
          question_mask: `[N, Q]` bool.
          tokens: `[B, T]` int32 completions.
          answer: `[B, T]` bool, the tokens of the answer.

        Returns:
          `[B]` float32 nats per token; an empty answer scores −log V, as a uniform guess does. A
          batch of one question has no other, so no second mean.
        """
        chex.assert_equal_shape([tokens, answer])
        moved, mask = _answer_first(tokens, answer)
        count = mask.sum(axis=1)
        mean_of = lambda x: jnp.where(mask, x, 0.0).sum(axis=1) / jnp.maximum(count, 1)  # noqa: E731
        logps = self.model.logps(self.params, questions, question_mask, moved, mask)
        mean = mean_of(logps)
        if self.relevance:
            others = jnp.roll(questions, -1, axis=0), jnp.roll(question_mask, -1, axis=0)
            gains = logps - self.model.logps(self.params, *others, moved, mask)
            group = len(tokens) // len(questions)
            asked = jnp.repeat(jnp.where(question_mask, questions, -1), group, axis=0)
            new = jnp.all(moved[:, :, None] != asked[:, None, :], axis=2)
            mean += self.relevance * mean_of(gains * new)
        words = self.model.output_weight(self.params).shape[0]
        return jnp.where(count > 0, mean, -jnp.log(float(words)))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class RewardModel:
    """A reward model's score of the chat (question, answer), each question computed once.

        r = W h of the last token of [question … assistant's opening][answer][closing]

    Attributes:
      params: frozen, with a score head.
      model: a decoder that gives states, with a score head of one label.
      closing: ids that end the assistant's turn; may be none.
    """

    params: Params
    model: Any = dataclasses.field(metadata={"static": True})
    closing: tuple[int, ...] = dataclasses.field(default=(), metadata={"static": True})

    def __call__(
        self, questions: jax.Array, question_mask: jax.Array, tokens: jax.Array, answer: jax.Array
    ) -> jax.Array:
        """Scores answers, `[B]` float32, from the arguments of a `Likelihood`.

        The questions are chats up to where the answer begins, in this model's form, and the
        completions are of its vocabulary.
        """
        chex.assert_equal_shape([tokens, answer])
        moved, mask = _answer_first(tokens, answer)
        count = mask.sum(axis=1, keepdims=True)
        # One place more than the longest row: the state behind a row's last token is asked for.
        place = jnp.arange(tokens.shape[1] + len(self.closing) + 1)
        ids = jnp.pad(moved, ((0, 0), (0, len(self.closing) + 1)))
        for index, token in enumerate(self.closing):
            ids = jnp.where(place == count + index, token, ids)
        last = count + len(self.closing)
        states = self.model.states(self.params, questions, question_mask, ids, place <= last)
        hidden = jnp.take_along_axis(states, last[:, :, None], axis=1)[:, 0]
        return logits(hidden, self.params["score"]["kernel"].astype(hidden.dtype))[:, 0]


def _answer_first(tokens: jax.Array, answer: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The answer's tokens moved to the left of `[B, T]`, zeros behind them, and where they are."""
    order = jnp.argsort(~answer, axis=1, stable=True)
    mask = jnp.take_along_axis(answer, order, axis=1)
    return jnp.where(mask, jnp.take_along_axis(tokens, order, axis=1), 0), mask
