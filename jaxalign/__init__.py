"""Reinforcement learning that aligns language models for safety, in JAX."""
