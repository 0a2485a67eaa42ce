"""From hidden states to log-probabilities, without all of `[B, T, V]` at once.

    log π(y_t) = z_t[y_t] − log Σ_v exp z_t[v],    z_t = W h_t / temperature

The vocabulary is taken in tiles, the log-sum-exp is carried from one to the next; the backward pass
recomputes a tile's logits and uses ∂/∂z = g·(onehot(y) − softmax(z)). So no more than `[B·T, tile]`
exists at any time, W is read and its gradient written once, and a batch that is split over devices
stays where it is.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxalign.losses import token_entropies
from jaxalign.models.products import transposed
from jaxalign.models.sharding import split_of
from jaxalign.records import Params

# Logits that a device holds at once, over all its rows: 128 MB of float32.
_LOGITS = 2**25


def logits(hidden: jax.Array, weight: jax.Array) -> jax.Array:
    """Logits W h, `[..., V]` float32, of `[..., D]` and `[V, D]`, in `hidden`'s dtype."""
    return jax.lax.dot_general(
        hidden,
        weight.astype(hidden.dtype),
        (((hidden.ndim - 1,), (1,)), ((), ())),
        preferred_element_type=jnp.float32,
    )


def output_weight(params: Params) -> jax.Array:
    """The output projection `[V, D]`: `lm_head` where there is one, else the tied embedding.

    Raises:
      ValueError: the model gives scores and no tokens.
    """
    params = params.get("base", params)
    if "score" in params:
        raise ValueError("a model with a score head has no output projection")
    if "lm_head" in params:
        return params["lm_head"]["kernel"]
    return params["embed"]["embedding"]


def hidden_entropies(
    hidden: jax.Array, weight: jax.Array, *, temperature: float = 1.0, rows: int | None = None
) -> jax.Array:
    """Entropies in nats of softmax(W h / temperature), the logits of some rows at a time.

    The sum is over the whole vocabulary, so the gradient is the entropy's own. The backward pass
    computes each tile's logits again: no more than `[rows, V]` exists at any time.

    Args:
      hidden: `[B, T, D]` states.
      weight: `[V, D]` output projection.
      temperature: above 0, static; the sampler's.
      rows: of the B·T whose logits are held at once; None: as many as 128 MB hold.

    Returns:
      `[B, T]` float32, differentiable (in reverse mode) in `hidden` and `weight`.
    """
    chex.assert_rank([hidden, weight], [3, 2])
    flat = hidden.reshape(-1, hidden.shape[-1])
    rows = min(len(flat), rows or max(1, _LOGITS // weight.shape[0]))

    @jax.checkpoint
    def entropy(state: jax.Array) -> jax.Array:
        return token_entropies(logits(state, weight)[None, None], temperature=temperature)[0, 0]

    return jax.lax.map(entropy, flat, batch_size=rows).reshape(hidden.shape[:2])


def hidden_token_logps(
    hidden: jax.Array,
    weight: jax.Array,
    tokens: jax.Array,
    *,
    temperature: float = 1.0,
    tile: int | None = None,
    mesh: Mesh | None = None,
) -> jax.Array:
    """Log-probabilities of tokens under softmax(W h / temperature), a tile of V at a time.

    Args:
      hidden: `[B, T, D]` states that predict `tokens`.
      weight: `[V, D]` output projection.
      tokens: `[B, T]` int32, each in [0, V), at masked positions too.
      temperature: above 0, static; the one that sampled, so that ratios start at one.
      tile: words of the vocabulary whose logits are held at once, forwards and backwards, for all
        B·T rows (of a device, where there is a mesh). None: as many as 128 MB hold.
      mesh: as the model's. Rows stay split over data and fsdp, words over tensor, so that no logits
        and no weights move while tiles are taken: forwards three numbers of each row do. Backwards
        the gradients of `hidden` are summed over tensor, in float32, and those of `weight` over
        data and fsdp, in the compute dtype like those of other weights.

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
    flat = hidden.reshape(batch * length, width)
    rows, words = split_of(batch, "batch", mesh), split_of(weight.shape[0], "vocab", mesh)
    sizes = {} if mesh is None else mesh.shape
    here = weight.shape[0] // math.prod(sizes[name] for name in words)
    if tile is None:
        row_parts = math.prod(sizes[name] for name in rows)
        tiles = max(1, -(-here * (flat.shape[0] // row_parts) // _LOGITS))
        tile = -(-here // (tiles * 128)) * 128  # a multiple of 128, for the sake of the product
    layout = _Layout(1.0 / temperature, min(tile, here), mesh, rows, words)
    logps = _tiled_logps(flat, weight.astype(hidden.dtype), tokens.reshape(-1), layout)
    return logps.reshape(batch, length)


class _Layout(NamedTuple):
    """Constants: 1/temperature, words of a tile on one device, and how rows and words are split."""

    scale: float
    tile: int
    mesh: Mesh | None
    rows: tuple[str, ...]
    words: tuple[str, ...]

    def on_each_device(
        self, function: Callable[..., Any], taken: str, given: str
    ) -> Callable[..., Any]:
        """Runs a function of local parts; `r`: split by rows, `w`: by words, for each array."""
        if self.mesh is None:
            return function
        specs = {"r": PartitionSpec(self.rows or None), "w": PartitionSpec(self.words or None)}
        return jax.shard_map(
            function,
            mesh=self.mesh,
            in_specs=tuple(specs[name] for name in taken),
            out_specs=tuple(specs[name] for name in given),
            check_vma=False,
        )

    def first_word(self, weight: jax.Array) -> jax.Array | int:
        """Of the words that this device has."""
        return jax.lax.axis_index(self.words) * weight.shape[0] if self.words else 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _tiled_logps(
    hidden: jax.Array, weight: jax.Array, tokens: jax.Array, layout: _Layout
) -> jax.Array:
    return _forward(hidden, weight, tokens, layout)[0]


def _tiles(vocab: int, tile: int) -> tuple[jax.Array, jax.Array]:
    """Each tile's first word, and its first new one: the last tile overlaps if it would jut out."""
    new = jnp.arange(0, vocab, tile)
    return jnp.minimum(new, vocab - tile), new


def _forward(hidden: jax.Array, weight: jax.Array, tokens: jax.Array, layout: _Layout):
    compute = layout.on_each_device(
        functools.partial(_local_forward, layout=layout), taken="rwr", given="rr"
    )
    logps, normalizer = compute(hidden, weight, tokens)
    return logps, (hidden, weight, tokens, normalizer)


def _local_forward(
    hidden: jax.Array, weight: jax.Array, tokens: jax.Array, *, layout: _Layout
) -> tuple[jax.Array, jax.Array]:
    """Log-probabilities and normalizers of this device's rows, from all devices' words."""
    tile = layout.tile
    tokens = tokens - layout.first_word(weight)

    def one(carry: tuple[jax.Array, ...], bounds: tuple[jax.Array, jax.Array]):
        largest, total, chosen = carry
        start, new = bounds
        z = logits(hidden, jax.lax.dynamic_slice_in_dim(weight, start, tile)) * layout.scale
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
    if layout.words:
        overall = jax.lax.pmax(largest, layout.words)
        total = jax.lax.psum(total * jnp.exp(largest - overall), layout.words)
        chosen, largest = jax.lax.psum(chosen, layout.words), overall
    normalizer = largest + jnp.log(total)
    return chosen - normalizer, normalizer


def _backward(layout: _Layout, saved: tuple[jax.Array, ...], cotangent: jax.Array):
    compute = layout.on_each_device(
        functools.partial(_local_backward, layout=layout), taken="rwrrr", given="rw"
    )
    return *compute(*saved, cotangent), None


def _local_backward(
    hidden: jax.Array,
    weight: jax.Array,
    tokens: jax.Array,
    normalizer: jax.Array,
    cotangent: jax.Array,
    *,
    layout: _Layout,
) -> tuple[jax.Array, jax.Array]:
    """Gradients of this device's rows and of its words."""
    tile, scale = layout.tile, layout.scale
    tokens = tokens - layout.first_word(weight)

    def one(carry: tuple[jax.Array, jax.Array], bounds: tuple[jax.Array, jax.Array]):
        grad_hidden, grad_weight = carry
        start, new = bounds
        words = start + jnp.arange(tile)
        part = jax.lax.dynamic_slice_in_dim(weight, start, tile)
        probabilities = jnp.exp(logits(hidden, part) * scale - normalizer[:, None])
        grad_z = ((tokens[:, None] == words) - probabilities) * (cotangent * scale)[:, None]
        grad_z = grad_z.astype(hidden.dtype)
        grad_part = jnp.matmul(transposed(grad_z), hidden, preferred_element_type=jnp.float32)
        grad_weight = jax.lax.dynamic_update_slice_in_dim(
            grad_weight, grad_part.astype(weight.dtype), start, 0
        )
        part = jnp.where((words >= new)[:, None], part, 0)  # a word counts once
        grad_hidden += jnp.einsum("rv,vd->rd", grad_z, part, preferred_element_type=jnp.float32)
        return (grad_hidden, grad_weight), None

    begin = jnp.zeros(hidden.shape, jnp.float32), jnp.zeros_like(weight)
    (grad_hidden, grad_weight), _ = jax.lax.scan(one, begin, _tiles(weight.shape[0], tile))
    if layout.words:
        grad_hidden = jax.lax.psum(grad_hidden, layout.words)
    if layout.rows:
        grad_weight = jax.lax.psum(grad_weight, layout.rows)
    return grad_hidden.astype(hidden.dtype), grad_weight


_tiled_logps.defvjp(_forward, _backward)
