"""Times a policy loss with its gradient from hidden states, in tiles and with all logits at once.

    python experiments/benchmarks/losses.py
    python experiments/benchmarks/losses.py --dtype bfloat16 --tile 4096
    python experiments/benchmarks/losses.py --rows 1024

Both ways compute GRPO's loss of `rows` tokens and its gradient with respect to the hidden states
and the output projection. "all logits" is the usual `token_logps(hidden @ W.T, tokens)`; "tiled" is
`jaxalign.models.hidden_token_logps`, which holds the logits of `tile` words at a time and computes
them again on the way back: four products of [rows, width, vocabulary] instead of three, so that
1.33 is the ratio of times to expect where products are all that counts. Memory is what the compiled
program asks for beyond its inputs: results and temporaries.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from timing import best, print_setting, product_rate

from jaxalign.host.command import run_command
from jaxalign.host.errors import InputError
from jaxalign.losses import aggregate, clipped_surrogate, token_logps
from jaxalign.models import hidden_token_logps

PER_ROW = 64  # tokens of a completion


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to time."""

    rows: int = 8192
    """Tokens in the batch, a multiple of 64."""
    vocabulary: int = 151936
    """V; that of Qwen2.5."""
    width: int = 896
    """D; that of Qwen2.5-0.5B."""
    tile: int | None = None
    """Words whose logits the tiled way holds; None: as many as 128 MB hold."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the hidden states and the products; logits are float32."""


def main(settings: Settings) -> None:
    """Prints the table."""
    if settings.rows < PER_ROW or settings.rows % PER_ROW:
        raise InputError(f"rows={settings.rows} is not a multiple of {PER_ROW}")
    keys = jax.random.split(jax.random.key(0), 5)
    shape = (settings.rows // PER_ROW, PER_ROW)
    hidden = jax.random.normal(keys[0], (*shape, settings.width), jnp.dtype(settings.dtype))
    weight = jax.random.normal(keys[1], (settings.vocabulary, settings.width)) / 30
    tokens = jax.random.randint(keys[2], shape, 0, settings.vocabulary)
    old_logp = -12 + jax.random.normal(keys[3], shape)
    advantages = jax.random.normal(keys[4], shape[:1])

    def all_logits(hidden: jax.Array, weight: jax.Array) -> jax.Array:
        return token_logps(hidden @ weight.astype(hidden.dtype).T, tokens)

    def tiled(hidden: jax.Array, weight: jax.Array) -> jax.Array:
        return hidden_token_logps(hidden, weight, tokens, tile=settings.tile)

    def measure(logps: Callable[..., jax.Array]) -> tuple[float, float, jax.Array]:
        def loss(hidden: jax.Array, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
            logp = logps(hidden, weight)
            surrogate = clipped_surrogate(logp, old_logp, advantages)
            return aggregate(surrogate, jnp.ones(shape)), logp

        step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
        run = step.lower(hidden, weight).compile()
        needs = run.memory_analysis()
        memory = needs.temp_size_in_bytes + needs.output_size_in_bytes
        # The gradients are dropped, or a run would still hold those of the one before.
        seconds, (_, logp) = best(lambda: run(hidden, weight)[0], 2)
        return seconds, memory / 2**30, logp

    rate = product_rate(jnp.dtype(settings.dtype), inner=settings.width)
    one = 2 * settings.rows * settings.vocabulary * settings.width
    print_setting(settings.dtype)
    print(f"one product: {rate / 1e9:.0f} GFLOP/s; {settings.rows} tokens, V={settings.vocabulary}")
    print(f"{'way':14}{'seconds':>9}{'floor s':>9}{'GiB':>9}")
    results = []
    for name, logps, products in (("all logits", all_logits, 3), ("tiled", tiled, 4)):
        seconds, memory, logp = measure(logps)
        results.append((seconds, memory, logp))
        print(f"{name:14}{seconds:9.2f}{products * one / rate:9.2f}{memory:9.2f}", flush=True)
    (seconds, memory, logp), (ours_seconds, ours_memory, ours_logp) = results
    print(f"tiled / all logits: time {ours_seconds / seconds:.2f}", end=", ")
    print(f"memory {ours_memory / memory:.3f} (1/{memory / ours_memory:.1f})")
    print(f"largest difference of a log-probability: {jnp.max(jnp.abs(ours_logp - logp)):.1e}")


if __name__ == "__main__":
    run_command("losses", Settings, main, __doc__)
