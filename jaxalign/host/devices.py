"""Which devices JAX looks for."""

import importlib.util
from pathlib import Path

import jax

GOOGLE = "0x1ae0"
"""The vendor of a TPU on the PCI bus."""


def skip_absent_tpu() -> None:
    """Has JAX take the CPU where there is libtpu without a TPU, as on a machine that plans.

    JAX finds the CPU by itself, but only after libtpu has written a page of errors about it. A
    platform that was chosen before stays, and so does the choice where JAX's CUDA parts are
    installed. Ours.
    """
    if getattr(jax.config, "jax_platforms", None) or importlib.util.find_spec("libtpu") is None:
        return
    if any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        return
    vendors = Path("/sys/bus/pci/devices").glob("*/vendor")
    if GOOGLE not in {vendor.read_text().strip() for vendor in vendors}:
        jax.config.update("jax_platforms", "cpu")
