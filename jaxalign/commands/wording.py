"""How a request is worded, as the flags of a command say."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, cast

import tyro

from jaxalign.commands.common import File
from jaxalign.host.errors import InputError

if TYPE_CHECKING:
    from jaxalign.data.rulebook import RuleBook
    from jaxalign.data.templates import Template
    from jaxalign.sampling import Tool

_TEMPLATES = ("alphaalign", "ascl", "bare", "short-code", "detailed-code", "cases")
# A plain string with the choices in the help: `messages` answers a wrong one in one line.
_TemplateName = Annotated[str, tyro.conf.arg(metavar=f"{{{','.join(_TEMPLATES)}}}")]


@dataclass(frozen=True)
class Wording:
    """How requests are put to the model."""

    template: _TemplateName = "alphaalign"
    """How to ask: alphaalign gives the instruction and worked examples that training uses; ascl
    those of its training and rules to consult; bare the request alone. CADA's arms add to
    alphaalign's instruction a short-code, a detailed-code, or the short code and cases."""
    rules: File = None
    """With ascl: the rule book (YAML), by default our own."""
    code: File = None
    """With CADA's templates: the safety code (YAML), by default our own."""
    cases: File = None
    """With cases: the worked cases (YAML), by default our own."""
    cases_per_outcome: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """With cases: how many to refuse, and as many to answer, of each hazard; by default 1."""

    def messages(self) -> tuple[Template, RuleBook | None]:
        """The template, and the rules to consult if there are any."""
        from jaxalign.data.templates import alphaalign_messages, bare_messages

        if self.template not in _TEMPLATES:
            raise InputError(
                f"--template: unknown value {self.template!r}; use {', '.join(_TEMPLATES)}"
            )
        coded = self.template in ("short-code", "detailed-code", "cases")
        for name, fits, wanted in (
            ("rules", self.template == "ascl", "ascl"),
            ("code", coded, "short-code, detailed-code or cases"),
            ("cases", self.template == "cases", "cases"),
            ("cases_per_outcome", self.template == "cases", "cases"),
        ):
            if getattr(self, name) is not None and not fits:
                flag = f"--{name.replace('_', '-')}"
                raise InputError(
                    f"{flag} goes with --template {wanted}, not with {self.template}; leave it out"
                )
        if self.template == "ascl":
            return self._consulting()
        if coded:
            return self._coded(), None
        return alphaalign_messages if self.template == "alphaalign" else bare_messages, None

    def _consulting(self) -> tuple[Template, RuleBook]:
        from jaxalign.data.rulebook import builtin_rules, load_rules
        from jaxalign.data.templates import consulting_messages
        from jaxalign.sampling import rule_answer

        book = builtin_rules() if self.rules is None else load_rules(self.rules)
        answer = functools.partial(rule_answer, book.rules)
        return consulting_messages(list(book.rules), answer), book

    def _coded(self) -> Template:
        from jaxalign.data.casebook import ContextName, context_text
        from jaxalign.data.templates import coded_messages

        each = 1 if self.cases_per_outcome is None else self.cases_per_outcome
        if each < 1:
            raise InputError(f"--cases-per-outcome is {each}; use 1 or more")
        name = cast("ContextName", self.template)
        return coded_messages(
            context_text(name, code=self.code, cases=self.cases, cases_per_outcome=each)
        )


def tool_of(book: RuleBook | None, tokenizer: Any) -> Tool | None:
    """The tool that consults the rules; None without any."""
    from jaxalign.sampling import consultation

    try:
        return None if book is None else consultation(book.rules, tokenizer)
    except ValueError as error:
        raise InputError(f"tokenizer: {error}; use another model") from error
