"""From a batch to the next state: gradients in parts, one update, nothing that is not finite."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from jaxalign.engine.state import CriticState, TrainState
from jaxalign.models.layout import lay_out, parameter_shardings
from jaxalign.models.transformer import Params, Transformer
from jaxalign.models.values import critic_of
from jaxalign.records import Metrics

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
    model: Transformer,
    optimizer: optax.GradientTransformation,
    state: TrainState,
    gradients: Params,
    critic_optimizer: optax.GradientTransformation | None = None,
    critic_gradients: Params | None = None,
) -> tuple[TrainState, Metrics]:
    """One optimizer update. A gradient or a change that is not finite only counts as skipped.

    With a critic one that is not finite, of the policy or of the critic, holds both back.

    Args:
      model: with a mesh, what it keeps in parts stays so: gradients, parameters, moments.
      optimizer: an optax transformation.
      state: before the update.
      gradients: of the whole batch's loss.
      critic_optimizer: the critic's, where it is updated too.
      critic_gradients: of the critic's loss.

    Returns:
      the next state, and `grad_norm`, `skipped_updates` and with a critic `critic_grad_norm` to
      log.
    """
    change = _propose(model, optimizer, state.params, state.opt_state, gradients)
    finite, metrics, critic = change.finite, {"grad_norm": change.norm}, state.critic
    if critic is not None and critic_optimizer is not None and critic_gradients is not None:
        theirs, their_model = (critic.params, critic.opt_state), critic_of(model)
        proposed = _propose(their_model, critic_optimizer, *theirs, critic_gradients)
        finite = finite & proposed.finite
        critic = CriticState(*_choose(their_model, critic_optimizer, finite, proposed, *theirs))
        metrics["critic_grad_norm"] = proposed.norm
    params, opt_state = _choose(model, optimizer, finite, change, state.params, state.opt_state)
    state = TrainState(
        step=state.step + 1,
        params=params,
        opt_state=opt_state,
        skipped=state.skipped + ~finite,
        critic=critic,
    )
    return state, metrics | {"skipped_updates": state.skipped}


class _Change(NamedTuple):
    """Parameters and moments after an update, the gradient's norm, and whether all is finite."""

    params: Params
    opt_state: Any
    norm: jax.Array
    finite: jax.Array


def _propose(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    params: Params,
    opt_state: Any,
    gradients: Params,
) -> _Change:
    gradients = lay_out(model, gradients)
    norm = optax.tree.norm(gradients)
    changes, opt_state = optimizer.update(gradients, opt_state, params)
    finite = jnp.isfinite(norm) & jnp.isfinite(optax.tree.norm(changes))
    return _Change(optax.apply_updates(params, changes), opt_state, norm, finite)


def _choose(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    finite: jax.Array,
    change: _Change,
    params: Params,
    opt_state: Any,
) -> tuple[Params, Any]:
    """Parameters and moments after the change where it is finite, else as they were."""
    keep = lambda new, old: jnp.where(finite, new, old)  # noqa: E731
    return (
        lay_out(model, jax.tree.map(keep, change.params, params)),
        _lay_out_moments(model, optimizer, jax.tree.map(keep, change.opt_state, opt_state)),
    )


def _lay_out_moments(
    model: Transformer, optimizer: optax.GradientTransformation, opt_state: Any
) -> Any:
    """The optimizer's state, with whatever is like a parameter where that lives."""
    if model.mesh is None:
        return opt_state
    shardings = traverse_util.unflatten_dict(parameter_shardings(model.config, model.mesh), sep="/")
    return optax.tree.map_params(optimizer, jax.lax.with_sharding_constraint, opt_state, shardings)
