"""The noise of each stage of a run: one seed, and a number of its own for every stage.

Without it the third batch of self-generation and the third step of training would draw alike.
"""

import enum

import jax


class Stage(enum.IntEnum):
    """What draws; the numbers are part of what a seed means."""

    TRAINING = 1
    COLD_START = 2
    SELF_GENERATION = 3
    ANSWERS = 4
    UTILITY = 6
    SPEED = 7
    ADAPTERS = 8


def stage_key(seed: int, stage: Stage) -> jax.Array:
    """The key of a stage, `fold_in(key(seed), stage)`."""
    return jax.random.fold_in(jax.random.key(seed), int(stage))
