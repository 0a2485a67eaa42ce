"""Attention in one kernel of cuDNN, for blocks of many tokens on NVIDIA GPUs.

The same sums as `jaxalign.models.attention.attend`, without scores in memory, only which of them
count: B·T·S numbers for all heads. The kernel knows no shared contexts: keys and values of each are
written out for the rows that see it, B·S·K·d numbers a layer; prompts are still run once for all
their samples, and that is where the work is. One token at a time, as in decoding, stays with
`attend`: here it would copy the cache.
"""

from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxalign.models.attention import KeyValues, same_document
from jaxalign.models.config import ModelConfig

AttentionPath = Literal["blocks", "cudnn"]
Kernel = Literal["cudnn", "xla"]

_OLDEST = 8.0  # compute capability
_WIDEST_HEAD = 128  # 256 from Hopper on; no model here has such heads


def attention_path(config: ModelConfig, dtype: Any, mesh: Mesh | None = None) -> AttentionPath:
    """How a model should attend: "cudnn" where one device has the kernel for its heads and dtype.

    That is an NVIDIA GPU of the Ampere generation or later. On a mesh it is "blocks": the kernel
    wants heads of queries and keys in equal parts, and has not been tried so.
    """
    device = jax.devices()[0]
    fits = (
        mesh is None
        and device.platform == "gpu"
        and "cuda" in device.client.platform_version
        and float(device.compute_capability) >= _OLDEST
        and jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
        and config.head_dim % 8 == 0
        and config.head_dim <= _WIDEST_HEAD
    )
    return "cudnn" if fits else "blocks"


def attend_fused(
    query: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    contexts: tuple[KeyValues, ...] = (),
    *,
    kernel: Kernel = "cudnn",
) -> jax.Array:
    """`attend` by `jax.nn.dot_product_attention`: same arguments, same numbers up to rounding.

    The `kernel` "xla" runs anywhere, for tests.

    Raises:
      ValueError: a context whose M does not divide B.
    """
    chex.assert_rank([query, keys, values, mask], [4, 4, 4, 2])
    batch, length = mask.shape
    own = jnp.tril(jnp.ones((length, length), bool)) & (mask != 0)[:, None]
    if mask.dtype != bool:
        own &= same_document(mask)
    blocks = [*((c.keys, c.values) for c in contexts), (keys, values)]

    def spread(x: jax.Array) -> jax.Array:
        """A block's entry for each of the rows that see it."""
        if batch % x.shape[0]:
            raise ValueError(f"a context of {x.shape[0]} rows can't serve a batch of {batch} rows")
        return jnp.repeat(x, batch // x.shape[0], axis=0)

    seen = [
        jnp.broadcast_to(spread(c.mask)[:, None], (batch, length, c.mask.shape[1]))
        for c in contexts
    ]
    allowed = jnp.concatenate([*seen, own], axis=2)
    all_keys, all_values = (
        jnp.concatenate([spread(block[i]) for block in blocks], axis=2).transpose(0, 2, 1, 3)
        for i in (0, 1)
    )
    # With a mask the kernel's backward pass takes even lengths only.
    odd_length, odd_seen = length % 2, allowed.shape[2] % 2
    out = jax.nn.dot_product_attention(
        _pad(query, 1, odd_length),
        _pad(all_keys, 1, odd_seen),
        _pad(all_values, 1, odd_seen),
        mask=_pad(_pad(allowed, 1, odd_length), 2, odd_seen)[:, None],
        implementation=kernel,
    )[:, :length]
    return jnp.where(allowed.any(axis=2)[:, :, None, None], out, 0)


def _pad(x: jax.Array, axis: int, count: int) -> jax.Array:
    """`count` more places at the end of an axis, zero or False."""
    return jnp.pad(x, [(0, count if i == axis else 0) for i in range(x.ndim)])
