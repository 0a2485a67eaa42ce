"""What a step minimizes: from scores to advantages, once a rollout, and from a part to its loss.

`GRPO` is a dataclass of functions, and with them RLOO, REINFORCE++, Dr.GRPO, DAPO, GSPO, CISPO,
SAPO, GDPO and IFPO; `jaxalign.engine.ppo.PPO` has a critic. Whatever has the two methods of
`Objective` is one.
"""

import dataclasses
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from jaxalign.engine.baselines import Adjust, Advantages, Group, InverseFrequency
from jaxalign.engine.experience import Experience, experience_of
from jaxalign.engine.penalties import Penalty
from jaxalign.engine.reductions import Aggregation, Keep, TokenMean, Totals
from jaxalign.engine.state import has_critic
from jaxalign.engine.surrogates import Clipped, Surrogate
from jaxalign.host.errors import InputError
from jaxalign.host.fields import Checked
from jaxalign.losses import aggregate
from jaxalign.models.decoder import Decoder
from jaxalign.models.lora import is_on_base
from jaxalign.records import Batch, Metrics, Params, Rollout, Score


@runtime_checkable
class Objective(Protocol):
    """What a step minimizes. Its constants are static; arrays are arguments."""

    def experience(
        self,
        model: Decoder,
        params: Params,
        batch: Batch,
        samples: Rollout,
        score: Score,
        *,
        base: Params | None,
        parts: int,
    ) -> tuple[Experience, Metrics]:
        """What a rollout's updates learn from, computed once, without gradient.

        Args:
          model: the policy's network.
          params: what is trained, before the step.
          batch: N prompts.
          samples: their B = N·G completions.
          score: what the reward made of them.
          base: frozen parameters of a reference, or None.
          parts: into how many parts a pass over all rows is split, for memory (`Experience.map`).

        Returns:
          the experience, and scalars to log.
        """

    def loss(
        self, model: Decoder, params: Params, part: Experience, totals: Totals
    ) -> tuple[jax.Array, Metrics]:
        """The loss of a micro-batch, divided by totals of the whole update.

        Args:
          model: the policy's network.
          params: what is trained; gradients are with regard to them.
          part: some prompts and all of their completions; or, where completions share rows, all of
            them, of which `part.rows.mask` has the tokens to count.
          totals: over all micro-batches of the update.

        Returns:
          the scalar loss and metrics, whose sums over micro-batches are the update's.
        """


@dataclasses.dataclass(frozen=True)
class GRPO(Checked):
    """Group-relative policy optimization, and what becomes of it with other functions.

        L = Σ_it m_it (l_it + β·KL_it) / denominator

    with l the surrogate of the ratio of training to sampling probabilities. Where the reward says
    what each part of a completion earned (`jaxalign.records.Credit`), a token has its part's
    advantage over √n, n the part's tokens (ours):

    - `advantages` gets the parts one below the other, each less its mean. So they share a unit
      where it is the batch's, and `Group` scales each part of each prompt by itself.
    - The gradient of a part of n tokens is a sum of n terms, each with its own noise, so its noise
      grows as √n: divided by that, long parts don't drown a short one.
    - `adjust` is called for each part, with that part's rewards; `keep` sees the sum.
    """

    advantages: Advantages = Group()
    """What rewards are held to."""
    surrogate: Surrogate = Clipped()
    """The loss of a token."""
    kl: Penalty | None = None
    """The KL to the start model in the loss; none runs no reference model."""
    aggregation: Aggregation = TokenMean()
    """How the losses of tokens become one number."""
    adjust: Adjust | None = None
    """What the samples' modes or the reward's terms make of the advantages."""
    keep: Keep | None = None
    """What is left out of the loss; none learns from every completion."""

    def check_fields(self, above: str) -> None:
        """Also that there are no two baselines."""
        super().check_fields(above)
        own_baseline = isinstance(self.adjust, InverseFrequency) and self.adjust.form == "baseline"
        if own_baseline and not isinstance(self.advantages, Group):
            raise InputError(
                f"{above}adjust is a baseline of its own, by form=baseline: it goes with the "
                f"advantages Group, not with {type(self.advantages).__name__}"
            )

    def experience(
        self,
        model: Decoder,
        params: Params,
        batch: Batch,
        samples: Rollout,
        score: Score,
        *,
        base: Params | None,
        parts: int,
    ) -> tuple[Experience, Metrics]:
        """See `Objective.experience`."""
        if has_critic(params):
            raise ValueError("the state has a critic, which GRPO would not train: PPO does")
        credit = score.credit
        if credit is None or credit.part is None:
            advantages = self._adjusted(self.advantages(score.rewards), score, samples).reshape(-1)
        else:
            advantages = self._of_tokens(credit.rewards, credit.part, score, samples)
        mask = None if self.keep is None else samples.mask & self.keep(score, samples)
        experience = experience_of(batch, samples, advantages, mask)
        whole = with_reference(experience, model, self.kl, base, policy=params, parts=parts)
        return whole, {}

    def _adjusted(self, advantages: jax.Array, score: Score, samples: Rollout) -> jax.Array:
        return advantages if self.adjust is None else self.adjust(advantages, score, samples)

    def _of_tokens(
        self, earned: jax.Array, part: jax.Array, score: Score, samples: Rollout
    ) -> jax.Array:
        """`[B, T]`: each part's rewards are held to their own means, and shared by its tokens."""
        rewards = earned - earned.mean(axis=(1, 2), keepdims=True)
        held = self.advantages(rewards.reshape(-1, rewards.shape[2])).reshape(rewards.shape)
        parts = [
            self._adjusted(advantages, score._replace(rewards=own), samples).reshape(-1)
            for advantages, own in zip(held, earned, strict=True)
        ]
        own = (part[:, :, None] == jnp.arange(len(earned))) & samples.mask[:, :, None]
        shares = jnp.stack(parts, axis=1) / jnp.sqrt(jnp.maximum(own.sum(axis=1), 1))
        return jnp.take_along_axis(shares, part, axis=1)

    def loss(
        self, model: Decoder, params: Params, part: Experience, totals: Totals
    ) -> tuple[jax.Array, Metrics]:
        """See `Objective.loss`."""
        return policy_loss(self, part.logps(model, params), part, totals)


def with_reference(
    experience: Experience,
    model: Decoder,
    kl: Penalty | None,
    base: Params | None,
    *,
    policy: Params,
    parts: int,
) -> Experience:
    """The experience with the reference's log-probabilities, where a KL is asked for.

    `policy` are the parameters that run; an adapter's base is there with a KL or without.

    Raises:
      ValueError: the reference is missing, or not needed.
    """
    needed = kl is not None or is_on_base(policy)
    if needed != (base is not None):
        raise ValueError("pass the reference as Frozen(base=…) exactly when the objective has a kl")
    if kl is None:
        return experience
    logps = experience.map(lambda part: part.logps(model, base), parts)
    rows = dataclasses.replace(experience.rows, reference_logps=logps)
    return dataclasses.replace(experience, rows=rows)


def policy_loss(
    objective: Any, logps: jax.Array, part: Experience, totals: Totals
) -> tuple[jax.Array, Metrics]:
    """The policy's loss of a micro-batch from its log-probabilities `[B', T]`.

    The objective has `surrogate`, `kl` and `aggregation`, as `GRPO` does.

    Returns:
      as `Objective.loss`; the metrics are `loss`, `logp_gap` (the mean distance to the sampler's
      log-probabilities), what the surrogate's `fractions` gives if it has that method, and with a
      reference `kl`.
    """
    rows = part.rows
    old, mask, advantages = rows.samples.logps, rows.mask, rows.advantages
    loss = objective.surrogate(logps, old, advantages, mask=mask)
    gap = jnp.where(mask, jnp.abs(logps - old), 0.0)
    metrics = {"logp_gap": gap.sum() / totals.tokens}
    if fractions := getattr(objective.surrogate, "fractions", None):
        metrics |= fractions(logps, old, advantages, mask, normalizer=totals.tokens)
    if rows.reference_logps is not None:
        kl = objective.kl(logps, rows.reference_logps, old, mask=mask)
        loss = loss + objective.kl.coefficient * kl
        metrics["kl"] = aggregate(kl, mask, normalizer=totals.tokens)
    value = objective.aggregation(loss, mask, totals)
    return value, metrics | {"loss": value}
