"""The gradient of a step whose completions share rows, some rows at a time.

    g = Σ_i ∂L_i/∂θ + (∂b/∂θ)ᵀ Σ_i ∂L_i/∂b,    b the prefix's keys and values, once for all i

A trip of the loop takes as many rows as hold an eighth of the places that an update by equal parts
would compute, whatever is in them; how many trips there are depends on what was drawn, in one
compilation.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxalign.engine.experience import Experience
from jaxalign.engine.gradients import sum_over_trips
from jaxalign.engine.objective import Objective
from jaxalign.engine.reductions import Totals
from jaxalign.engine.state import complete, has_critic
from jaxalign.models.completion import with_prefix
from jaxalign.models.decoder import SharingDecoder
from jaxalign.models.shared_rows import lay_rows_out, row_length
from jaxalign.records import Metrics, Params

_FINER = 8
"""Trips of an update that has no padding to leave out. With many trips little is computed that is
not there; each adds up all gradients once."""


def shared_gradients(
    model: Any,
    objective: Objective,
    params: Params,
    experience: Experience,
    totals: Totals,
    *,
    base: Params | None = None,
    micro_batches: int = 1,
) -> tuple[Params, Metrics]:
    """Gradients and metrics of an objective's loss, summed over rows that completions share.

    Args:
      model: a `SharingDecoder`.
      objective: whose loss.
      params: what is trained.
      experience: of the update.
      totals: of its mask.
      base: as in `jaxalign.engine.step.Frozen`.
      micro_batches: into how many times more trips the rows are parted, for memory.

    Returns:
      what `jax.grad(loss, has_aux=True)` gives for all rows at once; metrics have
      `places_per_token` too, the places of rows computed for a trained token.

    Raises:
      ValueError: another decoder, or a batch of which rows can't be shared.
    """
    if not isinstance(model, SharingDecoder):
        raise ValueError(
            f"packed: a {type(model).__name__} is no SharingDecoder, whose completions can share "
            "rows: leave it out"
        )
    rows, prefix = experience.rows, experience.prefix
    prompts, present = rows.prompts, rows.samples.present
    length = row_length(prompts.mask.shape[1], present.shape[1])
    places = prompts.mask.size + present.size
    mesh = getattr(model, "mesh", None)
    shards = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    each = -(-places // (_FINER * micro_batches * shards * length))
    layout = lay_rows_out(prompts.mask, present, rows=each, mesh=mesh)
    whole = functools.partial(complete, base=base)

    def loss(given: tuple[Params, Any], index: jax.Array) -> tuple[jax.Array, Metrics]:
        params, blocks = given
        mine = layout.part(index, each)
        mask = rows.mask & mine.holds
        part = Experience(dataclasses.replace(rows, mask=mask), prefix, mine)
        return objective.loss(model, opened(whole(params), blocks), part, totals)

    blocks, back = jax.vjp(lambda params: prefix_blocks(model, whole(params), prefix), params)
    trips = -(-layout.rows // each)
    (gradients, of_blocks), metrics = sum_over_trips(
        lambda index: jax.grad(loss, has_aux=True)((params, blocks), index), trips
    )
    narrow = jax.tree.map(lambda x, like: x.astype(like.dtype), of_blocks, blocks)
    gradients = jax.tree.map(jnp.add, gradients, back(narrow)[0])
    computed = trips * each * layout.source.shape[0] * length
    return gradients, metrics | {"places_per_token": computed / totals.tokens}


def prefix_blocks(model: Any, params: Params, prefix: jax.Array | None) -> tuple[Any, ...]:
    """The prefix's keys and values by the policy and by a critic's trunk; nothing without one."""
    if prefix is None or not prefix.shape[0]:
        return ()
    if not has_critic(params):
        return (model.prefix_block(params, prefix),)
    networks = params["policy"], params["critic"]["trunk"]
    return tuple(model.prefix_block(network, prefix) for network in networks)


def opened(params: Params, blocks: tuple[Any, ...]) -> Params:
    """Parameters that bring along the `prefix_blocks` of theirs."""
    if not blocks:
        return params
    if not has_critic(params):
        return with_prefix(params, blocks[0])
    policy, critic = params["policy"], params["critic"]
    trunk = with_prefix(critic["trunk"], blocks[1])
    return {"policy": with_prefix(policy, blocks[0]), "critic": critic | {"trunk": trunk}}
