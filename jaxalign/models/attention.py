"""Attention of a block of new tokens to itself and to shared context blocks.

    out_i = Σ_b Σ_j exp(s_ij − m) v_j / Σ_b Σ_j exp(s_ij − m),    s_ij = q_i·k_j / √d

where b runs over the blocks that row i sees: its own (causally) and every context block. A
context of leading size M serves B/M consecutive rows, so its keys and values exist once: a
few-shot prefix `[1, P0]` for the whole batch, prompts `[N, P]` for N·G samples, a decoding cache
`[B, T]` for B rows. Each block is one batched product of contiguous `[M·K, rows, d]` operands.

The backward pass keeps the output and log Σ exp s of each row and recomputes the probabilities
p_ij = exp(s_ij − lse_i), as FlashAttention does (arXiv 2205.14135): scores are memory traffic, and
keeping them for every layer costs more than computing them again.

    ∂s_ij = p_ij (∂o_i·v_j − ∂o_i·o_i)
    ∂v_j = Σ_i p_ij ∂o_i,   ∂q_i = Σ_j ∂s_ij k_j,   ∂k_j = Σ_i ∂s_ij q_i
"""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax.ad_checkpoint import checkpoint_name

from jaxalign.models.products import SAVED, transposed

# Finite, so that a row which sees nothing gives zeros and zero gradients instead of NaN.
_MASKED = -1e30

OPENED = 2**16
"""Documents above this number are opened by another one: see `attend`."""


@struct.dataclass
class KeyValues:
    """Rotated keys and values of one block, for every layer.

    Attributes:
      keys: `[L, M, K, S, d]` (inside one layer `[M, K, S, d]`), compute dtype.
      values: as keys.
      mask: `[M, S]` bool, which positions exist.
    """

    keys: jax.Array
    values: jax.Array
    mask: jax.Array


def attend(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    contexts: tuple[KeyValues, ...] = (),
) -> jax.Array:
    """Grouped-query attention of a block to itself, causally, and to shared contexts.

    Args:
      query: `[B, T, H, d]`, rotated.
      keys: `[B, K, T, d]`, rotated; K divides H.
      values: as keys.
      mask: `[B, T]` bool, which of the block's positions exist; or int32, the document that each
        belongs to, counted from 1, 0 for none: a position sees its own document alone, and in
        number k·`OPENED` + d also document d, which opens it.
      contexts: blocks of this layer with leading size M dividing B, `[M, K, S, d]`; row b sees
        entry b // (B/M).

    Returns:
      `[B, T, H, d]` in the dtype of `query`; rows that see nothing are zero.
    """
    chex.assert_rank([query, keys, values, mask], [4, 4, 4, 2])
    batch, length, heads, head_dim = query.shape
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    scaled = query * head_dim**-0.5
    # Rows of one batch entry run over (query head of the group, position).
    rows = scaled.reshape(batch, length, kv_heads, group, head_dim).transpose(0, 2, 3, 1, 4)
    for context in contexts:
        lead = context.keys.shape[0]
        if batch % lead:
            raise ValueError(f"a context of {lead} rows can't serve a batch of {batch} rows")
    out = _attend(
        rows,
        ((keys, values), *((context.keys, context.values) for context in contexts)),
        (mask, *(context.mask for context in contexts)),
    )
    return out.transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, head_dim)


Blocks = tuple[tuple[jax.Array, jax.Array], ...]
Masks = tuple[jax.Array, ...]


@jax.custom_vjp
def _attend(rows: jax.Array, blocks: Blocks, masks: Masks) -> jax.Array:
    """Attention of `[B, K, H/K, T, d]` scaled queries; the first block is their own, causal."""
    return _forward(rows, blocks, masks)[0]


def _forward(rows: jax.Array, blocks: Blocks, masks: Masks) -> tuple[jax.Array, Any]:
    scores = [_scores(rows, keys, _allowed(rows, masks, i)) for i, (keys, _) in enumerate(blocks)]
    tops = [_rows_of(score.max(axis=-1), rows.shape) for score in scores]
    top = functools.reduce(jnp.maximum, tops)
    summed: Any = 0.0
    total: Any = 0.0
    for i, (score, (_, values)) in enumerate(zip(scores, blocks, strict=True)):
        weights = _exponentials(score, top, _allowed(rows, masks, i))
        part = _product("mkrs,mksd->mkrd", weights.astype(values.dtype), values)
        summed += _rows_of(part, rows.shape)
        total += _rows_of(weights.sum(axis=-1), rows.shape)
    total = jnp.maximum(total, 1e-30)
    out = checkpoint_name((summed / total[..., None]).astype(rows.dtype), SAVED)
    lse = checkpoint_name(top + jnp.log(total), SAVED)
    return out, (rows, blocks, masks, out, lse)


def _backward(saved: Any, cotangent: jax.Array) -> tuple[jax.Array, Blocks, None]:
    rows, blocks, masks, out, lse = saved
    delta = jnp.sum(cotangent.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    grad_rows: Any = 0.0
    grad_blocks = []
    for i, (keys, values) in enumerate(blocks):
        lead = keys.shape[0]
        # Keys by rows: both products that sum over rows then have them last on the left.
        allowed = jnp.swapaxes(_allowed(rows, masks, i), 2, 3)
        inner, outer = _block_of(rows, lead), _block_of(cotangent, lead)
        scores = jnp.where(allowed, _product("mksd,mkrd->mksr", keys, inner), _MASKED)
        shift = _block_of(lse, lead)[:, :, None]
        weights = jnp.where(allowed, jnp.exp(scores - shift), 0.0)
        grad_weights = _product("mksd,mkrd->mksr", values, outer)
        grad_scores = weights * (grad_weights - _block_of(delta, lead)[:, :, None])
        grad_scores = grad_scores.astype(rows.dtype)
        of_rows = _product("mkrs,mksd->mkrd", transposed(grad_scores), keys)
        grad_rows += _rows_of(of_rows, rows.shape)
        of_keys = _product("mksr,mkrd->mksd", grad_scores, inner)
        of_values = _product("mksr,mkrd->mksd", weights.astype(outer.dtype), outer)
        grad_blocks.append((of_keys.astype(keys.dtype), of_values.astype(values.dtype)))
    return grad_rows.astype(rows.dtype), tuple(grad_blocks), None


_attend.defvjp(_forward, _backward)


def _product(equation: str, left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum(equation, left, right, preferred_element_type=jnp.float32)


def _scores(rows: jax.Array, keys: jax.Array, allowed: jax.Array) -> jax.Array:
    """`[M, K, B/M·H/K·T, S]` float32."""
    scores = _product("mkrd,mksd->mkrs", _block_of(rows, keys.shape[0]), keys)
    return jnp.where(allowed, scores, _MASKED)


def _exponentials(scores: jax.Array, shift: jax.Array, allowed: jax.Array) -> jax.Array:
    shift = _block_of(shift, scores.shape[0])[..., None]
    return jnp.where(allowed, jnp.exp(scores - shift), 0.0)


def _allowed(rows: jax.Array, masks: Masks, index: int) -> jax.Array:
    """Which scores of a block count; the first block is the queries' own and causal."""
    mask = masks[index]
    allowed = (mask != 0)[:, None, None, :]
    if index == 0:
        group, length = rows.shape[2], rows.shape[3]
        allowed = allowed & jnp.tile(jnp.tril(jnp.ones((length, length), bool)), (group, 1))
        if mask.dtype != bool:
            allowed = allowed & jnp.tile(same_document(mask), (1, group, 1))[:, None]
    return allowed


def same_document(documents: jax.Array) -> jax.Array:
    """`[B, T]` int32 to `[B, T, T]` bool: whether one position may see another, order aside."""
    seer, seen = documents[:, :, None], documents[:, None, :]
    return (seen == seer) | (seen == seer % OPENED)


def _block_of(x: jax.Array, lead: int) -> jax.Array:
    """`[B, K, H/K, T, ...]` to `[M, K, B/M·H/K·T, ...]`: rows that share a context, together."""
    batch, kv_heads = x.shape[:2]
    x = x.reshape(lead, batch // lead, *x.shape[1:])
    return jnp.moveaxis(x, 2, 1).reshape(lead, kv_heads, -1, *x.shape[5:])


def _rows_of(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The inverse of `_block_of`; `shape` is that of the queries."""
    lead = x.shape[0]
    batch, kv_heads, group, length = shape[:4]
    x = x.reshape(lead, kv_heads, batch // lead, group, length, *x.shape[3:])
    return jnp.moveaxis(x, 2, 1).reshape(batch, kv_heads, group, length, *x.shape[5:])
