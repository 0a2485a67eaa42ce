"""Parameters in bfloat16 that learn from changes smaller than their last digit.

bfloat16 has 8 digits: a change below 1/512 of a parameter is lost when their sum is rounded to the
nearest. Rounded up with a probability of where the sum lies between its two neighbours,

    round(x) = x rounded down + [u < share of the gap],   u uniform,   E[round(x)] = x,

small changes add up in the mean. The two parts of a float32 number are its upper 16 bits, which are
a bfloat16, and the lower ones; a random number of 16 bits is added, and the lower bits are cut off.

Source: Gupta et al. 2015 (arXiv 1502.02551); for bfloat16 Zamirai et al. 2020 (arXiv 2010.06192).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxalign.records import Params


def round_stochastically(x: jax.Array, key: jax.Array) -> jax.Array:
    """Float32 numbers that are bfloat16 ones: a neighbour of each of `x`, and `x` in the mean."""
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32) + noise
    return jax.lax.bitcast_convert_type(bits & jnp.uint32(0xFFFF0000), jnp.float32)


class RoundingState(NamedTuple):
    """Of `stochastic_rounding`.

    Attributes:
      inner: the wrapped optimizer's state, as of float32 parameters.
      updates: scalar int32, how many were made: each rounds by numbers of its own.
    """

    inner: Any
    updates: jax.Array


def stochastic_rounding(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """An optimizer of parameters of which some are bfloat16.

    It computes in float32, moments too; its changes of bfloat16 parameters are such that the sum
    with the parameter is a bfloat16 number, drawn by `round_stochastically`. Others are changed as
    the wrapped one says.
    """

    def widened(tree: Params) -> Params:
        return jax.tree.map(lambda x: x.astype(jnp.float32), tree)

    def init(params: Params) -> RoundingState:
        return RoundingState(optimizer.init(widened(params)), jnp.zeros((), jnp.int32))

    def update(
        gradients: Params, state: RoundingState, params: Params | None = None
    ) -> tuple[Params, RoundingState]:
        assert params is not None
        wide = widened(params)
        changes, inner = optimizer.update(widened(gradients), state.inner, wide)
        key = jax.random.fold_in(jax.random.key(0), state.updates)
        leaves, tree = jax.tree.flatten(params)
        rounded = [
            round_stochastically(old + change, jax.random.fold_in(key, number)) - old
            if leaf.dtype == jnp.bfloat16
            else change
            for number, (leaf, old, change) in enumerate(
                zip(leaves, jax.tree.leaves(wide), jax.tree.leaves(changes), strict=True)
            )
        ]
        return jax.tree.unflatten(tree, rounded), RoundingState(inner, state.updates + 1)

    return optax.GradientTransformation(init, update)
