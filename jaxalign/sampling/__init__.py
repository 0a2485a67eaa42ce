"""Jitted sampling with shared prompts."""

from jaxalign.sampling.methods import Greedy, Method, Temperature, TopK, TopP
from jaxalign.sampling.sampler import Rollout, sample

__all__ = ["Greedy", "Method", "Rollout", "Temperature", "TopK", "TopP", "sample"]
