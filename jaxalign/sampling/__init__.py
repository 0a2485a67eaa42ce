"""Jitted sampling with shared prompts."""

from jaxalign.records import Rollout
from jaxalign.sampling.endings import Endings
from jaxalign.sampling.host_tools import HostTool, sample_with_host_tool
from jaxalign.sampling.methods import Greedy, Method, Temperature, TopK, TopP
from jaxalign.sampling.sampler import sample
from jaxalign.sampling.stages import Stage, stage_key
from jaxalign.sampling.tools import Tool, consultation, rule_answer

__all__ = [
    "Endings",
    "Greedy",
    "HostTool",
    "Method",
    "Rollout",
    "Stage",
    "Temperature",
    "Tool",
    "TopK",
    "TopP",
    "consultation",
    "rule_answer",
    "sample",
    "sample_with_host_tool",
    "stage_key",
]
