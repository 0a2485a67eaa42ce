"""Products of a layer, forwards and backwards, in forms that every backend computes fast.

    y = x Wᵀ,    ∂x = ∂y W,    ∂W = ∂yᵀ x

XLA computes a bfloat16 product on a CPU in bfloat16 only if the left operand is contracted over
its last axis, and in float32 otherwise, at less than half the speed. ∂W is otherwise, and a
transpose in front of it is folded into it again; so on a CPU ∂y is transposed where the compiler
does not look. Ours; measured by experiments/benchmarks/products.py.
"""

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

SAVED = "saved"
"""Name of what the backward pass needs of a forward pass, for remat policies."""

_HUGE = 1e30


@jax.custom_vjp
def project(x: jax.Array, weight: jax.Array) -> jax.Array:
    """x·Wᵀ for `x` `[..., in]` and `weight` `[out, in]` of one dtype."""
    return jax.lax.dot_general(x, weight, (((x.ndim - 1,), (1,)), ((), ())))


def _forward(x: jax.Array, weight: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # A policy of remat that saves products sees none in a function with a gradient of its own.
    return checkpoint_name(project(x, weight), SAVED), (x, weight)


def _backward(saved: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, weight = saved
    rows = grad.reshape(-1, grad.shape[-1])
    return (
        jax.lax.dot_general(grad, weight, (((grad.ndim - 1,), (0,)), ((), ()))),
        transposed(rows) @ x.reshape(-1, x.shape[-1]),
    )


project.defvjp(_forward, _backward)


def transposed(x: jax.Array) -> jax.Array:
    """`[..., R, C]` to `[..., C, R]`, for the left of a product; see above."""
    if x.dtype != jnp.bfloat16:
        return jnp.swapaxes(x, -1, -2)
    return jax.lax.platform_dependent(x, cpu=_copied, default=lambda x: jnp.swapaxes(x, -1, -2))


def _copied(x: jax.Array) -> jax.Array:
    """A transpose in the body of a loop, of one trip, which the compiler cannot know."""
    turned = jnp.swapaxes(x, -1, -2)
    trips = jnp.where(x[(0,) * x.ndim] < _HUGE, 1, 2)
    return jax.lax.fori_loop(
        0, trips, lambda _, __: jnp.swapaxes(x, -1, -2), jnp.zeros_like(turned)
    )
