"""What a training step needs on a TPU slice, found out by compiling it without one."""

from jaxalign.planning.chips import CHIPS, Chip, slice_devices
from jaxalign.planning.compiled_step import Plan, plan_step

__all__ = ["CHIPS", "Chip", "Plan", "plan_step", "slice_devices"]
