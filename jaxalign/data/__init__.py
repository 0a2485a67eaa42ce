"""Prompts, rules to consult, a safety code and cases: our own, and the user's."""

from jaxalign.data.casebook import (
    Case,
    Code,
    builtin_cases,
    builtin_code,
    code_text,
    context_text,
    load_cases,
    load_code,
    pick_cases,
)
from jaxalign.data.prompts import (
    CATEGORIES,
    KINDS,
    Kind,
    Prompt,
    Request,
    batch_at,
    builtin_prompts,
    near_duplicates,
)
from jaxalign.data.rulebook import RuleBook, builtin_rules, load_rules
from jaxalign.data.sources import load_all, load_prompts, load_requests

__all__ = [
    "CATEGORIES",
    "KINDS",
    "Case",
    "Code",
    "Kind",
    "Prompt",
    "Request",
    "RuleBook",
    "batch_at",
    "builtin_cases",
    "builtin_code",
    "builtin_prompts",
    "builtin_rules",
    "code_text",
    "context_text",
    "load_all",
    "load_cases",
    "load_code",
    "load_prompts",
    "load_requests",
    "load_rules",
    "near_duplicates",
    "pick_cases",
]
