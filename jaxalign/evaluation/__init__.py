"""Measuring an aligned model and reporting on a run."""

from jaxalign.evaluation.report import write_report
from jaxalign.evaluation.statistics import wilson_interval

__all__ = ["wilson_interval", "write_report"]
