"""Prompts for training and evaluation: our own, the user's, and the batches made of them."""

from jaxalign.data.prompts import (
    CATEGORIES,
    KINDS,
    Kind,
    Prompt,
    batch_at,
    builtin_prompts,
    near_duplicates,
)
from jaxalign.data.sources import load_prompts

__all__ = [
    "CATEGORIES",
    "KINDS",
    "Kind",
    "Prompt",
    "batch_at",
    "builtin_prompts",
    "load_prompts",
    "near_duplicates",
]
