"""Jitted sampling with shared prompts."""

from jaxalign.sampling.methods import Greedy, Method, Temperature, TopK, TopP
from jaxalign.sampling.sampler import Rollout, sample
from jaxalign.sampling.tools import Tool, consultation

__all__ = [
    "Greedy",
    "Method",
    "Rollout",
    "Temperature",
    "Tool",
    "TopK",
    "TopP",
    "consultation",
    "sample",
]
