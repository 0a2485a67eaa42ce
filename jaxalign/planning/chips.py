"""TPU chips as their makers publish them, and slices of them that are described, not there."""

import dataclasses
import importlib.util
import os
from typing import Any

import jax

from jaxalign.host.errors import InputError


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published figures of one chip.

    Attributes:
      flops: peak of bfloat16 products, FLOP/s.
      memory: HBM, bytes; some of it is the system's.
      bandwidth: of the HBM, bytes/s.
      link: of all its interchip links together, one way, bytes/s.
      slices: the topologies that are offered, small ones first.
    """

    flops: float
    memory: float
    bandwidth: float
    link: float
    slices: tuple[str, ...]


GIB = 2**30

_SQUARES = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")

CHIPS = {
    "v5e": Chip(197e12, 16 * GIB, 819e9, 200e9, _SQUARES),
    "v5p": Chip(
        459e12,
        95 * GIB,
        2765e9,
        600e9,
        ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    ),
    "v6e": Chip(918e12, 32 * GIB, 1600e9, 400e9, _SQUARES),
}
"""Source: Google Cloud's pages "TPU v5e", "TPU v5p" and "TPU v6e", read in November 2026. Links are
given there in Gbit/s of a chip: 1600, 4800 and 3200."""


def chip_of(topology: str) -> Chip:
    """The chip of a topology such as `v5e:4x4`.

    Raises:
      InputError: another generation, or a slice that is not offered.
    """
    generation, _, shape = topology.partition(":")
    if generation not in CHIPS:
        raise InputError(
            f"--topology {topology!r}: unknown TPU {generation!r}; use one of {', '.join(CHIPS)}"
        )
    chip = CHIPS[generation]
    if ":" in topology and shape not in chip.slices:
        raise InputError(
            f"--topology {topology!r}: there is no such slice of {generation}; use "
            f"{', '.join(f'{generation}:{name}' for name in chip.slices)}"
        )
    return chip


def slice_devices(topology: str) -> list[Any]:
    """Devices of a slice such as `v5e:4x4` that programs are compiled for, on any host.

    Raises:
      InputError: no such slice, or the compiler (the package libtpu) is not installed.
    """
    chip_of(topology)
    if importlib.util.find_spec("libtpu") is None:
        raise InputError(
            "compiling for TPUs takes the package libtpu (about 200 MB; it needs no TPU): "
            "pip install -c constraints.txt -e '.[tpu]' in the clone"
        )
    # It would ask the metadata server of a TPU VM, which is not there, and complain at length.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    # No TPU is opened, so two plans, or a plan beside a run, need no lock.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    return list(topologies.get_topology_desc(platform="tpu", topology_name=topology).devices)


def use_cpu() -> None:
    """Keeps JAX off whatever accelerator there is: planning computes nothing."""
    jax.config.update("jax_platforms", "cpu")
