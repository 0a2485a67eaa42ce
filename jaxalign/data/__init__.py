"""Prompts for training and evaluation, our own and the user's, and rules to consult."""

from jaxalign.data.prompts import (
    CATEGORIES,
    KINDS,
    Kind,
    Prompt,
    batch_at,
    builtin_prompts,
    near_duplicates,
)
from jaxalign.data.rulebook import RuleBook, builtin_rules, load_rules
from jaxalign.data.sources import load_all, load_prompts

__all__ = [
    "CATEGORIES",
    "KINDS",
    "Kind",
    "Prompt",
    "RuleBook",
    "batch_at",
    "builtin_prompts",
    "builtin_rules",
    "load_all",
    "load_prompts",
    "load_rules",
    "near_duplicates",
]
