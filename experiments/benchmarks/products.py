"""Times a layer's three products, the weight's gradient as it is written and as it is computed.

    python experiments/benchmarks/products.py
    python experiments/benchmarks/products.py --dtype float32

`jaxalign.models.products` says why the two differ in bfloat16 on a CPU.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from timing import best, print_setting

from jaxalign.host.command import run_command
from jaxalign.models.products import transposed


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to time."""

    rows: int = 1152
    """Tokens; those of one of the demo's micro-batches by default."""
    width: int = 576
    """D; SmolLM2-135M's."""
    hidden: int = 1536
    """Units of the MLP; SmolLM2-135M's."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of all operands."""
    repeats: int = 20
    """Runs after the compiling one; the fastest counts."""


def main(settings: Settings) -> None:
    """Prints the table."""
    dtype = jnp.dtype(settings.dtype)
    shapes = (
        (settings.rows, settings.width),
        (settings.hidden, settings.width),
        (settings.rows, settings.hidden),
    )
    keys = jax.random.split(jax.random.key(0), 3)
    x, weight, grad = (
        jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=True)
    )
    products = {
        "y = x Wt": lambda x, w, g: jnp.einsum("rd,hd->rh", x, w),
        "dx = dy W": lambda x, w, g: jnp.einsum("rh,hd->rd", g, w),
        "dW = dyt x, as written": lambda x, w, g: jnp.einsum("rh,rd->hd", g, x),
        "dW = dyt x, transposed first": lambda x, w, g: transposed(g) @ x,
    }
    print_setting(dtype, settings)
    print(f"{'product':30}{'ms':>9}{'GFLOP/s':>9}{'of y':>9}")
    flops, first = 2 * settings.rows * settings.width * settings.hidden, None
    for name, product in products.items():
        run = functools.partial(jax.jit(product), x, weight, grad)
        seconds, _ = best(run, settings.repeats)
        first = first or seconds
        rate = flops / seconds / 1e9
        print(f"{name:30}{seconds * 1e3:9.2f}{rate:9.0f}{first / seconds:9.2f}")


if __name__ == "__main__":
    run_command("products", Settings, main, __doc__)
