"""Times attention with shared contexts on a GPU, by cuDNN's kernel and by blocks; compares errors.

    python experiments/benchmarks/attention.py
    python experiments/benchmarks/attention.py --new-tokens 1024 --heads 16 --kv-heads 2

One layer: a prefix for all rows, a prompt for each group of rows, and the rows' own tokens, forward
and backward. The error is the largest of output and gradients, ‖x − r‖ / ‖r‖ against float32 by
blocks on the same inputs. Without an NVIDIA GPU the kernel's line is left out.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from timing import best, print_setting

from jaxalign.host.command import run_command
from jaxalign.models.attention import KeyValues, attend
from jaxalign.models.fused_attention import attend_fused

PROMPTS, SAMPLES, PREFIX = 16, 8, 193
"""N, G and P0, tokens of the block that all rows share."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sizes of the case; the defaults are the demo's."""

    prompt_tokens: int = 56
    """P."""
    new_tokens: int = 64
    """T."""
    heads: int = 9
    """H."""
    kv_heads: int = 3
    """K."""
    head_dim: int = 64
    """d."""


def main(settings: Settings) -> None:
    """Prints a line for each way."""
    case = random_case(settings)
    with jax.default_matmul_precision("highest"):  # a GPU's default for float32 has fewer bits
        reference = [np.asarray(x, np.float64) for x in passes(attend)(case)]
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x, case)
    ways: dict[str, Callable[..., jax.Array]] = {"blocks": attend}
    if jax.default_backend() == "gpu":
        ways["cudnn"] = functools.partial(attend_fused, kernel="cudnn")
    print_setting(jnp.bfloat16, settings)
    print(f"{'attention':12}{'forward ms':>12}{'both ms':>10}{'error':>10}")
    for name, attention in ways.items():
        forward = jax.jit(lambda case, attention=attention: attention(*case))
        once, _ = best(lambda f=forward: f(low), 10)
        both = passes(attention)
        seconds, found = best(lambda f=both: f(low), 10)
        squares = [
            (np.sum((np.asarray(x, np.float64) - r) ** 2), np.sum(r**2))
            for x, r in zip(found, reference, strict=True)
        ]
        error = max((difference / size) ** 0.5 for difference, size in squares)
        print(f"{name:12}{once * 1e3:12.2f}{seconds * 1e3:10.2f}{error:10.1e}")


def random_case(settings: Settings) -> tuple[Any, ...]:
    """Arguments of `attend` in float32; prompts and rows are of different lengths."""
    rng = np.random.default_rng(0)
    rows, length = PROMPTS * SAMPLES, settings.new_tokens

    def normal(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    def block(count: int, size: int, shortest: int) -> KeyValues:
        shape = (count, settings.kv_heads, size, settings.head_dim)
        sizes = rng.integers(shortest, size + 1, size=count)
        return KeyValues(
            normal(*shape), normal(*shape), jnp.asarray(np.arange(size) < sizes[:, None])
        )

    own = block(rows, length, 1)
    return (
        normal(rows, length, settings.heads, settings.head_dim),
        own.keys,
        own.values,
        own.mask,
        (block(1, PREFIX, PREFIX), block(PROMPTS, settings.prompt_tokens, 1)),
    )


def passes(attention: Callable[..., jax.Array]) -> Callable[[tuple[Any, ...]], list[jax.Array]]:
    """Output and gradients of queries, keys and values, those of contexts included."""

    def loss(case: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
        # Rows' padding means nothing, and a gradient of about one each.
        out = jnp.where(case[3][:, :, None, None], attention(*case), 0)
        return jnp.sum(jnp.sin(out.astype(jnp.float32) * 3)), out

    def run(case: tuple[Any, ...]) -> list[jax.Array]:
        (_, out), grads = jax.value_and_grad(loss, has_aux=True, allow_int=True)(case)
        masks_left_out = [x for x in jax.tree.leaves(grads) if x.dtype != jax.dtypes.float0]
        return [out, *masks_left_out]

    return jax.jit(run)


if __name__ == "__main__":
    run_command("attention", Settings, main, __doc__)
