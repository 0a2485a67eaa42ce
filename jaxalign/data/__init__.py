"""Prompts, public suites, rules to consult, a safety code and cases: our own, and the user's."""

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
)
from jaxalign.data.rulebook import RuleBook, builtin_rules, load_rules
from jaxalign.data.sources import load_all, load_prompts, load_requests
from jaxalign.data.suites import SUITES, Suite, load_suite

__all__ = [
    "CATEGORIES",
    "KINDS",
    "SUITES",
    "Case",
    "Code",
    "Kind",
    "Prompt",
    "Request",
    "RuleBook",
    "Suite",
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
    "load_suite",
    "pick_cases",
]
