"""How the benchmarks time things, beside what the machine can do in the same process."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def best(run: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """The fastest of several runs in seconds, a first one left out, and the last result."""
    result = jax.block_until_ready(run())
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        result = jax.block_until_ready(run())
        seconds.append(time.perf_counter() - begun)
    return min(seconds), result


def product_rate(dtype: Any, *, rows: int = 4096, inner: int = 576, columns: int = 1536) -> float:
    """FLOP/s of one product `[rows, inner] @ [columns, inner].T`."""
    x, weight = jnp.ones((rows, inner), dtype), jnp.ones((columns, inner), dtype)
    product = jax.jit(lambda x, w: jax.lax.dot_general(x, w, (((1,), (1,)), ((), ()))))
    seconds, _ = best(lambda: product(x, weight), 20)
    return 2 * rows * inner * columns / seconds
