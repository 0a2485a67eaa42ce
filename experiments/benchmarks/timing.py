"""How the benchmarks time things, beside what the machine can do in the same process."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.data import KINDS, Prompt, batch_at, builtin_prompts
from jaxalign.data.templates import Template, encode_prompts
from jaxalign.host.errors import InputError
from jaxalign.records import Batch, Prompts

PEAKS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}
"""Published FLOP/s of bfloat16 products without sparsity. Source: NVIDIA's data sheets, SXM."""


def best(run: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """The fastest of several runs in seconds, a first one left out, and the last result."""
    result = jax.block_until_ready(run())
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        result = jax.block_until_ready(run())
        seconds.append(time.perf_counter() - begun)
    return min(seconds), result


def product_rate(dtype: Any, *, inner: int) -> float:
    """FLOP/s of `[rows, inner] @ [columns, inner].T`, larger on an accelerator."""
    rows, columns = (4096, 1536) if jax.default_backend() == "cpu" else (16384, 8192)
    left, right = jax.random.split(jax.random.key(0))
    x = jax.random.normal(left, (rows, inner), dtype)
    weight = jax.random.normal(right, (columns, inner), dtype)
    product = jax.jit(lambda x, w: jax.lax.dot_general(x, w, (((1,), (1,)), ((), ()))))
    seconds, _ = best(lambda: product(x, weight), 20)
    return 2 * rows * inner * columns / seconds


def first_batch(
    tokenizer: Any, template: Template, count: int, width: int = 56
) -> tuple[list[Prompt], Batch]:
    """Half harmful, a quarter benign, a quarter look-alike prompts, a multiple of 4, and as arrays.

    Every prompt is padded to `width` tokens beyond the prefix.
    """
    counts = dict(zip(KINDS, (count // 2, count // 4, count // 4), strict=True))
    prompts = batch_at(builtin_prompts("train"), 0, counts=counts, seed=0)
    texts = [prompt.text for prompt in prompts]
    encoded = encode_prompts(tokenizer, template, texts, max_tokens=width, width=width)
    given = Batch(Prompts(encoded.tokens, encoded.mask), prefix=encoded.prefix)
    return prompts, jax.tree.map(jnp.asarray, given)


def print_setting(dtype: Any, *more: object) -> None:
    """The first line of every table: device, jax, dtype, and what else there is to say."""
    facts = (jax.devices()[0].device_kind, f"jax {jax.__version__}", jnp.dtype(dtype).name, *more)
    print(", ".join(map(str, facts)))


def import_torch() -> tuple[Any, str]:
    """torch, and the device it should compute on.

    Raises:
      InputError: it is not there.
    """
    try:
        import torch
    except ImportError:
        raise InputError(
            "torch is not installed, which transformers needs: use the environment of Python 3.11 "
            "(make test PYTHON=python3.11)"
        ) from None
    return torch, "cuda" if torch.cuda.is_available() else "cpu"
