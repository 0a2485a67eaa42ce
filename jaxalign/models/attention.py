"""Attention of a block of new tokens to itself and to shared context blocks.

    out_i = Σ_b Σ_j exp(s_ij − m) v_j / Σ_b Σ_j exp(s_ij − m),    s_ij = q_i·k_j / √d

where b runs over the blocks that row i sees: its own (causally) and every context block. A
context of leading size M serves B/M consecutive rows, so its keys and values exist once: a
few-shot prefix `[1, P0]` for the whole batch, prompts `[N, P]` for N·G samples, a decoding cache
`[B, T]` for B rows. Each block is one batched product of contiguous `[M·K, rows, d]` operands; the
partial sums are merged by their maxima, which is exact, forwards and backwards.
"""

import chex
import jax
import jax.numpy as jnp
from flax import struct

# Finite, so that a row which sees nothing gives zeros and zero gradients instead of NaN.
_MASKED = -1e30


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


def rotary_tables(positions: jax.Array, head_dim: int, theta: float) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of the rotary angles p·θ^(−2i/d), each `[B, T, 1, d/2]` float32.

    Args:
      positions: `[B, T]` int32.
      head_dim: d, even.
      theta: the base θ.
    """
    chex.assert_rank(positions, 2)
    frequencies = theta ** (-jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, rotary: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Turns the pairs (x_i, x_{i+d/2}) of each head by the rotary angles, in float32.

    Args:
      x: `[B, T, heads, d]`.
      rotary: cosine and sine from `rotary_tables`.

    Returns:
      `[B, T, heads, d]` in the dtype of `x`.
    """
    chex.assert_rank(x, 4)
    cos, sin = rotary
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(
        x.dtype
    )


def _partial(
    query: jax.Array, keys: jax.Array, values: jax.Array, allowed: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Unnormalised attention of the queries to one block.

    Args:
      query: `[M, K, R, d]`, already scaled.
      keys: `[M, K, S, d]`.
      values: as keys.
      allowed: bool, broadcastable to `[M, K, R, S]`.

    Returns:
      Σ_j p_j v_j `[M, K, R, d]`, Σ_j p_j and the maximum `[M, K, R]`, all float32; p_j = exp(s_j − max).
    """
    scores = jnp.einsum("mkrd,mksd->mkrs", query, keys, preferred_element_type=jnp.float32)
    scores = jnp.where(allowed, scores, _MASKED)
    top = jax.lax.stop_gradient(scores.max(axis=-1))
    weights = jnp.where(allowed, jnp.exp(scores - top[..., None]), 0.0)
    summed = jnp.einsum(
        "mkrs,mksd->mkrd",
        weights.astype(values.dtype),
        values,
        preferred_element_type=jnp.float32,
    )
    return summed, weights.sum(axis=-1), top


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
      mask: `[B, T]` bool, which of the block's positions exist.
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
    own = scaled.reshape(batch, length, kv_heads, group, head_dim).transpose(0, 2, 3, 1, 4)

    def to_block(x: jax.Array, lead: int) -> jax.Array:
        x = x.reshape(lead, batch // lead, kv_heads, group, length, head_dim)
        return x.transpose(0, 2, 1, 3, 4, 5).reshape(lead, kv_heads, -1, head_dim)

    def from_block(x: jax.Array, lead: int) -> jax.Array:
        x = x.reshape(lead, kv_heads, batch // lead, group, length, *x.shape[3:])
        return jnp.moveaxis(x, 2, 1).reshape(batch, kv_heads, group, length, *x.shape[5:])

    causal = jnp.tril(jnp.ones((length, length), bool))
    allowed = jnp.tile(causal, (group, 1))[None, None] & mask[:, None, None, :]
    blocks = [(batch, keys, values, allowed)]
    for context in contexts:
        lead = context.keys.shape[0]
        if batch % lead:
            raise ValueError(f"a context of {lead} rows can't serve a batch of {batch} rows")
        blocks.append((lead, context.keys, context.values, context.mask[:, None, None, :]))

    parts = []
    for lead, block_keys, block_values, block_allowed in blocks:
        part = _partial(to_block(own, lead), block_keys, block_values, block_allowed)
        parts.append([from_block(x, lead) for x in part])
    top = parts[0][2]
    for part in parts[1:]:
        top = jnp.maximum(top, part[2])
    scales = [jnp.exp(part[2] - top) for part in parts]
    summed = sum(part[0] * scale[..., None] for part, scale in zip(parts, scales, strict=True))
    total = sum(part[1] * scale for part, scale in zip(parts, scales, strict=True))
    out = summed / jnp.maximum(total, 1e-30)[..., None]
    return out.astype(query.dtype).transpose(0, 3, 1, 2, 4).reshape(batch, length, heads, head_dim)
