"""Times the demo's update on completions of unequal lengths, in their own rows and in shared ones.

    python experiments/benchmarks/padding.py
    python experiments/benchmarks/padding.py --share 0.25 --max-new-tokens 256 --prompts 16

Lengths are drawn from a normal distribution, a quarter of its mean wide, and cut to 1 to T; tokens
are random, for their values cost nothing. Places are what an update computes: of prompts and
completions, padding included, without the prefix, which is computed once either way.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from timing import best, first_batch, print_setting

from jaxalign.data.templates import alphaalign_messages
from jaxalign.engine.experience import experience_of
from jaxalign.engine.objective import GRPO
from jaxalign.engine.state import init_state
from jaxalign.engine.step import update_once
from jaxalign.host.command import run_command
from jaxalign.models import load_pretrained
from jaxalign.models.precision import named_dtype
from jaxalign.records import Rollout


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to time."""

    model: str = "smollm2"
    """As for load_pretrained."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Compute dtype; auto takes the faster one in a probe."""
    prompts: int = 64
    """N, a multiple of 4."""
    samples_per_prompt: int = 1
    """G."""
    max_new_tokens: int = 80
    """T."""
    max_prompt_tokens: int = 64
    """P, beyond the prefix."""
    share: float = 0.67
    """Mean length of a completion, as a share of T."""
    repeats: int = 2
    """Runs after the compiling one; the fastest counts."""


def main(settings: Settings) -> None:
    """Prints the table."""
    dtype, _ = named_dtype(settings.dtype)
    model, params, tokenizer = load_pretrained(settings.model, dtype=dtype, remat="dots")
    _, batch = first_batch(
        tokenizer, alphaalign_messages, settings.prompts, settings.max_prompt_tokens
    )
    rng, new = np.random.default_rng(0), settings.max_new_tokens
    rows = settings.prompts * settings.samples_per_prompt
    mean = settings.share * new
    lengths = np.clip(rng.normal(mean, mean / 4, rows).round(), 1, new)
    mask = jnp.asarray(np.arange(new) < lengths[:, None])
    tokens = jnp.asarray(rng.integers(model.config.vocab_size, size=mask.shape), jnp.int32)
    none, logps = jnp.zeros(rows, bool), jnp.full(mask.shape, -10.0)
    samples = Rollout(tokens, mask, mask, logps, none.astype(jnp.int32), ~none, none)
    advantages = jnp.asarray(rng.normal(size=rows), jnp.float32)
    experience = experience_of(batch, samples, advantages)
    optimizer = optax.adamw(1e-5)
    held = [init_state(params, optimizer)]
    del params  # every update takes the place of the state before

    @functools.partial(jax.jit, donate_argnums=0, static_argnums=2)
    def update(state: Any, experience: Any, packed: bool) -> Any:
        return update_once(model, optimizer, GRPO(), state, experience, packed=packed)

    def run(packed: bool) -> Any:
        held[0], metrics = update(held[0], experience, packed)
        return metrics

    print_setting(dtype, settings)
    prompt_tokens, drawn = int(batch.prompts.mask.sum()), int(mask.sum())
    print(f"{drawn} tokens drawn, {prompt_tokens} of prompts, prefix {batch.prefix.size}")
    print(f"{'rows':12}{'seconds':>9}{'places':>9}{'a token':>9}")
    alone, _ = best(lambda: run(False), settings.repeats)
    places = batch.prompts.mask.size + mask.size
    print(f"{'their own':12}{alone:9.2f}{places:9}{places / drawn:9.2f}")
    shared, metrics = best(lambda: run(True), settings.repeats)
    each = float(metrics["places_per_token"])
    print(f"{'shared':12}{shared:9.2f}{round(each * drawn):9}{each:9.2f}")
    print(f"shared rows: the update is {alone / shared:.2f} times as fast")


if __name__ == "__main__":
    run_command("padding", Settings, main, __doc__)
