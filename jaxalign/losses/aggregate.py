"""The one place where per-token values become a scalar."""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

Mode = Literal["token_mean", "sequence_mean", "sequence_sum", "constant"]


def aggregate(
    values: jax.Array,
    mask: jax.Array,
    *,
    mode: Mode = "token_mean",
    normalizer: jax.Array | float | None = None,
) -> jax.Array:
    """Sum the masked values and divide by one denominator.

    With s_i = Σ_t mask_it·values_it and n_i = Σ_t mask_it, over rows i:

    "token_mean"     Σ_i s_i / Σ_i n_i             every token weighs the same
    "sequence_mean"  Σ_i (s_i/n_i) / #{n_i > 0}    every completion weighs the same
    "sequence_sum"   Σ_i s_i / #{n_i > 0}          mean over completions of their sums
    "constant"       Σ_i s_i / normalizer          a token's weight does not depend on the batch

    Rows without a trained token are not counted, so that rows added as padding change nothing.

    `normalizer` replaces the denominator in any mode. Divided by the denominator of the *global*
    batch, the results (and gradients) of micro-batches add up to the whole's::

        whole = denominator(mask, mode=mode)
        loss = sum(aggregate(v, m, mode=mode, normalizer=whole) for v, m in micro_batches)

    A denominator of 0, as when all is masked, counts as 1: the result is 0 and so is the gradient.

    Source: token_mean: DAPO (arXiv 2503.14476), equation 8; sequence_mean: GRPO (arXiv 2402.03300),
    equation 3; constant: Dr.GRPO (arXiv 2503.20783). Not counting empty rows agrees
    with tunix and verl.
    TRL `loss_type`: "dapo" is token_mean; "grpo", "luspo" are sequence_mean, sequence_sum with
    normalizer=B (it counts empty rows); "dr_grpo" is constant with B·max_completion_length.
    tunix: "token-mean", "sequence-mean-token-mean" (default), "seq-mean-token-sum";
    "sequence-mean-token-scale" is constant with T·(rows with a token).
    verl: "token-mean" (default), "seq-mean-token-mean", "seq-mean-token-sum";
    "seq-mean-token-sum-norm" is constant with loss_scale_factor.

    Args:
      values: `[B, T]`, any real or bool dtype. Masked positions may hold anything, NaN included;
        but what made the NaN has a NaN gradient, unless it was given the mask as well.
      mask: bool or 0/1 `[B, T]`, the trained tokens.
      mode: see above.
      normalizer: scalar denominator in place of the mode's own; required for "constant".

    Returns:
      float32 scalar.

    Raises:
      ValueError: an unknown mode, or "constant" without a normalizer.
    """
    chex.assert_rank([values, mask], 2)
    chex.assert_equal_shape([values, mask])
    _check_mode(mode)
    if normalizer is None:
        normalizer = denominator(mask, mode=mode)
    mask = jnp.asarray(mask, bool)
    sums = jnp.sum(jnp.where(mask, jnp.asarray(values, jnp.float32), 0.0), axis=-1)
    if mode == "sequence_mean":
        sums = sums / jnp.maximum(jnp.sum(mask, axis=-1), 1)
    normalizer = jax.lax.stop_gradient(jnp.asarray(normalizer, jnp.float32))
    chex.assert_rank(normalizer, 0)
    return jnp.sum(sums) / jnp.where(normalizer == 0, 1.0, normalizer)


def denominator(mask: jax.Array, *, mode: Mode = "token_mean") -> jax.Array:
    """The number that `aggregate` divides by: trained tokens, or rows that have one.

    "token_mean": Σ_it mask_it.  "sequence_mean", "sequence_sum": #{i: Σ_t mask_it > 0}.

    Compute it over the global batch, or add up those of the micro-batches, which is the same.

    Source: ours; see `aggregate` for the libraries' choices.
    TRL: `num_items_in_batch` for token_mean. tunix, verl: computed inside their aggregation.

    Args:
      mask: bool or 0/1 `[B, T]`, the trained tokens.
      mode: as given to `aggregate`.

    Returns:
      float32 scalar, 0 when all is masked.

    Raises:
      ValueError: an unknown mode, or "constant", whose denominator the caller chooses.
    """
    chex.assert_rank(mask, 2)
    _check_mode(mode)
    if mode == "constant":
        raise ValueError("mode='constant' has no denominator of its own: pass normalizer")
    mask = jnp.asarray(mask, bool)
    counted = mask if mode == "token_mean" else jnp.any(mask, axis=-1)
    return jnp.sum(counted).astype(jnp.float32)


def _check_mode(mode: str) -> None:
    modes = ("token_mean", "sequence_mean", "sequence_sum", "constant")
    if mode not in modes:
        raise ValueError(f"mode must be one of {modes}, got {mode!r}")
