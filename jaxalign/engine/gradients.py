"""From a batch to the next state: gradients in parts, one update, how arrays lie after it."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from jaxalign.engine.optimizer import skipped_updates
from jaxalign.engine.state import TrainState, has_critic, policy_of
from jaxalign.models.layout import lay_out
from jaxalign.records import Metrics, Params

Part = TypeVar("Part")
Sums = TypeVar("Sums")


def map_parts(function: Callable[[Part], jax.Array], batch: Part, micro_batches: int) -> jax.Array:
    """Applies a function to equal parts of a batch, one after the other, for memory.

    The function gives a row for each of a leaf's; `micro_batches` divides every leaf's first axis.

    Raises:
      ValueError: an axis that cannot be divided so.
    """
    if micro_batches == 1:
        return function(batch)
    rows = jax.lax.map(function, _split(batch, micro_batches))
    return rows.reshape(-1, *rows.shape[2:])


def _sum_over_parts(function: Callable[[Part], Sums], batch: Part, parts: int) -> Sums:
    """The sum of a function's trees over equal parts of a batch (`map_parts`), one at a time."""
    if parts == 1:
        return function(batch)
    split = _split(batch, parts)
    zeros = _zeros_of(function, jax.tree.map(lambda x: x[0], split))
    add = lambda sums, part: (jax.tree.map(jnp.add, sums, function(part)), None)  # noqa: E731
    return jax.lax.scan(add, zeros, split)[0]


def sum_over_trips(function: Callable[[jax.Array], Sums], trips: jax.Array) -> Sums:
    """The sum of a function's trees over the numbers below `trips`, a scalar int32 array."""
    zeros = _zeros_of(function, trips)
    add = lambda index, sums: jax.tree.map(jnp.add, sums, function(index))  # noqa: E731
    return jax.lax.fori_loop(0, trips, add, zeros)


def _zeros_of(function: Callable[[Part], Sums], part: Part) -> Sums:
    one = jax.eval_shape(function, part)
    # Gradients of bfloat16 parameters are, too: a sum of them in bfloat16 would lose small ones.
    wide = lambda x: jnp.float32 if x.dtype == jnp.bfloat16 else x.dtype  # noqa: E731
    return jax.tree.map(lambda x: jnp.zeros(x.shape, wide(x)), one)


def _split(batch: Part, parts: int) -> Part:
    """Every leaf as equal parts, on a new first axis."""
    rows = {leaf.shape[0] for leaf in jax.tree.leaves(batch)}
    if any(size % parts for size in rows):
        raise ValueError(f"{min(rows)} prompts can't be split into {parts} equal parts")
    return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)


def descend(
    model: Any,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    loss: Callable[[Params, Part], tuple[jax.Array, Metrics]],
    rows: Part,
    *,
    micro_batches: int = 1,
) -> tuple[TrainState, Metrics]:
    """One optimizer update by a loss's gradient, summed over equal parts of the rows.

    The loss is `(params, part) -> (scalar, metrics)`, divided by totals of all rows. What a model
    with a mesh keeps in parts stays so: gradients, parameters, moments.

    Returns:
      the next state, and to log the sums of the parts' metrics, `grad_norm`, `skipped_updates` and
      with a critic `critic_grad_norm`.

    Raises:
      ValueError: `micro_batches` does not divide the first axis of a leaf of the rows.
    """
    gradient = functools.partial(jax.grad(loss, has_aux=True), state.params)
    gradients, metrics = _sum_over_parts(gradient, rows, micro_batches)
    return apply_gradients(model, optimizer, state, gradients, metrics)


def apply_gradients(
    model: Any,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    gradients: Params,
    metrics: Metrics,
) -> tuple[TrainState, Metrics]:
    """The update of `descend`, by gradients of `state.params` that are summed already."""
    gradients = lay_out(model, gradients)
    applied = {"grad_norm": optax.tree.norm(policy_of(gradients))}
    if has_critic(gradients):
        applied["critic_grad_norm"] = optax.tree.norm(gradients["critic"])
    changes, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = lay_out(model, optax.apply_updates(state.params, changes))
    opt_state = lay_out(model, opt_state)
    applied["skipped_updates"] = skipped_updates(opt_state)
    return TrainState(state.step + 1, params, opt_state), metrics | applied
