"""Sampling: prompts are computed once, then a loop adds one token a row until all are done."""

import functools
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from jaxalign.models.completion import last_place
from jaxalign.models.decoder import Decoder
from jaxalign.records import Params, Rollout
from jaxalign.sampling.endings import Endings
from jaxalign.sampling.methods import Method
from jaxalign.sampling.tools import Tool, Turns


@struct.dataclass
class SamplingState:
    """The carry of the decoding loop.

    Attributes:
      step: scalar int32, tokens written so far.
      current: `[B]` int32, the next input token.
      done: `[B]` bool, rows that met a stop token or an ending, or wait for a tool on the host.
      written: `tokens`, `mask`, `present` and `logps` of the `Rollout`, `[B, T]`.
      turns: with a tool, where the rows stand with it.
      ending: with endings, the automata's states, as `Reader.start` has them.
      cache: the completions' own, as the decoder has it.
    """

    step: jax.Array
    current: jax.Array
    done: jax.Array
    written: dict[str, jax.Array]
    turns: Turns | None
    ending: jax.Array | None
    cache: Any


def sample(
    model: Decoder,
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
    tool: Tool | None = None,
    rows: jax.Array | None = None,
    endings: Endings | None = None,
) -> Rollout:
    """Samples G completions of every prompt, with masks and log-probabilities.

    Args:
      model: a `jaxalign.models.decoder.Decoder`, such as `jaxalign.models.Transformer`; static.
      params: its parameters.
      prompts: `[N, P]` int32, padded on either side.
      prompt_mask: `[N, P]` bool, at least one True in each row.
      key: consumed; token t of row b is drawn with `fold_in(fold_in(key, rows[b]), t)`, whatever
        other rows there are and wherever they lie.
      samples_per_prompt: G.
      max_new_tokens: T, a tool's answers included.
      method: how tokens are chosen (`jaxalign.sampling.methods`); static.
      stop: ids that end a row; the stop token itself is part of the completion.
      prefix: `[P0]` int32 tokens that open every prompt, computed once; None for none.
      tool: what rows may call (`jaxalign.sampling.tools`); None for nothing.
      rows: `[B]` int32 numbers of the rows within a larger set that is sampled in several batches,
        so that it does not matter how it is divided; by default 0 to B − 1.
      endings: words that end a row, with the token that completes them; None for none.

    Raises:
      ValueError: if the longest row would pass the model's last position.
    """
    chex.assert_rank([prompts, prompt_mask], 2)
    total = (0 if prefix is None else prefix.shape[0]) + prompts.shape[1] + max_new_tokens
    if total > model.max_positions:
        raise ValueError(
            f"prompt and completion take up to {total} positions, the model has "
            f"{model.max_positions}: shorten the prompts or max_new_tokens"
        )
    return _sample(
        model,
        params,
        prompts,
        prompt_mask,
        key,
        prefix,
        tool,
        rows,
        endings,
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
    model: Decoder,
    params: Params,
    prompts: jax.Array,
    prompt_mask: jax.Array,
    key: jax.Array,
    prefix: jax.Array | None,
    tool: Tool | None,
    rows: jax.Array | None,
    endings: Endings | None,
    *,
    samples_per_prompt: int,
    max_new_tokens: int,
    method: Method,
    stop: tuple[int, ...],
) -> Rollout:
    context = model.prefill(params, prompts, prompt_mask, prefix)
    cache = model.start(params, context, samples_per_prompt, max_new_tokens)
    last = jnp.take_along_axis(prompts, last_place(prompt_mask)[:, None], axis=1)[:, 0]
    batch = prompts.shape[0] * samples_per_prompt
    dtypes = {"tokens": jnp.int32, "mask": jnp.bool_, "present": jnp.bool_, "logps": jnp.float32}
    state = SamplingState(
        step=jnp.zeros((), jnp.int32),
        current=jnp.repeat(last, samples_per_prompt),
        done=jnp.zeros((batch,), bool),
        written={name: jnp.zeros((batch, max_new_tokens), x) for name, x in dtypes.items()},
        turns=None if tool is None else Turns.start(tool, batch),
        ending=None if endings is None else endings.reader.start(batch),
        cache=cache,
    )
    stop_ids = jnp.asarray(stop, jnp.int32)
    rows = jnp.arange(batch) if rows is None else rows
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(rows)

    def unfinished(state: SamplingState) -> jax.Array:
        return (state.step < max_new_tokens) & ~jnp.all(state.done)

    def decode(state: SamplingState) -> SamplingState:
        step = state.step
        scores, cache = model.next_logits(params, context, state.cache, state.current, step)
        scaled = scores / method.temperature
        token = method.choose(jax.vmap(lambda key: jax.random.fold_in(key, step))(keys), scaled)
        alive = ~state.done
        drawn, turns, ending = alive, state.turns, state.ending
        if tool is not None and turns is not None:
            token, free = turns.force(tool, token)
            drawn = alive & free
        done = state.done | (drawn & jnp.isin(token, stop_ids))
        if endings is not None and ending is not None:
            ending, found = endings.advance(ending, token, drawn)
            done = done | found
        if tool is not None and turns is not None:
            turns = turns.advance(tool, token, drawn & ~done)
            done = done | turns.waiting(tool)
        chosen = jnp.take_along_axis(scaled, token[:, None], axis=-1)[:, 0]
        logp = chosen - jax.nn.logsumexp(scaled, axis=-1)
        columns = {
            "tokens": jnp.where(alive, token, 0),
            "mask": drawn,
            "present": alive,
            "logps": jnp.where(drawn, logp, 0.0),
        }
        put = lambda x, column: jax.lax.dynamic_update_slice(  # noqa: E731
            x, column[:, None].astype(x.dtype), (0, step)
        )
        written = jax.tree.map(put, state.written, columns)
        return SamplingState(step + 1, token, done, written, turns, ending, cache)

    state = jax.lax.while_loop(unfinished, decode, state)
    turns, written = state.turns, state.written
    no = jnp.zeros(state.done.shape, bool)
    waiting = no if tool is None or turns is None else turns.waiting(tool)
    return Rollout(
        **written,
        mode=(no if turns is None else turns.calls > 0).astype(jnp.int32),
        finished=state.done & ~waiting,
        cut=no if turns is None else turns.answer >= 0,
        prompt_of_row=jnp.repeat(jnp.arange(prompts.shape[0]), samples_per_prompt),
        ending=None
        if endings is None
        else endings.spelled(written["tokens"], written["mask"], written["present"]),
        temperature=method.temperature,
    )
