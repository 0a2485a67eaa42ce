"""From a batch to the next state: gradients in parts, one update, nothing that is not finite."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from jaxalign.models.layout import lay_out, parameter_shardings
from jaxalign.models.transformer import Params, Transformer
from jaxalign.training.state import TrainState

Metrics = dict[str, jax.Array]
Part = TypeVar("Part")


def accumulate(
    gradient: Callable[[Part], tuple[Params, Metrics]], batch: Part, micro_batches: int
) -> tuple[Params, Metrics]:
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
    rows = {leaf.shape[0] for leaf in jax.tree.leaves(batch)}
    if any(size % micro_batches for size in rows):
        raise ValueError(f"{min(rows)} prompts can't be split into {micro_batches} micro-batches")
    if micro_batches == 1:
        return gradient(batch)
    parts = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), batch)
    zeros = jax.tree.map(
        lambda x: jnp.zeros(x.shape, x.dtype),
        jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], parts)),
    )
    total, _ = jax.lax.scan(
        lambda carry, part: (jax.tree.map(jnp.add, carry, gradient(part)), None), zeros, parts
    )
    return total


def apply_gradients(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    gradients: Params,
) -> tuple[TrainState, Metrics]:
    """One optimizer update. A gradient or a change that is not finite only counts as skipped.

    Args:
      model: with a mesh, what it keeps in parts stays so: gradients, parameters, moments.
      optimizer: an optax transformation.
      state: before the update.
      gradients: of the whole batch's loss.

    Returns:
      the next state, and `grad_norm` and `skipped_updates` to log.
    """
    gradients = lay_out(model, gradients)
    norm = optax.tree.norm(gradients)
    changes, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    finite = jnp.isfinite(norm) & jnp.isfinite(optax.tree.norm(changes))
    params = optax.apply_updates(state.params, changes)
    keep = lambda new, old: jnp.where(finite, new, old)  # noqa: E731
    state = TrainState(
        step=state.step + 1,
        params=lay_out(model, jax.tree.map(keep, params, state.params)),
        opt_state=_lay_out_moments(
            model, optimizer, jax.tree.map(keep, opt_state, state.opt_state)
        ),
        skipped=state.skipped + ~finite,
    )
    return state, {"grad_norm": norm, "skipped_updates": state.skipped}


def _lay_out_moments(
    model: Transformer, optimizer: optax.GradientTransformation, opt_state: Any
) -> Any:
    """The optimizer's state, with whatever is like a parameter where that lives."""
    if model.mesh is None:
        return opt_state
    shardings = traverse_util.unflatten_dict(parameter_shardings(model.config, model.mesh), sep="/")
    return optax.tree.map_params(optimizer, jax.lax.with_sharding_constraint, opt_state, shardings)
