"""Short reasoning: AlphaAlign's reward, and Kimi k1.5's length reward (arXiv 2501.12599) on top.

    python experiments/short_reasoning.py demo
    python experiments/short_reasoning.py demo --run runs/long --length-weight 0    # without it

    λ = 1/2 − (l − min l) / (max l − min l)    of a prompt's completions, l tokens of reasoning each
    R_l = λ if the completion is right, min(λ, 0) if not; 0 for all where they are equally long

Theirs measures the whole response to a problem, ours the reasoning alone; a completion is right if
it is well-formed and refuses exactly what is harmful. docs/your-own-method.md goes through it.
"""

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from jaxalign.data import Prompt
from jaxalign.data.templates import alphaalign_messages
from jaxalign.host.errors import InputError
from jaxalign.host.fields import Weight
from jaxalign.methods.alphaalign.reward import Rewarded
from jaxalign.records import KINDS, Batch, Rollout, of_rows
from jaxalign.rewards import REASONING_TAGS, Span, Verifiers, device_reward
from jaxalign.runs.choices import FLAT
from jaxalign.runs.recipe import Recipe
from jaxalign.runs.script import main_of
from jaxalign.runs.settings import RL, Settings


@dataclasses.dataclass(frozen=True)
class ShortReasoning(Settings):
    """Settings of a run."""

    run: Path = Path("runs/short-reasoning")
    """Run folder to write."""
    rl: Annotated[RL, FLAT] = RL()
    """How it learns from rewards."""
    rewarded: Annotated[Rewarded, FLAT] = Rewarded()
    """AlphaAlign's reward."""
    length_weight: Weight = 0.5
    """Weight of the length reward; 0 leaves AlphaAlign's."""

    def check(self) -> None:
        """Also that a prompt's completions can be compared."""
        super().check()
        if self.length_weight and self.rl.samples_per_prompt == 1:
            raise InputError(
                "samples_per_prompt=1: the length reward compares the samples of a prompt: take 2 "
                "or more, or --length-weight 0"
            )


PRESETS = {"demo": ShortReasoning()}  # SmolLM2-135M on two CPU cores


def length_reward(lengths: jax.Array, right: jax.Array) -> jax.Array:
    """R_l, `[N, G]`, of the lengths of N groups and whether each of their members is right."""
    least, most = lengths.min(1, keepdims=True), lengths.max(1, keepdims=True)
    value = jnp.where(most > least, 0.5 - (lengths - least) / jnp.maximum(most - least, 1), 0.0)
    return jnp.where(right, value, jnp.minimum(value, 0.0))


def short(verifiers: Verifiers, reasoning: Span, batch: Batch, samples: Rollout) -> jax.Array:
    """R_l of completions: a function of arrays, which runs inside the compiled step."""
    said = samples.readable(samples.mask)
    verdict = verifiers(samples.tokens, said)
    harmful = of_rows(batch.kind, samples) == KINDS.index("harmful")
    right = verdict.well_formed & (verdict.refused == harmful)
    lengths = reasoning(samples.tokens, said).sum(axis=1)
    groups = (batch.prompts.tokens.shape[0], -1)
    return length_reward(lengths.reshape(groups), right.reshape(groups))


def build(settings: ShortReasoning, model: Any, tokenizer: Any, prompts: list[Prompt]) -> Recipe:
    """AlphaAlign's reward and how its prompts are asked, with the length reward on top."""
    recipe = settings.rewarded.recipe(alphaalign_messages, settings, model, tokenizer, prompts)
    verifiers = settings.rewarded.verifiers(tokenizer)
    reasoning = Span.of(tokenizer, REASONING_TAGS)
    added = settings.length_weight * device_reward(short, "short", verifiers, reasoning)
    return dataclasses.replace(recipe, reward=lambda start: recipe.reward(start) + added)


main = main_of("short_reasoning", PRESETS, build, __doc__)

if __name__ == "__main__":
    raise SystemExit(main())
