"""PPO: a critic with a trunk of its own, advantages of every token, and the critic's loss.

The critic's trunk starts as the policy's, its head at 0. (A trunk that both share is left out: it
saves a pass, and ties the policy to the critic's errors.) What is trained is one tree,
`{"policy": …, "critic": {"trunk": …, "head": …}}` (`with_critic`), with one optimizer.
"""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from jaxalign.engine.experience import Experience, experience_of
from jaxalign.engine.objective import policy_loss, with_reference
from jaxalign.engine.penalties import Penalty
from jaxalign.engine.reductions import Aggregation, Keep, TokenMean, Totals
from jaxalign.engine.state import has_critic
from jaxalign.engine.surrogates import Clipped, Surrogate
from jaxalign.host.fields import Checked, Positive, Rule, Share
from jaxalign.losses import (
    aggregate,
    explained_variance,
    gae,
    token_rewards,
    value_clip_fraction,
    value_loss,
    whiten,
)
from jaxalign.models.decoder import Decoder, StatesDecoder
from jaxalign.models.heads import logits
from jaxalign.models.lora import is_adapter
from jaxalign.records import Batch, Metrics, Params, Rollout, Score


@dataclasses.dataclass(frozen=True)
class PPO(Checked):
    """Proximal policy optimization: rewards are held to a learned value of every token.

        L = L_policy + Σ_it m_it ℓ_it / tokens,    ℓ = `jaxalign.losses.value_loss`

    The policy's loss is `GRPO`'s with advantages of tokens (`token_advantages`).
    """

    surrogate: Surrogate = Clipped()
    """The loss of a token."""
    kl: Penalty | None = None
    """The KL to the start model in the loss; none runs no reference model."""
    aggregation: Aggregation = TokenMean()
    """How the losses of tokens become one number."""
    keep: Keep | None = None
    """What is left out of the loss; none learns from every completion."""
    discount: Annotated[float, Rule(lambda x: 0 < x <= 1, "must be above 0 and at most 1")] = 1.0
    """γ from one generated token to the next, above 0 and at most 1."""
    lambda_: Share = 0.95
    """λ of the advantages, from 0 to 1; 1 leaves no bias, less of it less noise."""
    whiten: bool = True
    """Scale advantages to mean 0 and deviation 1 over the batch's tokens."""
    value_clip: Positive | None = 0.2
    """How far a value may move in a step before that earns no more; None for no bound."""

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
        """See `Objective.experience`; `Rows.more` holds the values and returns of the rollout."""
        if not has_critic(params):
            raise ValueError("PPO trains a critic too: start from init_state(with_critic(…), …)")
        mask = samples.mask if self.keep is None else samples.mask & self.keep(score, samples)
        rewards = jnp.asarray(score.rewards, jnp.float32).reshape(-1)
        experience = experience_of(batch, samples, rewards, mask)
        values = experience.map(
            lambda part: completion_values(model, params["critic"], part), parts
        )
        advantages, returns = token_advantages(
            rewards, values, mask, discount=self.discount, lambda_=self.lambda_
        )
        metrics = {"explained_variance": explained_variance(values, returns, mask)}
        if self.whiten:
            advantages = whiten(advantages, mask)
        rows = dataclasses.replace(experience.rows, advantages=advantages, more=(values, returns))
        whole = with_reference(
            Experience(rows, batch.prefix),
            model,
            self.kl,
            base,
            policy=params["policy"],
            parts=parts,
        )
        return whole, metrics

    def loss(
        self, model: Decoder, params: Params, part: Experience, totals: Totals
    ) -> tuple[jax.Array, Metrics]:
        """See `Objective.loss`."""
        loss, metrics = policy_loss(self, part.logps(model, params["policy"]), part, totals)
        values = completion_values(model, params["critic"], part)
        error, more = self.critic_loss(values, part, totals)
        return loss + error, metrics | more

    def critic_loss(
        self, values: jax.Array, part: Experience, totals: Totals
    ) -> tuple[jax.Array, Metrics]:
        """The critic's loss of a micro-batch's values `[B', T]`, a mean over the update's tokens.

        Metrics are `value_loss` and, with a bound, `value_clip_fraction`.
        """
        (old, returns), mask = part.rows.more, part.rows.mask
        loss = value_loss(values, old, returns, clip=self.value_clip, mask=mask)
        total = aggregate(loss, mask, normalizer=totals.tokens)
        metrics = {"value_loss": total}
        if self.value_clip is not None:
            metrics["value_clip_fraction"] = value_clip_fraction(
                values, old, returns, mask, clip=self.value_clip, normalizer=totals.tokens
            )
        return total, metrics


def token_advantages(
    rewards: jax.Array,
    values: jax.Array,
    mask: jax.Array,
    *,
    discount: float,
    lambda_: float,
) -> tuple[jax.Array, jax.Array]:
    """Advantages per token of rewards `[B]` per completion, and what the critic learns.

        r_t = [t is the row's last generated token]·R
        δ_t = r_t + γ V_{t'} − V_t,    A_t = δ_t + γλ A_{t'},    returns_t = A_t + V_t

    with t' the row's next generated token: what a tool wrote is passed over, so the token before a
    tool's answer is judged by the value after it. Values and the mask of generated
    tokens are `[B, T]`, of the whole batch; γ is `discount`, λ `lambda_`.

    Source: PPO (arXiv 1707.06347), GAE (arXiv 1506.02438), the reward on the last token as in
    AlphaAlign (arXiv 2507.14987).

    Returns:
      advantages and returns, each `[B, T]` float32.
    """
    no_kl = jnp.zeros_like(values)  # its price is in the policy's loss
    placed = token_rewards(rewards, no_kl, mask, kl_coefficient=0.0)
    return gae(placed, values, mask, discount=discount, lambda_=lambda_)


def with_critic(model: Any, params: Params) -> Params:
    """What PPO trains: the policy, and a critic that starts from its trunk and says 0 everywhere.

    The model is a `StatesDecoder`; `params` are not copied.

    Raises:
      ValueError: the decoder gives no states, or an adapter comes without its base.
    """
    if is_adapter(params):
        raise ValueError("a critic starts from what runs: give on_base(adapter, base)")
    if not isinstance(model, StatesDecoder):
        raise ValueError("a critic reads hidden states: give a StatesDecoder, or take GRPO")
    width = model.output_weight(params).shape[1]
    trunk = params
    if isinstance(params, dict):  # of ours: an output projection, which a critic has no use for
        trunk = {name: leaves for name, leaves in params.items() if name != "lm_head"}
    head = jnp.zeros((1, width), jnp.float32)
    return {"policy": params, "critic": {"trunk": trunk, "head": head}}


def completion_values(model: Any, critic: Params, part: Experience) -> jax.Array:
    """Values of the states before each completion token, `[B, T]` float32.

        V_t = w · h_t,    h_t the last hidden state after prompt and tokens before t

    Differentiable in `critic`, which is of `with_critic`; the model is a `StatesDecoder`. Values
    where a token does not exist mean nothing.
    """
    return part.of_states(model, critic["trunk"], lambda h: logits(h, critic["head"])[..., 0])
