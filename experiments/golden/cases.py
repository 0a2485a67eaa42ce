"""What the golden comparison runs: cases, sizes and seeds as plain data that knows no jaxalign."""

import collections
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

FACTORS: dict[str, tuple[Any, ...]] = {
    "algorithm": ("grpo", "shrinkage", "rloo", "reinforce++", "ppo", "kl", "ascl", "cada"),
    "path": ("fused", "split"),
    "micro_batches": (1, 2),
    "devices": (1, 8),
}
"""What is combined. "split" is the step that leaves the device between rollout and reward."""

MESH = {"data": 2, "fsdp": 2, "tensor": 2}
"""Of eight devices."""

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "num_layers": 2,
    "model_dim": 16,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 6,
    "mlp_dim": 24,
    "max_positions": 64,
}
"""The tiny decoder; every size that is split divides by 2, the output is the embedding table."""

PROMPTS, SAMPLES, PROMPT_TOKENS, QUESTION_TOKENS = 8, 4, 5, 6
"""N prompts, G samples of each, and the widths that prompts and bare questions are padded to."""

KINDS = (0, 0, 0, 0, 1, 1, 2, 2)
"""Harmful, benign, look-alike: indices of each prompt's kind, the harmful ones first."""

PREFIX = (5, 6, 7)
STOP_TOKENS = ("$", "t")
TEMPERATURE = 0.9
STEPS = 3
LEARNING_RATE, CRITIC_LEARNING_RATE = 0.005, 0.005
"""Small enough that rounding stays rounding: at 0.1 two epochs of PPO turn an error of 1e-6 into
other tokens."""
GRADIENT_RATE = 2.0**16
"""Of the step that tells a gradient: (before − after) / rate. At 1 the gradient would be rounded to
the last bit of the parameters, which are far larger; a power of two divides without rounding."""

SEED = 7
RULES = {"a": "No.", "bb": "Be kind."}
WELL_FORMED = "[abc]"
"""Pattern of what the format reward pays, which a random model meets now and then."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What one algorithm is made of.

    Attributes:
      settings: constants of the algorithm, by f049777's names; micro-batches are the case's.
      reward: "alphaalign", "ascl", or "even", the share of even tokens.
      helpfulness: weight of alphaalign's helpfulness; 0 leaves it out.
      balance: whether the reward weighs refusals by the sides' errors.
      host: what the split path does on the host: "texts", score the answers' texts; "even", compute
        the reward; "pass", fetch the rollout and change nothing.
      ifpo: constants of IFPO, or None.
      reference: "start", the weights before training; "other"; or None for no KL.
      max_new_tokens: T.
    """

    settings: dict[str, Any]
    reward: str = "alphaalign"
    helpfulness: float = 0.0
    balance: bool = False
    host: str = "pass"
    ifpo: dict[str, Any] | None = None
    reference: str | None = None
    max_new_tokens: int = 8


RECIPES = {
    "grpo": Recipe({"baseline": "group"}, helpfulness=0.3, host="texts"),
    "shrinkage": Recipe(
        {"baseline": "shrinkage", "clip_high": 0.28}, helpfulness=1.0, balance=True
    ),
    "rloo": Recipe(
        {"baseline": "leave_one_out", "aggregation": "sequence_mean"}, reward="even", host="even"
    ),
    "reinforce++": Recipe({"baseline": "batch", "epochs": 2}, helpfulness=0.3),
    "ppo": Recipe(
        {"baseline": "critic", "epochs": 2, "minibatches": 2, "value_clip": 0.002},
        reward="even",
        host="even",
    ),
    "kl": Recipe({"baseline": "group", "kl_coefficient": 0.1}, reference="other"),
    "ascl": Recipe(
        {"baseline": "shrinkage"},
        reward="ascl",
        balance=True,
        ifpo={"form": "weight", "max_weight": 4.0},
        max_new_tokens=20,
    ),
    "cada": Recipe({"baseline": "group", "kl_coefficient": 0.02}, reference="start"),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One value of each of `FACTORS`."""

    algorithm: str
    path: str
    micro_batches: int
    devices: int

    @property
    def name(self) -> str:
        """Of its file and its line in the table."""
        return f"{self.algorithm}-{self.path}-micro{self.micro_batches}-devices{self.devices}"

    @property
    def recipe(self) -> Recipe:
        """What its algorithm is made of."""
        return RECIPES[self.algorithm]


_Pair = tuple[int, Any, int, Any]


def _pairs(row: Sequence[Any]) -> set[_Pair]:
    """The pairs of values, each with its factor, that a combination holds."""
    return {(i, row[i], j, row[j]) for i, j in itertools.combinations(range(len(row)), 2)}


def pairwise(factors: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """Combinations in which every pair of values of two factors occurs: greedy, none at random.

    Of those that add most pairs it takes the one whose pairs were chosen least so far, so that no
    two factors go together more than they must.
    """
    every = list(itertools.product(*factors))
    missing = set().union(*map(_pairs, every))
    chosen: list[tuple[Any, ...]] = []
    seen: collections.Counter[_Pair] = collections.Counter()

    def worth(row: tuple[Any, ...]) -> tuple[int, int]:
        return len(_pairs(row) & missing), -sum(seen[pair] ** 2 for pair in _pairs(row))

    while missing:
        best = max(every, key=worth)
        chosen.append(best)
        seen.update(_pairs(best))
        missing -= _pairs(best)
    return chosen


CASES = [Case(*row) for row in sorted(pairwise(list(FACTORS.values())), key=str)]
assert set().union(*(_pairs(dataclasses.astuple(case)) for case in CASES)) == set().union(
    *map(_pairs, itertools.product(*FACTORS.values()))
), "a pair of values does not occur"


def named(patterns: Sequence[str]) -> list[Case]:
    """The cases whose name holds one of the patterns; all of them for no pattern."""
    return [case for case in CASES if not patterns or any(p in case.name for p in patterns)]
