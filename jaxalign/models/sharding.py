"""Where arrays live: one table from logical axis names to the axes of the mesh.

A model that has a mesh, `Transformer(config, mesh=mesh)`, splits its batch over `data` and `fsdp`,
its heads, hidden units and vocabulary over `tensor`, and keeps each parameter in as many parts as
`fsdp` and `tensor` make. XLA moves what a product needs (GSPMD, arXiv 2105.04663).
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxalign.host.errors import InputError

AXES = ("data", "fsdp", "tensor")
"""Axes of a mesh: copies of the model, parts of each parameter, parts of each product."""

Rules = dict[str, tuple[str, ...]]

RULES: Rules = {
    "batch": ("data", "fsdp"),
    "vocab": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "mlp": ("tensor",),
    "embed": ("fsdp",),
}
"""Of training. Logical axes that are not listed stay whole."""

DECODING: Rules = RULES | {"embed": ()}
"""Of weights while tokens are sampled: a token has too little work to gather them again for it."""


def make_mesh(
    data: int = 1, fsdp: int = 1, tensor: int = 1, *, devices: Sequence[Any] | None = None
) -> Mesh:
    """A mesh of all devices, of all processes; or of those given.

    Raises:
      InputError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes, count = (data, fsdp, tensor), len(devices)
    if min(sizes) < 1 or math.prod(sizes) != count:
        raise InputError(
            f"mesh: data x fsdp x tensor = {' x '.join(map(str, sizes))} does not make the {count} "
            "devices that there are: give --mesh sizes that do"
        )
    kinds = (jax.sharding.AxisType.Auto,) * len(AXES)
    return jax.make_mesh(sizes, AXES, axis_types=kinds, devices=devices)


def spec_of(
    shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: Mesh, rules: Rules = RULES
) -> PartitionSpec:
    """The mesh axes that each axis of an array is split over; one they do not divide stays whole.

    It is written as XLA hands it back, without axes of size 1, so that what a step returns and what
    it was given compile alike.
    """
    split = [split_of(size, axis, mesh, rules) for size, axis in zip(shape, axes, strict=True)]
    while split and not split[-1]:
        split.pop()
    return PartitionSpec(*(names[0] if len(names) == 1 else names or None for names in split))


def split_of(
    size: int, axis: str | None, mesh: Mesh | None, rules: Rules = RULES
) -> tuple[str, ...]:
    """The mesh axes that one axis of an array is split over; none without a mesh."""
    if mesh is None:
        return ()
    names = tuple(name for name in rules.get(axis or "", ()) if mesh.shape[name] > 1)
    return () if size % math.prod(mesh.shape[name] for name in names) else names


def constrain(x: jax.Array, mesh: Mesh | None, *axes: str | None) -> jax.Array:
    """Tells XLA where an array inside a compiled program lives, by the logical name of each axis.

    What can't be split, such as the one row of a shared prefix, stays whole; no mesh changes
    nothing.
    """
    if mesh is None:
        return x
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec_of(x.shape, axes, mesh)))


def batch_sharding(shape: tuple[int, ...], mesh: Mesh) -> NamedSharding:
    """Of an array whose first axis are the rows of a batch; whole where they can't be split."""
    axes = ("batch", *(None for _ in shape[1:])) if shape else ()
    return NamedSharding(mesh, spec_of(shape, axes, mesh))


def to_devices(tree: Any, mesh: Mesh | None, *, rows: bool = False) -> Any:
    """Puts arrays that every process has alike on the devices; each process keeps its own part.

    With `rows` they lie as `batch_sharding` says, else all of each goes to every device; without a
    mesh to the first device.
    """
    if mesh is None:
        return jax.tree.map(jnp.asarray, tree)

    def put(leaf: Any) -> jax.Array:
        host = np.asarray(leaf)
        sharding = (
            batch_sharding(host.shape, mesh) if rows else NamedSharding(mesh, PartitionSpec())
        )
        return jax.make_array_from_callback(host.shape, sharding, lambda part: host[part])

    return jax.tree.map(put, tree)
