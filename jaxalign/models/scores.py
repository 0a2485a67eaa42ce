"""Scores of whole sequences: reward models and classifiers."""

import jax
import jax.numpy as jnp

from jaxalign.models.completion import compute_params, last_place, run_block
from jaxalign.models.heads import logits
from jaxalign.models.transformer import Transformer
from jaxalign.records import Params


def sequence_scores(
    model: Transformer, params: Params, tokens: jax.Array, mask: jax.Array
) -> jax.Array:
    """W h of the last token of each row, with W the score head.

    Args:
      model: with a score head (`load_pretrained(…, classifier=True)`).
      params: its parameters.
      tokens: `[B, T]` int32, padded on either side.
      mask: `[B, T]` bool, which tokens exist, at least one in each row. transformers tells them by
        its padding id instead.

    Returns:
      `[B, num_labels]` float32; a reward model has one label.

    Raises:
      ValueError: the model has no score head.
    """
    if not model.config.num_labels:
        raise ValueError("the model has no score head: load it with classifier=True")
    params = compute_params(params, model.dtype, learned=True)
    positions = jnp.maximum(jnp.cumsum(mask, axis=1) - 1, 0)
    hidden, _ = run_block(model, params, tokens, positions, mask)
    chosen = jnp.take_along_axis(hidden, last_place(mask)[:, None, None], axis=1)[:, 0]
    return logits(chosen, params["score"]["kernel"])
