"""A network of your own, trained by the engine: one function from tokens to logits is all it takes.

    python experiments/own_model.py

A recurrent policy continues a first token with five more; the reward is the share of neighbours
that rise. Chance gives 0.45, and 100 steps about 0.9 (two CPU cores, under a minute).
docs/engine.md has networks of flax.nnx and equinox, and what else can be one's own.
"""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from jaxalign.engine import (
    Batch,
    Frozen,
    Prompts,
    Rollout,
    Sampling,
    device_reward,
    init_state,
    make_step,
    plain_decoder,
    skip_nonfinite,
)

N, G, T, V = 16, 8, 5, 10  # prompts of one token, samples of each, tokens drawn, vocabulary


class Policy(nn.Module):
    """Tokens `[B, S]` to the logits `[B, S, V]` of what follows each."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:  # noqa: D102
        return nn.Dense(V)(nn.RNN(nn.GRUCell(64))(nn.Embed(V, 64)(tokens)))


def rising(batch: Batch, samples: Rollout) -> jax.Array:
    """The share of tokens that are larger than the one before, `[B]`."""
    first = jnp.repeat(batch.prompts.tokens, G, axis=0)
    row = jnp.concatenate([first, samples.tokens], axis=1)
    return jnp.mean(row[:, 1:] > row[:, :-1], axis=1)


def main(steps: int = 100) -> list[float]:
    """Trains, prints every tenth mean reward, returns all of them."""
    policy, optimizer = Policy(), skip_nonfinite(optax.adam(1e-2))
    decoder = plain_decoder(
        lambda params, tokens, mask: policy.apply(params, tokens), max_positions=8
    )
    step = make_step(decoder, optimizer, sampling=Sampling(G, T))
    state = init_state(policy.init(jax.random.key(0), jnp.zeros((1, T), int)), optimizer)
    frozen, rewards = Frozen(device_reward(rising)), []
    for number in range(steps):
        first = jax.random.randint(jax.random.key(number), (N, 1), 0, V)
        batch = Batch(Prompts(first, jnp.ones((N, 1), bool)))
        state, result = step(state, batch, jax.random.key(1), frozen)
        rewards.append(float(result.metrics["reward"]))
        if number % 10 == 0 or number == steps - 1:
            print(f"step {number}: mean reward {rewards[-1]:.2f}")
    return rewards


if __name__ == "__main__":
    main()
