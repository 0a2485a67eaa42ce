"""Stand-in until the attacks' own file is merged."""

import dataclasses
from collections.abc import Callable

from jaxalign.data.prompts import Prompt
from jaxalign.errors import InputError


@dataclasses.dataclass(frozen=True)
class Attacked:
    """One request as the attacker sends it."""

    text: str
    opening: str = ""


@dataclasses.dataclass(frozen=True)
class Attack:
    """One attack."""

    name: str
    apply: Callable[[Prompt], list[Attacked]]
    opening_tokens: int | None = None


def make_attack(spec: str) -> Attack:
    """An attack by its spec."""
    if spec == "none":
        return Attack("none", lambda prompt: [Attacked(prompt.text)])
    raise InputError(f"--attack: unknown {spec!r}; use none")
