"""What comparisons of many runs have in common: what is asked, the dtype, what all points share."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jaxalign.data import Prompt, load_all
from jaxalign.data.order import evenly
from jaxalign.host.errors import InputError
from jaxalign.host.json_files import read_json, write_json
from jaxalign.models.precision import fastest_dtype


def load_suites(suites: Sequence[str], limit: int) -> dict[str, list[Prompt]]:
    """Prompts by suite, of each kind at most `limit`, evenly spread over it.

    Args:
      suites: NAME=SPEC or NAME=KIND=SPEC each (`jaxalign.data.load_all`).
      limit: at least 1.

    Raises:
      InputError: a suite without a name, or two of one name.
    """
    loaded: dict[str, list[Prompt]] = {}
    for given in suites:
        name, equals, spec = given.partition("=")
        if not equals:
            raise InputError(f"suites: {given!r} has no name; give NAME=SPEC")
        if name in loaded:
            raise InputError(f"suites: two are named {name}; give each a name of its own")
        prompts = load_all([spec])
        loaded[name] = [
            prompt
            for kind in dict.fromkeys(prompt.kind for prompt in prompts)
            for prompt in evenly([p for p in prompts if p.kind == kind], limit)
        ]
    return loaded


def resolve_dtype(dtype: str, out: Path) -> str:
    """With auto, the dtype of the comparison that is there, else the faster one, for all points.

    Raises:
      InputError: an unknown dtype.
    """
    kept = out / "comparison.json"
    if dtype not in ("auto", "bfloat16", "float32"):
        raise InputError(f"dtype: unknown value {dtype!r}; use auto, bfloat16 or float32")
    if dtype != "auto":
        return dtype
    if kept.exists():
        return str(read_json(kept)["dtype"])
    return str(jnp.dtype(fastest_dtype()[0]).name)


def keep_shared(out: Path, shared: Mapping[str, Any]) -> None:
    """Notes what all points share; refuses to add to a comparison that shares something else.

    Where no point has begun there is nothing to add to: after a mistyped model, say.

    Raises:
      InputError: names what is another, or a folder that cannot be made.
    """
    values = json.loads(json.dumps(shared, default=str))
    kept = out / "comparison.json"
    begun = any(path.is_file() for path in out.glob("*/*")) or any(out.glob("*.jsonl"))
    theirs = read_json(kept) if kept.exists() and begun else values
    for name, value in values.items():
        if theirs.get(name) != value:
            raise InputError(f"{kept}: {name} is another; give the same, or another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"out: {out} cannot be made ({error.strerror}); give another") from error
    write_json(kept, values)
