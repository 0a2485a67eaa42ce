"""The plan of a training step: memory, work and messages of each device, and a bound on its time.

The step is traced and compiled as a run compiles it, for devices that are described and not there.
Memory is what XLA's compiler allots. The time is a roofline, a bound from below: of sampling and of
the rest each, the longest of

    products   FLOPs of a device / its peak
    memory     bytes that must pass through its HBM / its bandwidth
    messages   bytes that it receives / the bandwidth of its links

where sampling reads for each token the weights, the keys and values of the prompts and, on average,
half of the completions' (an embedding that is not the output projection too is only looked up), and
the rest reads and writes parameters, gradients and moments once, and an adapter's base is read
twice. FLOPs are taken to be divided
evenly, and completions to use all of `max_new_tokens`. A real step is slower: half the peak is a
good one. A message counts for sampling where its operation, or a loop around it, is named so;
weights that are gathered once for it and for the update bear the parameter's name and count for the
update.
"""

import dataclasses
import math
import re
import time
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from jaxalign.engine.state import complete, policy_of
from jaxalign.models.completion import compute_params
from jaxalign.models.layout import abstract_params, tree_shardings
from jaxalign.models.sharding import batch_sharding, spec_of
from jaxalign.models.transformer import Transformer
from jaxalign.planning.chips import Chip
from jaxalign.planning.collectives import Message, read_messages
from jaxalign.planning.flops import count_flops
from jaxalign.records import Batch, Params
from jaxalign.runs.reinforcement import Reinforcement
from jaxalign.runs.start_model import frozen_base

SAMPLING = "_sample"
"""The jitted function in which a step samples; what runs in it is named so in the program."""


@dataclasses.dataclass(frozen=True)
class Phase:
    """Sampling, or the rest of a step: work of one device, and the least time it takes.

    Attributes:
      flops: of matrix products, what is recomputed included.
      traffic: bytes that must pass through the HBM.
      messages: bytes received, by kind of collective.
    """

    flops: float
    traffic: float
    messages: dict[str, float]

    def seconds(self, chip: Chip) -> dict[str, float]:
        """The three times of the roofline."""
        return {
            "products": self.flops / chip.flops,
            "memory": self.traffic / chip.bandwidth,
            "messages": sum(self.messages.values()) / chip.link,
        }


@dataclasses.dataclass(frozen=True)
class Plan:
    """What one device of a mesh does and holds in one step.

    Attributes:
      mesh: sizes of data, fsdp and tensor.
      memory: bytes by what they are for: parameters, optimizer, frozen (the start model and the
        reference), batch (with the verifiers' tables and the layouts' padding), outputs (what is
        not written in the state's place), program (its code), and temporary, what XLA sets aside
        for everything else.
      within: bytes of known parts of the temporary memory: decoding_weights and cache while it
        samples, gradients (float32, as parts of a batch are summed) while it updates. The rest are
        activations.
      sampling: its work.
      update: the work of everything else.
      decoding_loop: collectives within the loop that adds one token.
      seconds_to_compile: on this host.
    """

    mesh: tuple[int, ...]
    memory: dict[str, int]
    within: dict[str, int]
    sampling: Phase
    update: Phase
    decoding_loop: tuple[Message, ...]
    seconds_to_compile: float

    @property
    def largest_gather_of_a_token(self) -> int:
        """Bytes of the largest all-gather in the decoding loop: a layer's weights would be many."""
        sizes = [m.result for m in self.decoding_loop if m.kind == "all-gather"]
        return max(sizes, default=0)

    @property
    def bytes(self) -> int:
        """All of it."""
        return sum(self.memory.values())

    def step_seconds(self, chip: Chip) -> float:
        """The bound on a step's time."""
        return sum(max(phase.seconds(chip).values()) for phase in (self.sampling, self.update))


class DoesNotFit(Exception):
    """The step takes more memory than a device has; the text says how much."""


def plan_step(work: Reinforcement, model: Transformer, batch: Batch) -> Plan:
    """Compiles a step ahead of time and reads its plan from the result.

    The policy's mesh holds the devices; the batch is as the run would pass it, and its values do
    not matter.

    Raises:
      DoesNotFit: it needs more memory than a device has.
    """
    mesh = model.mesh
    assert mesh is not None
    params = abstract_params(model.config, mesh)
    if model.lora.rank:
        params = jax.eval_shape(lambda params: frozen_base(model, params), params)
    state = jax.eval_shape(work.start, params)
    frozen = jax.eval_shape(work.frozen, params)
    key = jax.eval_shape(lambda: jax.random.key(0))
    arguments = _placed([state, batch, key, frozen], model)
    arguments[1] = _rows_split(arguments[1], mesh)
    begun = time.perf_counter()
    traced = work.step.whole.trace(*arguments)
    lowered = traced.lower(lowering_platforms=(mesh.devices.flat[0].platform,))
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(_excess(str(error))) from None
    seconds = time.perf_counter() - begun

    state, batch, _, frozen = arguments
    messages = read_messages(compiled.as_text())
    trips = work.sampling.max_new_tokens
    flops = count_flops(traced.jaxpr, loop_trips=trips)
    sampled = count_flops(traced.jaxpr, loop_trips=trips, inside=SAMPLING)
    analysis = compiled.memory_analysis()
    outputs = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    arguments_and_outputs = analysis.argument_size_in_bytes + outputs
    parameters, moments = _bytes(state.params), _bytes(state.opt_state)
    kept = arguments_kept = _bytes(frozen, of_model=True)
    base = 0
    if model.lora.rank:  # what scores by the start model has the base's own arrays
        base = _bytes(frozen.base)
        kept = max(base, kept - base)
    decoding, read = _decoding_bytes(model, complete(policy_of(state.params), frozen.base))
    own, context = _cache_bytes(model, work, batch)
    in_sampling = f"jit({SAMPLING})"
    of_sampling = [m for m in messages if any(in_sampling in x for x in (m.operation, *m.loops))]
    of_update = [m for m in messages if m not in of_sampling]
    loop = f"{in_sampling}/while"
    return Plan(
        mesh=tuple(mesh.devices.shape),
        memory={
            "parameters": parameters,
            "optimizer": moments,
            "frozen": kept,
            "batch": analysis.argument_size_in_bytes - parameters - moments - arguments_kept,
            "outputs": outputs,
            "program": analysis.generated_code_size_in_bytes,
            "temporary": _temporary_bytes(analysis, arguments_and_outputs),
        },
        within={
            "decoding_weights": decoding,
            "cache": own + context,
            "gradients": 4 * sum(_sizes(state.params)),
        },
        sampling=Phase(
            sampled / mesh.size,
            trips * (read + context + own / 2),
            _by_kind(of_sampling),
        ),
        update=Phase(
            (flops - sampled) / mesh.size,
            2.0 * (2 * parameters + moments + base),
            _by_kind(of_update),
        ),
        decoding_loop=tuple(m for m in messages if any(loop in around for around in m.loops)),
        seconds_to_compile=seconds,
    )


def _placed(tree: Any, model: Transformer, *, decoding: bool = False) -> Any:
    """Shapes with places: what is shaped and named like a parameter lies where it does."""
    place = lambda x, its: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=its)  # noqa: E731
    return jax.tree.map(place, tree, tree_shardings(model, tree, decoding=decoding))


def _rows_split(batch: Batch, mesh: Mesh) -> Batch:
    """The batch's shapes with the places that `Batches` gives them."""

    def place(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(
            leaf.shape, leaf.dtype, sharding=batch_sharding(leaf.shape, mesh)
        )

    rows = {"prompts": batch.prompts, "kind": batch.kind, "facts": batch.facts}
    return dataclasses.replace(batch, **jax.tree.map(place, rows))


def _bytes(tree: Any, *, of_model: bool = False) -> int:
    """Bytes of one device; of those leaves alone that belong to a model, if asked."""
    leaves = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if not of_model or any(isinstance(entry, jax.tree_util.DictKey) for entry in path)
    ]
    return sum(
        size * leaf.dtype.itemsize for size, leaf in zip(_sizes(leaves), leaves, strict=True)
    )


def _sizes(tree: Any) -> list[int]:
    """How many numbers of each array one device has."""
    return [math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree)]


def _decoding_bytes(model: Transformer, params: Params) -> tuple[int, int]:
    """The weights that one device samples with, and those of them that each token reads in full.

    `params` are what runs, an adapter with its base for one.
    """
    cast = jax.eval_shape(lambda params: compute_params(params, model.dtype), params)
    placed = _placed(cast, model, decoding=True)
    base = placed.get("base", placed)
    looked_up = 0 if model.config.tie_embeddings else _bytes(base["embed"]["embedding"])
    return _bytes(placed), _bytes(placed) - looked_up


def _cache_bytes(model: Transformer, work: Reinforcement, batch: Batch) -> tuple[int, int]:
    """Keys and values on one device: of completions, and of prompts and prefix."""
    mesh, config, sampling = model.mesh, model.config, work.sampling
    assert mesh is not None

    def block(rows: int, length: int) -> int:
        shape = (config.num_layers, rows, config.num_kv_heads, length, config.head_dim)
        spec = spec_of(shape, (None, "batch", "kv_heads", None, None), mesh)
        part = math.prod(NamedSharding(mesh, spec).shard_shape(shape))
        return 2 * part * jnp.dtype(model.dtype).itemsize

    prompts, width = batch.prompts.tokens.shape
    prefix = 0 if batch.prefix is None else batch.prefix.shape[0]
    own = block(prompts * sampling.samples_per_prompt, sampling.max_new_tokens)
    return own, block(prompts, width) + block(1, prefix)


def _by_kind(messages: Iterable[Message]) -> dict[str, float]:
    """Bytes received, by kind of collective."""
    total: dict[str, float] = {}
    for message in messages:
        total[message.kind] = total.get(message.kind, 0.0) + message.received * message.times
    return total


def _temporary_bytes(analysis: Any, arguments_and_outputs: int) -> int:
    """What XLA sets aside in a device's main memory besides arguments and outputs.

    For TPUs `temp_size_in_bytes` says more, at times more than a device has although the program
    fits (libtpu 0.0.50.1). jaxlib before 0.12, which has no other figure, compiles for no TPU here.
    """
    whole = getattr(analysis, "total_allocation_bytes", 0)
    return whole - arguments_and_outputs if whole else analysis.temp_size_in_bytes


def _excess(message: str) -> str:
    """Of the compiler's message: how much is needed and how much there is."""
    for form in (
        r"Used ([\d.]+)G of ([\d.]+)G hbm",
        r"temporaries \(([\d.]+)G\) exceeds available HBM \(([\d.]+)G\)",
    ):
        if wanted := re.search(form, message):
            return f"{wanted[1]} of {wanted[2]} GiB"
    return message.splitlines()[0]
