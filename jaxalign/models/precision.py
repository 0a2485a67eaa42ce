"""Which compute dtype is the faster one here."""

import timeit
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.host.errors import InputError

# Rows, width and hidden width of the probe: an MLP product of a small decoder.
_ROWS, _WIDTH, _HIDDEN = 1024, 576, 1536
_REPEATS = 3
_LEAST_GAIN = 1.2  # below it, float32's precision is worth more than bfloat16's speed


def fastest_dtype() -> tuple[Any, str]:
    """Chooses the compute dtype for the default backend.

    TPUs and GPUs have units for bfloat16. Whether a CPU is faster in it depends on the processor
    and on the release of jax, so there a product `[1024, 576]·[1536, 576]ᵀ` is timed in both; it
    takes a fraction of a second. bfloat16 must be at least 1.2 times as fast. Ours.

    A probe on a busy machine can go either way: a run that must repeat bit by bit records its
    dtype.

    Returns:
      `jnp.bfloat16` or `jnp.float32`, and one line that names it and says why.
    """
    platform = jax.default_backend()
    if platform != "cpu":
        return jnp.bfloat16, f"bfloat16: the usual choice on a {platform.upper()}"
    gain = _seconds(jnp.float32) / _seconds(jnp.bfloat16)
    if gain >= _LEAST_GAIN:
        return jnp.bfloat16, f"bfloat16: {gain:.1f} times faster than float32 in a probe"
    return jnp.float32, f"float32: bfloat16 ran at {gain:.1f} times its speed in a probe"


def named_dtype(name: str, *, flag: str = "dtype") -> tuple[Any, str]:
    """The compute dtype of a name, and for auto, `fastest_dtype`, why; `flag` is for messages.

    Raises:
      InputError: another name than bfloat16, float32 and auto.
    """
    dtypes = {"bfloat16": jnp.bfloat16, "float32": jnp.float32}
    if name == "auto":
        return fastest_dtype()
    if name not in dtypes:
        raise InputError(f"{flag}: unknown value {name!r}; use auto, {', '.join(dtypes)}")
    return dtypes[name], ""


def _seconds(dtype: Any) -> float:
    """The shortest of a few runs of one product, both operands contracted over their last axis."""
    x, weight = jnp.ones((_ROWS, _WIDTH), dtype), jnp.ones((_HIDDEN, _WIDTH), dtype)
    run = lambda: _product(x, weight).block_until_ready()  # noqa: E731
    run()  # compiles
    return min(timeit.repeat(run, number=1, repeat=_REPEATS))


@jax.jit
def _product(x: jax.Array, weight: jax.Array) -> jax.Array:
    return jax.lax.dot_general(x, weight, (((1,), (1,)), ((), ())))
