"""From a batch to the next state: gradients in parts, one update, how arrays lie after it."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax

from jaxalign.engine.optimizer import skipped_updates
from jaxalign.engine.state import TrainState, has_critic, policy_of
from jaxalign.models.layout import lay_out, tree_shardings
from jaxalign.records import Metrics, Params

Part = TypeVar("Part")
Gradients = TypeVar("Gradients")


def accumulate(
    gradient: Callable[[Part], tuple[Gradients, Metrics]], batch: Part, micro_batches: int
) -> tuple[Gradients, Metrics]:
    """Sums gradients and metrics over equal parts of a batch, by a scan.

    Each part's loss must be divided by the whole batch's denominator, so that the sum is the
    batch's gradient.

    Args:
      gradient: of one part.
      batch: a pytree; `micro_batches` divides every leaf's first axis.
      micro_batches: how many parts; 1 runs no scan.

    Raises:
      ValueError: an axis that cannot be divided so.
    """
    if micro_batches == 1:
        return gradient(batch)
    parts = _split(batch, micro_batches)
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], parts)),
    )
    total, _ = jax.lax.scan(
        lambda carry, part: (jax.tree.map(jnp.add, carry, gradient(part)), None), zeros, parts
    )
    return total


def map_parts(function: Callable[[Part], jax.Array], batch: Part, micro_batches: int) -> jax.Array:
    """Applies a function to equal parts of a batch, one after the other, for memory.

    Args:
      function: of one part; gives a row for each of a leaf's.
      batch: a pytree; `micro_batches` divides every leaf's first axis.
      micro_batches: how many parts; 1 runs no loop.

    Raises:
      ValueError: an axis that cannot be divided so.
    """
    if micro_batches == 1:
        return function(batch)
    rows = jax.lax.map(function, _split(batch, micro_batches))
    return rows.reshape(-1, *rows.shape[2:])


def _split(batch: Part, parts: int) -> Part:
    """Every leaf as equal parts, on a new first axis."""
    rows = {leaf.shape[0] for leaf in jax.tree.leaves(batch)}
    if any(size % parts for size in rows):
        raise ValueError(f"{min(rows)} prompts can't be split into {parts} equal parts")
    return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)


def apply_gradients(
    model: Any,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    gradients: Params,
) -> tuple[TrainState, Metrics]:
    """One optimizer update.

    Args:
      model: with a mesh, what it keeps in parts stays so: gradients, parameters, moments.
      optimizer: an optax transformation; `skip_nonfinite` leaves out what is not finite.
      state: before the update.
      gradients: of the whole batch's loss.

    Returns:
      the next state, and `grad_norm`, `skipped_updates` and with a critic `critic_grad_norm` to
      log.
    """
    gradients = lay_out(model, gradients)
    metrics = {"grad_norm": optax.tree.norm(policy_of(gradients))}
    if has_critic(gradients):
        metrics["critic_grad_norm"] = optax.tree.norm(gradients["critic"])
    changes, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = lay_out(model, optax.apply_updates(state.params, changes))
    opt_state = _lay_out_moments(model, optimizer, opt_state, params)
    metrics["skipped_updates"] = skipped_updates(opt_state)
    return TrainState(state.step + 1, params, opt_state), metrics


def _lay_out_moments(
    model: Any, optimizer: optax.GradientTransformation, opt_state: Any, params: Params
) -> Any:
    """The optimizer's state, with whatever is like a parameter where that lives."""
    shardings = tree_shardings(model, params)
    if shardings is None:
        return opt_state
    masked = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731  of optax.partition
    put = lambda x, place: x if masked(x) else jax.lax.with_sharding_constraint(x, place)  # noqa: E731
    return optax.tree.map_params(optimizer, put, opt_state, shardings, is_leaf=masked)
