"""A critic: the policy's trunk with one score for every token of a completion."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxalign.models.completion import completion_states, compute_params
from jaxalign.models.heads import logits
from jaxalign.models.transformer import Params, Transformer


def critic_of(model: Transformer) -> Transformer:
    """The policy's decoder with one score in place of the output projection."""
    return model.clone(config=dataclasses.replace(model.config, num_labels=1))


def critic_params(params: Params) -> Params:
    """The policy's trunk, not copied, and a head of zeros, so that a new critic says 0 everywhere.

    Args:
      params: of the policy. On a mesh the head lies as `parameter_shardings` has it.
    """
    trunk = {name: leaves for name, leaves in params.items() if name != "lm_head"}
    head = jnp.zeros_like(params["final_norm"]["scale"])[None]
    return trunk | {"score": {"kernel": head}}


def completion_values(
    critic: Transformer,
    params: Params,
    prompts: jax.Array,
    prompt_mask: jax.Array,
    tokens: jax.Array,
    mask: jax.Array,
    *,
    prefix: jax.Array | None = None,
) -> jax.Array:
    """Values of the states before each completion token, differentiable in `params`.

        V_t = w · h_t,    h_t the last hidden state after prompt and tokens before t

    As in `completion_logps` a prompt is computed once for all its completions.

    Args:
      critic: from `critic_of`.
      params: its parameters; matrices are cast to the compute dtype first.
      prompts: `[N, P]` int32.
      prompt_mask: `[N, P]` bool.
      tokens: `[B, T]` int32 completions, B = N·G, the G of one prompt next to each other.
      mask: `[B, T]` bool, a prefix of each row: which tokens exist.
      prefix: `[P0]` int32 shared opening, or None.

    Returns:
      `[B, T]` float32; values where `mask` is False mean nothing.

    Raises:
      ValueError: the model has not one score.
    """
    if critic.config.num_labels != 1:
        raise ValueError(f"a critic has one score, not {critic.config.num_labels}: see critic_of")
    params = compute_params(params, critic.dtype)
    hidden = completion_states(critic, params, prompts, prompt_mask, tokens, mask, prefix=prefix)
    return logits(hidden, params["score"]["kernel"])[..., 0]
