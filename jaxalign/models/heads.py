"""From hidden states to log-probabilities, without ever holding `[B, T, V]`.

    log π(y_t) = z_t[y_t] − log Σ_v exp z_t[v],    z_t = W h_t / temperature

The rows are taken in chunks; the backward pass recomputes a chunk's logits and uses
∂/∂z = g·(onehot(y) − softmax(z)), so that no more than `[chunk, V]` exists at any time.
"""

import functools

import chex
import jax
import jax.numpy as jnp

# Rows of logits held at once: 1024 x 49152 float32 is 200 MB.
CHUNK = 1024


def logits(hidden: jax.Array, weight: jax.Array) -> jax.Array:
    """Logits W h, `[..., V]` float32, of `[..., D]` and `[V, D]`, in `hidden`'s dtype."""
    return jax.lax.dot_general(
        hidden,
        weight.astype(hidden.dtype),
        (((hidden.ndim - 1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )


def hidden_token_logps(
    hidden: jax.Array,
    weight: jax.Array,
    tokens: jax.Array,
    *,
    temperature: float = 1.0,
    chunk: int = CHUNK,
) -> jax.Array:
    """Log-probabilities of tokens under softmax(W h / temperature), chunked over tokens.

    Args:
      hidden: `[B, T, D]` states that predict `tokens`.
      weight: `[V, D]` output projection.
      tokens: `[B, T]` int32.
      temperature: positive; the one that sampled, so that ratios start at one.
      chunk: rows of logits held at once, forwards and backwards.

    Returns:
      `[B, T]` float32, differentiable in `hidden` and `weight`.
    """
    chex.assert_rank([hidden, weight, tokens], [3, 2, 2])
    chex.assert_equal_shape_prefix([hidden, tokens], 2)
    batch, length, width = hidden.shape
    rows = batch * length
    chunk = min(chunk, rows)
    padding = -rows % chunk
    flat = jnp.pad(hidden.reshape(rows, width), ((0, padding), (0, 0)))
    flat_tokens = jnp.pad(tokens.reshape(rows), (0, padding))
    logps = _chunked_logps(
        flat.reshape(-1, chunk, width),
        weight.astype(hidden.dtype),
        flat_tokens.reshape(-1, chunk),
        1.0 / temperature,
    )
    return logps.reshape(-1)[:rows].reshape(batch, length)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _chunked_logps(
    hidden: jax.Array, weight: jax.Array, tokens: jax.Array, scale: float
) -> jax.Array:
    return _forward(hidden, weight, tokens, scale)[0]


def _forward(hidden: jax.Array, weight: jax.Array, tokens: jax.Array, scale: float):
    def one(chunk: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        chunk_hidden, chunk_tokens = chunk
        z = logits(chunk_hidden, weight) * scale
        total = jax.nn.logsumexp(z, axis=-1)
        return jnp.take_along_axis(z, chunk_tokens[:, None], axis=-1)[:, 0] - total, total

    logps, totals = jax.lax.map(one, (hidden, tokens))
    return logps, (hidden, weight, tokens, totals)


def _backward(scale: float, saved: tuple[jax.Array, ...], cotangent: jax.Array):
    hidden, weight, tokens, totals = saved

    def one(grad_weight: jax.Array, chunk: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        chunk_hidden, chunk_tokens, chunk_totals, chunk_cotangent = chunk
        z = logits(chunk_hidden, weight) * scale
        onehot = chunk_tokens[:, None] == jnp.arange(weight.shape[0])
        grad_z = (onehot - jnp.exp(z - chunk_totals[:, None])) * (chunk_cotangent * scale)[:, None]
        grad_z = grad_z.astype(hidden.dtype)
        grad_hidden = grad_z @ weight
        grad_weight += jnp.einsum(
            "cv,cd->vd", grad_z, chunk_hidden, preferred_element_type=jnp.float32
        )
        return grad_weight, grad_hidden

    grad_weight, grad_hidden = jax.lax.scan(
        one,
        jnp.zeros(weight.shape, jnp.float32),
        (hidden, tokens, totals, cotangent),
    )
    return grad_hidden, grad_weight.astype(weight.dtype), None


_chunked_logps.defvjp(_forward, _backward)
