"""Measuring an aligned model: judges, attacks, probes, rates."""
