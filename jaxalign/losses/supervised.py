"""Supervised fine-tuning: the cross-entropy of given tokens."""

import chex
import jax

from jaxalign.losses.logps import token_logps


def cross_entropy(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Negative log-probability of each token, to be reduced over the tokens that are trained.

    ℓ_t = −log softmax(logits_t)[y_t];  loss = aggregate(ℓ, mask)

    The mask leaves out prompts, a tool's answers and padding. `logits[:, t]` predicts
    `tokens[:, t]`: shift before. `jaxalign.models.hidden_token_logps`, negated, is the same from
    hidden states, without holding `[B, T, V]`.

    Source: definition. TRL: `SFTTrainer` with `completion_only_loss` or `assistant_only_loss`.
    tunix: `PeftTrainer`'s default loss. verl: `sft_loss`. All of them: mode="token_mean".

    Args:
      logits: `[B, T, V]`, without NaN at masked positions too: its gradient would stay.
      tokens: int `[B, T]`, each in [0, V), at masked positions too.

    Returns:
      float32 `[B, T]`, unreduced.
    """
    chex.assert_rank([logits, tokens], [3, 2])
    return -token_logps(logits, tokens)
