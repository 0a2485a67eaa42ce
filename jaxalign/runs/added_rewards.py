"""Rewards that a user adds to a script's own: `--add-reward mine.py:short=0.1`.

A function whose parameters are called `batch` and `samples` is JAX: it gets arrays and runs inside
the compiled step. Any other function of two parameters is Python: it gets two lists of texts, the
requests and the completions, and returns a number for each; it runs between two compiled programs.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.data.prompts import Prompt
from jaxalign.host.errors import InputError
from jaxalign.host.processes import are_several
from jaxalign.host.user_functions import guarded, in_short, load_function, scoring_texts
from jaxalign.records import Batch, Rollout
from jaxalign.rewards.terms import Reward, Sum, device_reward, host_reward
from jaxalign.runs.facts import prompts_of
from jaxalign.text.encoding import decode

FLAG = "--add-reward"

RESERVED = (
    *("prompt", "conversation", "kind", "completion", "step", "reward", "nonfinite"),
    *("safety", "helpfulness", "well_formed", "refused", "whole", "called_harmful"),
    *("form", "named", "verdict", "agreement", "quality"),
)
"""Names that transcripts and the scripts' own terms have already."""


def load_added_rewards(
    specs: Sequence[str], tokenizer: Any, prompts: Sequence[Prompt]
) -> Callable[[Any], Reward]:
    """Loads what flags name; the result adds it to a script's own reward.

    Args:
      specs: FILE.py:FUNCTION=WEIGHT, each.
      tokenizer: the policy's.
      prompts: of the run.

    Raises:
      InputError: one that cannot be loaded, without a weight, with other parameters, or on the host
        in one of several processes; two of one name.
    """
    added: list[Any] = [_load(spec, tokenizer, prompts) for spec in specs]
    names = [split_weight(spec)[0].rpartition(":")[2] for spec in specs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(
            f"{FLAG}: two functions are called {', '.join(sorted(twice))}, and metrics are named "
            "after them: rename one"
        )
    return lambda reward: sum(added, reward)


def _load(spec: str, tokenizer: Any, prompts: Sequence[Prompt]) -> Sum:
    place, weight = split_weight(spec)
    function, name = load_function(place, FLAG), place.rpartition(":")[2]
    of_arrays = guarded(function, f"{FLAG} {place}")
    of_texts = scoring_texts(function, f"{FLAG} {place}")

    def score_arrays(batch: Batch, samples: Rollout) -> jax.Array:
        returned = of_arrays(batch, samples)
        rows, asked = samples.tokens.shape[0], batch.prompts.tokens.shape[0]
        try:
            values = jnp.asarray(returned, jnp.float32)
            found = f"the shape {values.shape}"
        except Exception:  # JAX says in several ways that something is no array
            values, found = jnp.zeros(()), in_short(returned)
        if values.shape not in ((rows,), (asked, rows // asked)):
            raise InputError(
                f"{FLAG} {place}: it returned {found} for {rows} completions; return one number "
                "for each"
            )
        return values

    def score_texts(batch: Any, samples: Any) -> np.ndarray:
        requests = [prompt.text for prompt in prompts_of(batch, samples, prompts)]
        rows = zip(samples.tokens, samples.readable(samples.present), strict=True)
        return of_texts(requests, [decode(tokenizer, tokens, there) for tokens, there in rows])

    if _parameters(place, function) == ["batch", "samples"]:
        return weight * device_reward(score_arrays, name)
    if are_several():
        raise InputError(
            f"{FLAG} {spec}: a function of texts runs in one process only: leave --processes out, "
            "or write it for arrays, as (batch, samples)"
        )
    return weight * host_reward(score_texts, name)


def split_weight(spec: str) -> tuple[str, float]:
    """FILE.py:FUNCTION and WEIGHT of a spec.

    Raises:
      InputError: no weight, none that is a number, or a function of a reserved name.
    """
    place, _, weight = spec.rpartition("=")
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not place or not math.isfinite(number):
        raise InputError(f"{FLAG} {spec}: give FILE.py:FUNCTION=WEIGHT, such as mine.py:short=0.1")
    if (name := place.rpartition(":")[2]) in RESERVED:
        raise InputError(f"{FLAG} {spec}: something is called {name} already: rename the function")
    return place, number


def _parameters(place: str, function: Callable[..., Any]) -> list[str]:
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        names = []
    if len(names) != 2:
        raise InputError(
            f"{FLAG} {place}: it takes {len(names)} arguments; write it as (batch, samples) for "
            "arrays inside the step, or as (requests, completions) for texts"
        )
    return names
