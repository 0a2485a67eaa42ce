"""Rewards that add up: `safety + 0.3 * helpfulness + 0.1 * mine`.

A reward is a registered pytree that is called as `(batch, samples) -> Score`: the arrays it needs
travel in it, as arguments of the compiled step and never as constants of the program. A part that
Python computes, from texts or whatever else, is a node of that pytree, `HostValues`, wherever it
stands: the step calls it between two compiled programs and puts `GivenValues` in its place.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.host.errors import InputError
from jaxalign.host.user_functions import guarded, numbers_of
from jaxalign.records import Batch, Credit, Metrics, Rollout, Score


class Reward(Protocol):
    """A registered pytree that says what completions are worth."""

    def __call__(self, batch: Batch, samples: Rollout) -> Score:
        """The `Score` of B = N·G completions; jit-able."""


class Addable:
    """Adds `+` and `*` to a reward; a weight that is a Python number is static, an array a leaf."""

    def __add__(self, other: Any) -> "Sum":
        return Sum((*_terms_of(self), *_terms_of(other)))

    def __radd__(self, zero: int) -> Any:
        """What `sum([a, b])` starts with."""
        return self if zero == 0 else NotImplemented

    def __mul__(self, weight: float | jax.Array) -> "Sum":
        return Sum(tuple(Weighted(x.reward, weight * x.weight) for x in _terms_of(self)))

    __rmul__ = __mul__


@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, eq=False)
class Weighted:
    """A reward and its weight in a `Sum`.

    Attributes:
      reward: what is weighed.
      weight: a Python number, which is part of the program, or a scalar array, which is an argument
        of it and may change from step to step.
    """

    reward: Any
    weight: float | jax.Array = 1.0

    def tree_flatten_with_keys(self):  # noqa: D102
        reward = (jax.tree_util.GetAttrKey("reward"), self.reward)
        if isinstance(self.weight, int | float):
            return (reward,), self.weight
        return (reward, (jax.tree_util.GetAttrKey("weight"), self.weight)), None

    @classmethod
    def tree_unflatten(cls, weight, children):  # noqa: D102
        return cls(*children) if weight is None else cls(children[0], weight)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Sum(Addable):
    """Σ_k w_k R_k, made by adding and scaling rewards.

    The outcome is that of the first term, which is what the run is about; names of terms, details
    and metrics are those of all of them.
    """

    terms: tuple[Weighted, ...]

    def __call__(self, batch: Batch, samples: Rollout) -> Score:
        """The `Score` of the sum.

        Raises:
          InputError: two terms, details or metrics of one name.
        """
        scores = [term.reward(batch, samples) for term in self.terms]
        for field in ("terms", "details", "metrics"):
            names = [name for score in scores for name in getattr(score, field)]
            if twice := {name for name in names if names.count(name) > 1}:
                named = ", ".join(sorted(twice))
                raise InputError(f"two {field} of a reward are called {named}: rename one of them")
        pairs = list(zip(self.terms, scores, strict=True))
        total: Any = sum(term.weight * score.rewards for term, score in pairs)
        join = lambda field: {k: v for s in scores for k, v in getattr(s, field).items()}  # noqa: E731
        first = scores[0]
        outcome = first.rewards if first.outcome is None else first.outcome
        credit = _join_credits([(term.weight, score) for term, score in pairs])
        return Score(total, outcome, join("terms"), join("details"), join("metrics"), credit)


def _join_credits(weighted: list[tuple[Any, Score]]) -> Credit | None:
    """The credit of a sum; what a term without one gives, all parts earn."""
    dividing = [x.credit for _, x in weighted if x.credit and x.credit.part is not None]
    if not dividing:
        return None
    if len(dividing) > 1:
        raise InputError("two terms of a reward divide completions in parts: let one of them do")
    parts = len(dividing[0].rewards)

    def earned(score: Score) -> jax.Array:
        if score.credit is None:
            return jnp.broadcast_to(score.rewards, (parts, *score.rewards.shape))
        if score.credit.part is not None:
            return score.credit.rewards
        earlier, last = score.credit.rewards
        return jnp.stack([*[earlier] * (parts - 1), last])

    total: Any = sum(weight * earned(score) for weight, score in weighted)
    return Credit(total, dividing[0].part)


def _terms_of(reward: Any) -> tuple[Weighted, ...]:
    leaves = jax.tree.leaves(reward)
    if len(leaves) == 1 and leaves[0] is reward:
        raise TypeError("only rewards add up: wrap a function by device_reward or host_reward")
    return reward.terms if isinstance(reward, Sum) else (Weighted(reward),)


# --- functions of the user's ----------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class FunctionReward(Addable):
    """See `device_reward` and `host_reward`; `function`, a pytree, gives each row its value."""

    function: Any
    name: str = dataclasses.field(metadata={"static": True})

    def __call__(self, batch: Batch, samples: Rollout) -> Score:
        """The `Score` of what the function returns."""
        rows, prompts = samples.tokens.shape[0], batch.prompts.tokens.shape[0]
        values = jnp.asarray(self.function(batch, samples), jnp.float32)
        if values.shape not in ((rows,), (prompts, rows // prompts)):
            raise ValueError(
                f"the reward {self.name} has the shape {values.shape}: return one number for each "
                f"of the {rows} completions"
            )
        return term_score(self.name, values.reshape(prompts, -1))


def device_reward(
    function: Callable[..., jax.Array], name: str | None = None, *given: Any
) -> FunctionReward:
    """A reward of a function of arrays, which runs inside the compiled step.

    Args:
      function: `(*given, batch, samples) -> [B]` or `[N, G]`, jit-able. It is compared by identity:
        the same object at every step, or each step compiles anew.
      name: of the term in metrics; by default the function's.
      *given: pytrees that the function needs, such as `Verifiers`: they travel in the reward.
    """
    return FunctionReward(jax.tree_util.Partial(function, *given), name or function.__name__)


def host_reward(
    function: Callable[[Batch, Rollout], np.ndarray], name: str | None = None
) -> FunctionReward:
    """A reward of a Python function, which runs between two compiled programs.

    Args:
      function: `(batch, samples) -> [B]` numbers of any kind, as `numbers_of` reads them; it gets
        NumPy arrays. A resumed run repeats a run's steps bit for bit if its results depend on its
        arguments alone.
      name: of the term in metrics; by default the function's.
    """
    return FunctionReward(HostValues(function), name or function.__name__)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class HostValues:
    """A node of a reward that is computed on the host.

    Attributes:
      function: `(batch, samples) -> [rows]` numbers, from NumPy arrays.
    """

    function: Callable[[Batch, Rollout], np.ndarray] = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class GivenValues:
    """What the host said, in the place of `HostValues`: a function that looks at no argument.

    Attributes:
      values: `[rows]` float32.
    """

    values: jax.Array

    def __call__(self, *unused: Any) -> jax.Array:
        """The values."""
        return self.values


def term_score(name: str, values: jax.Array, metrics: Metrics | None = None) -> Score:
    """Of the `[N, G]` values of one term: reward, term and a column beside the transcripts."""
    return Score(values, None, {name: values}, {name: values.reshape(-1)}, metrics or {})


def host_parts(reward: Any) -> list[HostValues]:
    """The parts of a reward that the host must compute; none of a reward that is all JAX."""
    return [node for node in jax.tree.leaves(reward, is_leaf=_is_host) if _is_host(node)]


def resolve_on_host(
    reward: Any, batch: Batch, samples: Rollout, place: Callable[[np.ndarray], jax.Array]
) -> Any:
    """The reward with `GivenValues` in the place of its parts on the host.

    They see the batch and the samples as NumPy arrays; `place` puts their rows on the devices.

    Raises:
      InputError: a function failed, or returned something else than numbers.
    """

    def replace(node: Any) -> Any:
        if not _is_host(node):
            return node
        where = f"the reward's function {getattr(node.function, '__name__', node.function)}"
        returned = guarded(node.function, where)(batch, samples)
        return GivenValues(place(numbers_of(returned, where, len(samples.tokens))))

    return jax.tree.map(replace, reward, is_leaf=_is_host)


def _is_host(node: Any) -> bool:
    return isinstance(node, HostValues)
