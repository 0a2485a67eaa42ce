"""Sampling: prompts are computed once, then a loop adds one token a row until all are done."""

import functools
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
from flax import struct

from jaxalign.models.attention import KeyValues
from jaxalign.models.completion import PromptContext, compute_params, encode_prompts
from jaxalign.models.heads import logits
from jaxalign.models.transformer import Params, Transformer, output_weight
from jaxalign.sampling.methods import Method


@struct.dataclass
class Rollout:
    """Completions of N prompts, G each: B = N·G rows, those of one prompt next to each other.

    Attributes:
      tokens: `[B, T]` int32; zero where `mask` is False.
      mask: `[B, T]` bool, the generated tokens, stop token included.
      logps: `[B, T]` float32 log-probabilities under softmax(z / temperature); zero where masked.
      mode: `[B]` int32, which kind of action the row took; zero without tools.
      finished: `[B]` bool, whether the row ended with a stop token.
    """

    tokens: jax.Array
    mask: jax.Array
    logps: jax.Array
    mode: jax.Array
    finished: jax.Array


@struct.dataclass
class SamplingState:
    """The carry of the decoding loop.

    Attributes:
      step: scalar int32, tokens written so far.
      current: `[B]` int32, the next input token.
      done: `[B]` bool, rows that met a stop token.
      tokens: `[B, T]` int32.
      mask: `[B, T]` bool.
      logps: `[B, T]` float32.
      keys: `[L, B, K, T, d]`, the completions' own cache.
      values: as keys.
    """

    step: jax.Array
    current: jax.Array
    done: jax.Array
    tokens: jax.Array
    mask: jax.Array
    logps: jax.Array
    keys: jax.Array
    values: jax.Array


def sample(
    model: Transformer,
    params: Params,
    prompts: jax.Array,
    prompt_mask: jax.Array,
    key: jax.Array,
    *,
    samples_per_prompt: int,
    max_new_tokens: int,
    method: Method,
    stop: Sequence[int],
    prefix: jax.Array | None = None,
) -> Rollout:
    """Samples G completions of every prompt.

    Args:
      model: the decoder; static.
      params: its parameters, cast once to the compute dtype.
      prompts: `[N, P]` int32, padded on either side.
      prompt_mask: `[N, P]` bool, at least one True in each row.
      key: consumed; token t of the batch uses `fold_in(key, t)`.
      samples_per_prompt: G.
      max_new_tokens: T.
      method: how tokens are chosen (`jaxalign.sampling.methods`); static.
      stop: ids that end a row; the stop token itself is part of the completion.
      prefix: `[P0]` int32 tokens that open every prompt, computed once; None for none.

    Returns:
      the completions with masks and log-probabilities.

    Raises:
      ValueError: if the longest row would pass the model's last position.
    """
    chex.assert_rank([prompts, prompt_mask], 2)
    total = (0 if prefix is None else prefix.shape[0]) + prompts.shape[1] + max_new_tokens
    if total > model.config.max_positions:
        raise ValueError(
            f"prompt and completion take up to {total} positions, the model has "
            f"{model.config.max_positions}: shorten the prompts or max_new_tokens"
        )
    return _sample(
        model,
        params,
        prompts,
        prompt_mask,
        key,
        prefix,
        samples_per_prompt=samples_per_prompt,
        max_new_tokens=max_new_tokens,
        method=method,
        stop=tuple(int(s) for s in stop),
    )


@functools.partial(
    jax.jit,
    static_argnames=("model", "samples_per_prompt", "max_new_tokens", "method", "stop"),
)
def _sample(
    model: Transformer,
    params: Params,
    prompts: jax.Array,
    prompt_mask: jax.Array,
    key: jax.Array,
    prefix: jax.Array | None,
    *,
    samples_per_prompt: int,
    max_new_tokens: int,
    method: Method,
    stop: tuple[int, ...],
) -> Rollout:
    params = compute_params(params, model.dtype)
    context = encode_prompts(model, params, prompts, prompt_mask, prefix)
    state = _initial_state(model, context, samples_per_prompt, max_new_tokens)
    batch = state.current.shape[0]
    start = jnp.repeat(context.last_positions, samples_per_prompt)
    weight = output_weight(params)
    stop_ids = jnp.asarray(stop, jnp.int32)

    def unfinished(state: SamplingState) -> jax.Array:
        return (state.step < max_new_tokens) & ~jnp.all(state.done)

    def decode(state: SamplingState) -> SamplingState:
        step = state.step
        written = jnp.broadcast_to(jnp.arange(max_new_tokens) < step, (batch, max_new_tokens))
        hidden, block = model.apply(
            {"params": params},
            state.current[:, None],
            (start + step)[:, None],
            jnp.ones((batch, 1), bool),
            (*context.blocks, KeyValues(state.keys, state.values, written)),
        )
        scaled = logits(hidden[:, 0], weight) / method.temperature
        token = method.choose(jax.random.fold_in(key, step), scaled)
        chosen = jnp.take_along_axis(scaled, token[:, None], axis=-1)[:, 0]
        logp = chosen - jax.nn.logsumexp(scaled, axis=-1)
        alive = ~state.done
        put = lambda x, column: jax.lax.dynamic_update_slice(  # noqa: E731
            x, column[:, None].astype(x.dtype), (0, step)
        )
        cache = lambda x, new: jax.lax.dynamic_update_slice(x, new, (0, 0, 0, step, 0))  # noqa: E731
        return SamplingState(
            step=step + 1,
            current=token,
            done=state.done | jnp.isin(token, stop_ids),
            tokens=put(state.tokens, jnp.where(alive, token, 0)),
            mask=put(state.mask, alive),
            logps=put(state.logps, jnp.where(alive, logp, 0.0)),
            keys=cache(state.keys, block.keys),
            values=cache(state.values, block.values),
        )

    state = jax.lax.while_loop(unfinished, decode, state)
    return Rollout(
        tokens=state.tokens,
        mask=state.mask,
        logps=state.logps,
        mode=jnp.zeros((batch,), jnp.int32),
        finished=state.done,
    )


def _initial_state(
    model: Transformer, context: PromptContext, samples: int, length: int
) -> SamplingState:
    config = model.config
    batch = context.last_tokens.shape[0] * samples
    shape = (config.num_layers, batch, config.num_kv_heads, length, config.head_dim)
    return SamplingState(
        step=jnp.zeros((), jnp.int32),
        current=jnp.repeat(context.last_tokens, samples),
        done=jnp.zeros((batch,), bool),
        tokens=jnp.zeros((batch, length), jnp.int32),
        mask=jnp.zeros((batch, length), bool),
        logps=jnp.zeros((batch, length), jnp.float32),
        keys=jnp.zeros(shape, model.dtype),
        values=jnp.zeros(shape, model.dtype),
    )
