"""Several updates from one rollout: epochs over it, in minibatches of whole prompts."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from jaxalign.engine.state import TrainState
from jaxalign.records import Metrics

Part = TypeVar("Part")


def minibatch_prompts(key: jax.Array, prompts: int, *, epochs: int, minibatches: int) -> jax.Array:
    """Which prompts each update learns from, `[E·M, N/M]` int32.

    Every epoch has each prompt once, in a new order; `minibatches` divides N.
    """
    keys = jax.random.split(key, epochs)
    orders = jax.vmap(lambda key: jax.random.permutation(key, prompts))(keys)
    return orders.reshape(epochs * minibatches, -1)


def take_prompts(batch: Part, prompts: int, chosen: jax.Array) -> Part:
    """The rows of some prompts, of arrays whose first axis has N rows or N·G, group by group.

    A minibatch of whole groups keeps a prompt's samples together, so that the prompt is computed
    once for all of them in each epoch. Shuffling single completions would not. Ours.
    """

    def take(x: jax.Array) -> jax.Array:
        groups = x.reshape(prompts, -1, *x.shape[1:])
        return groups[chosen].reshape(-1, *x.shape[1:])

    return jax.tree.map(take, batch)


def update_repeatedly(
    update: Callable[[TrainState, Part], tuple[TrainState, Metrics]],
    state: TrainState,
    batch: Part,
    key: jax.Array,
    *,
    prompts: int,
    epochs: int,
    minibatches: int,
) -> tuple[TrainState, Metrics]:
    """Calls an update, `(state, part) -> (state, metrics)`, E·M times.

    The batch is a pytree as in `take_prompts`, of N prompts; the key is that of the orders. Several
    updates are a scan, one is none.

    Returns:
      the state after all of them, and means of their metrics; but `logp_gap` is the first one's,
      before the policy has moved, and `skipped_updates` the last one's.

    Raises:
      ValueError: M does not divide N.
    """
    if prompts % minibatches:
        raise ValueError(f"{prompts} prompts can't be split into {minibatches} minibatches")
    if epochs * minibatches == 1:
        return update(state, batch)
    chosen = None
    if minibatches > 1:
        chosen = minibatch_prompts(key, prompts, epochs=epochs, minibatches=minibatches)

    def one(state: TrainState, chosen: jax.Array | None) -> tuple[TrainState, Metrics]:
        return update(state, batch if chosen is None else take_prompts(batch, prompts, chosen))

    state, history = jax.lax.scan(one, state, chosen, length=epochs * minibatches)
    metrics = {name: jnp.mean(values) for name, values in history.items()}
    if "logp_gap" in history:
        metrics["logp_gap"] = history["logp_gap"][0]
    return state, metrics | {"skipped_updates": history["skipped_updates"][-1]}
