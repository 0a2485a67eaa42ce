"""GRPO on a model of your own: of jaxalign, only the losses.

    python experiments/own_model.py

A recurrent policy continues a first token with five more; the reward is the share of neighbours
that rise. Chance gives 0.45, and 100 steps about 0.9 (two CPU cores, under a minute).
"""

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from jaxalign.losses import aggregate, clipped_surrogate, group_advantages, token_logps

N, G, T, V = 16, 8, 6, 10  # prompts, samples of each, tokens with the prompt's one, vocabulary


class Policy(nn.Module):
    """Tokens `[B, T]` to the logits `[B, T - 1, V]` of the second to the last of them."""

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:  # noqa: D102
        hidden = nn.RNN(nn.GRUCell(64))(nn.Embed(V, 64)(tokens[:, :-1]))
        return nn.Dense(V)(hidden)


policy = Policy()
optimizer = optax.adam(1e-2)


@jax.jit
def step(params, opt_state, key):
    """Sample → reward → advantage → loss → update."""
    tokens = jnp.zeros((N * G, T), int)
    prompt_key, key = jax.random.split(key)
    tokens = tokens.at[:, 0].set(jnp.repeat(jax.random.randint(prompt_key, (N,), 0, V), G))
    for t in range(1, T):
        logits = policy.apply(params, tokens)[:, t - 1]
        tokens = tokens.at[:, t].set(jax.random.categorical(jax.random.fold_in(key, t), logits))
    rewards = jnp.mean(tokens[:, 1:] > tokens[:, :-1], axis=1).reshape(N, G)
    advantages = group_advantages(rewards).reshape(-1)
    old_logp = token_logps(policy.apply(params, tokens), tokens[:, 1:])

    def loss(params):
        logp = token_logps(policy.apply(params, tokens), tokens[:, 1:])
        return aggregate(clipped_surrogate(logp, old_logp, advantages), jnp.ones(logp.shape))

    changes, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
    return optax.apply_updates(params, changes), opt_state, rewards.mean()


def main(steps: int = 100) -> list[float]:
    """Trains, prints every tenth mean reward, returns all of them."""
    init_key, loop_key = jax.random.split(jax.random.key(0))
    params = policy.init(init_key, jnp.zeros((1, T), int))
    opt_state, rewards = optimizer.init(params), []
    for number in range(steps):
        params, opt_state, reward = step(params, opt_state, jax.random.fold_in(loop_key, number))
        rewards.append(float(reward))
        if number % 10 == 0 or number == steps - 1:
            print(f"step {number}: mean reward {rewards[-1]:.2f}")
    return rewards


if __name__ == "__main__":
    main()
