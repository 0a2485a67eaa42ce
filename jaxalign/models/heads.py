"""From hidden states to log-probabilities, without all of `[B, T, V]` at once.

    log π(y_t) = z_t[y_t] − log Σ_v exp z_t[v],    z_t = W h_t / temperature

The vocabulary is taken in tiles, the log-sum-exp is carried from one to the next; the backward pass
recomputes a tile's logits and uses ∂/∂z = g·(onehot(y) − softmax(z)). So no more than `[B·T, tile]`
exists at any time, W is read and its gradient written once, and a batch that is split over devices
stays where it is.
"""

import functools

import chex
import jax
import jax.numpy as jnp

# Logits held at once, over all rows: 128 MB of float32.
_LOGITS = 2**25


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
    tile: int | None = None,
) -> jax.Array:
    """Log-probabilities of tokens under softmax(W h / temperature), a tile of V at a time.

    Args:
      hidden: `[B, T, D]` states that predict `tokens`.
      weight: `[V, D]` output projection.
      tokens: `[B, T]` int32, each in [0, V), at masked positions too.
      temperature: above 0, static; the one that sampled, so that ratios start at one.
      tile: words of the vocabulary whose logits are held at once, forwards and backwards, for all
        B·T rows. None: as many as 128 MB hold.

    Returns:
      `[B, T]` float32, differentiable (in reverse mode) in `hidden` and `weight`.

    Raises:
      ValueError: a temperature of 0 or less, or a tile below 1.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if tile is not None and tile < 1:
        raise ValueError(f"tile must be at least 1, got {tile}")
    chex.assert_rank([hidden, weight, tokens], [3, 2, 2])
    chex.assert_equal_shape_prefix([hidden, tokens], 2)
    batch, length, width = hidden.shape
    rows, vocab = batch * length, weight.shape[0]
    if tile is None:
        tiles = max(1, -(-vocab * rows // _LOGITS))
        tile = -(-vocab // (tiles * 128)) * 128  # a multiple of 128, for the sake of the product
    logps = _tiled_logps(
        hidden.reshape(rows, width),
        weight.astype(hidden.dtype),
        tokens.reshape(rows),
        1.0 / temperature,
        min(tile, vocab),
    )
    return logps.reshape(batch, length)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _tiled_logps(
    hidden: jax.Array, weight: jax.Array, tokens: jax.Array, scale: float, tile: int
) -> jax.Array:
    return _forward(hidden, weight, tokens, scale, tile)[0]


def _tiles(vocab: int, tile: int) -> tuple[jax.Array, jax.Array]:
    """Each tile's first word, and its first new one: the last tile overlaps if it would jut out."""
    new = jnp.arange(0, vocab, tile)
    return jnp.minimum(new, vocab - tile), new


def _forward(hidden: jax.Array, weight: jax.Array, tokens: jax.Array, scale: float, tile: int):
    def one(carry: tuple[jax.Array, ...], bounds: tuple[jax.Array, jax.Array]):
        largest, total, chosen = carry
        start, new = bounds
        z = logits(hidden, jax.lax.dynamic_slice_in_dim(weight, start, tile)) * scale
        here = (tokens >= new) & (tokens < start + tile)
        place = jnp.clip(tokens - start, 0, tile - 1)
        chosen = jnp.where(here, jnp.take_along_axis(z, place[:, None], axis=1)[:, 0], chosen)
        z = jnp.where(start + jnp.arange(tile) >= new, z, -jnp.inf)
        larger = jnp.maximum(largest, jnp.max(z, axis=1))
        total = total * jnp.exp(largest - larger) + jnp.sum(jnp.exp(z - larger[:, None]), axis=1)
        return (larger, total, chosen), None

    zero = jnp.zeros(tokens.shape, jnp.float32)
    begin = (zero - jnp.inf, zero, zero)
    (largest, total, chosen), _ = jax.lax.scan(one, begin, _tiles(weight.shape[0], tile))
    normalizer = largest + jnp.log(total)
    return chosen - normalizer, (hidden, weight, tokens, normalizer)


def _backward(scale: float, tile: int, saved: tuple[jax.Array, ...], cotangent: jax.Array):
    hidden, weight, tokens, normalizer = saved

    def one(carry: tuple[jax.Array, jax.Array], bounds: tuple[jax.Array, jax.Array]):
        grad_hidden, grad_weight = carry
        start, new = bounds
        words = start + jnp.arange(tile)
        part = jax.lax.dynamic_slice_in_dim(weight, start, tile)
        probabilities = jnp.exp(logits(hidden, part) * scale - normalizer[:, None])
        grad_z = ((tokens[:, None] == words) - probabilities) * (cotangent * scale)[:, None]
        grad_z = grad_z.astype(hidden.dtype)
        grad_part = jnp.einsum("rv,rd->vd", grad_z, hidden, preferred_element_type=jnp.float32)
        grad_weight = jax.lax.dynamic_update_slice_in_dim(
            grad_weight, grad_part.astype(weight.dtype), start, 0
        )
        part = jnp.where((words >= new)[:, None], part, 0)  # a word counts once
        grad_hidden += jnp.einsum("rv,vd->rd", grad_z, part, preferred_element_type=jnp.float32)
        return (grad_hidden, grad_weight), None

    begin = jnp.zeros(hidden.shape, jnp.float32), jnp.zeros_like(weight)
    (grad_hidden, grad_weight), _ = jax.lax.scan(one, begin, _tiles(weight.shape[0], tile))
    return grad_hidden.astype(hidden.dtype), grad_weight, None


_tiled_logps.defvjp(_forward, _backward)
