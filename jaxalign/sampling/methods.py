"""How the next token is chosen from its logits: small frozen values, static under jit.

Each has a `temperature`; the log-probabilities that the sampler returns are those of the full
softmax(z / temperature), the distribution that the loss differentiates. Truncation (top-k, top-p)
changes only which token is drawn; train with `Temperature`, where both are the same.
"""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Greedy:
    """The most probable token; log-probabilities at `temperature`."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be positive; Greedy ranks alone")

    def choose(self, keys: jax.Array, scaled: jax.Array) -> jax.Array:
        """`[B]` keys and `[B, V]` logits over the temperature give `[B]` int32 tokens."""
        del keys
        return jnp.argmax(scaled, axis=-1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class Temperature:
    """A draw from softmax(z / temperature)."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature={self.temperature} must be positive; see Greedy")

    def choose(self, keys: jax.Array, scaled: jax.Array) -> jax.Array:
        """`[B]` keys and `[B, V]` logits over the temperature give `[B]` int32 tokens."""
        return categorical(keys, scaled)


@dataclasses.dataclass(frozen=True)
class TopK:
    """A draw from the `k` most probable tokens at `temperature`."""

    k: int
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.k < 1 or self.temperature <= 0:
            raise ValueError(f"TopK needs k >= 1 and a positive temperature, got {self}")

    def choose(self, keys: jax.Array, scaled: jax.Array) -> jax.Array:
        """`[B]` keys and `[B, V]` logits over the temperature give `[B]` int32 tokens."""
        values, tokens = jax.lax.top_k(scaled, min(self.k, scaled.shape[-1]))
        drawn = categorical(keys, values)
        return jnp.take_along_axis(tokens, drawn[:, None], axis=-1)[:, 0]


@dataclasses.dataclass(frozen=True)
class TopP:
    """A draw from the smallest set of most probable tokens that holds mass `p` (nucleus)."""

    p: float
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1 or self.temperature <= 0:
            raise ValueError(f"TopP needs 0 < p <= 1 and a positive temperature, got {self}")

    def choose(self, keys: jax.Array, scaled: jax.Array) -> jax.Array:
        """`[B]` keys and `[B, V]` logits over the temperature give `[B]` int32 tokens."""
        order = jnp.argsort(scaled, axis=-1, descending=True)
        ranked = jnp.take_along_axis(scaled, order, axis=-1)
        probabilities = jax.nn.softmax(ranked, axis=-1)
        # Kept while the mass before a token is below p: the first one always is.
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        drawn = categorical(keys, jnp.where(before < self.p, ranked, -jnp.inf))
        return jnp.take_along_axis(order, drawn[:, None], axis=-1)[:, 0].astype(jnp.int32)


Method = Greedy | Temperature | TopK | TopP


def categorical(keys: jax.Array, scaled: jax.Array) -> jax.Array:
    """Draws from softmax(scaled), `[B]` int32, by inverting the cumulative sum, in two levels.

    One uniform number a row instead of one Gumbel a token: at V = 49152 the noise would cost more
    than the output projection on a CPU. A block of tokens is chosen by its mass, then a token
    within it. Where V allows, there are 64, 128 or 256 blocks, so that each is whole on one of the
    devices that share the vocabulary; else about √V.

    The keys `[B]`, one a row, are consumed; a logit of −inf in `[B, V]` marks what can't be drawn.
    """
    chex.assert_rank(scaled, 2)
    batch, vocab = scaled.shape
    blocks = math.gcd(vocab, 256)
    width = vocab // blocks if blocks >= 64 else int(vocab**0.5) + 1
    weights = jnp.exp(scaled.astype(jnp.float32) - scaled.max(axis=-1, keepdims=True))
    weights = jnp.pad(weights, ((0, 0), (0, -vocab % width))).reshape(batch, -1, width)
    masses = weights.sum(axis=-1)
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (1,)))(keys)
    block, rest = _invert(masses, uniform * masses.sum(axis=-1, keepdims=True))
    within, _ = _invert(jnp.take_along_axis(weights, block[..., None], axis=1)[:, 0], rest)
    return (block * width + within)[:, 0].astype(jnp.int32)


def _invert(mass: jax.Array, target: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first place where the cumulative `mass` `[B, S]` passes `target` `[B, 1]`.

    Returns:
      that index, always one with mass, and how far into its mass the target reaches, both `[B, 1]`.
    """
    # XLA's cumulative sum adds in a tree and can wobble by a rounding where there is no mass.
    total = jnp.where(mass > 0, jnp.cumsum(mass, axis=-1), 0.0)
    end = total.max(axis=-1, keepdims=True)
    target = jnp.minimum(target, jnp.nextafter(end, jnp.zeros_like(end)))
    index = jnp.argmax(total > target, axis=-1, keepdims=True)
    before = jnp.take_along_axis(total - mass, index, axis=-1)
    return index, jnp.maximum(target - before, 0.0)
