"""Times one training step of the demo's size, part by part, beside what the machine can do.

    python experiments/benchmarks/step.py
    python experiments/benchmarks/step.py --prompts 16 --samples-per-prompt 4
    python experiments/benchmarks/step.py --dtype float32 --repeats 5
    python experiments/benchmarks/step.py --context detailed-code

8 prompts x 8 samples unless asked otherwise, 64 new tokens, the demo's few-shot prefix (with
--context CADA's code or cases in it), SmolLM2-135M with its weights. The demo has as many
completions a step: 16 prompts x 4 samples.
The floor is the step's FLOPs over the rate of one large product measured in the same process, so
the last column means the same on every machine. `plain` is the update with every prompt repeated
for each of its samples and no shared context: what the update would cost without it. `whole step`
is the compiled AlphaAlign step, verifiers and helpfulness scores included.
"""

import dataclasses
import sys
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from timing import best, product_rate

from jaxalign.data import KINDS, batch_at, builtin_prompts, context_text
from jaxalign.data.templates import bare_messages, coded_messages, encode_prompts
from jaxalign.errors import InputError
from jaxalign.models import load_pretrained
from jaxalign.models.precision import fastest_dtype
from jaxalign.rewards import safety_verifiers
from jaxalign.sampling import Rollout, Temperature
from jaxalign.training.alphaalign import PromptFacts, alphaalign_reward, make_reward_params
from jaxalign.training.state import init_state
from jaxalign.training.step import Algorithm, Batch, make_step, rollout, update


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to time."""

    model: str = "smollm2"
    """As for load_pretrained."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Compute dtype; auto takes the faster one in a probe."""
    remat: Literal["none", "dots", "full"] = "dots"
    """As for the model."""
    context: Literal["none", "short-code", "detailed-code", "cases"] = "none"
    """What the shared prefix holds beside the demo's instruction and examples."""
    prompts: int = 8
    """N, a multiple of 4: half harmful, a quarter benign, a quarter look-alike."""
    samples_per_prompt: int = 8
    """G."""
    max_new_tokens: int = 64
    """T."""
    repeats: int = 3
    """Runs after the compiling one; the fastest counts."""


def main(settings: Settings) -> None:
    """Prints the table."""
    if settings.prompts < 4 or settings.prompts % 4:
        raise InputError(f"prompts={settings.prompts} is not a multiple of 4")
    dtype = fastest_dtype()[0] if settings.dtype == "auto" else jnp.dtype(settings.dtype)
    model, params, tokenizer = load_pretrained(settings.model, dtype=dtype, remat=settings.remat)
    config = model.config
    quarter = settings.prompts // 4
    counts = dict(zip(KINDS, (2 * quarter, quarter, quarter), strict=True))
    prompts = batch_at(builtin_prompts("train"), 0, counts=counts, seed=0)
    texts = [prompt.text for prompt in prompts]
    context = "" if settings.context == "none" else context_text(settings.context)
    encoded = encode_prompts(tokenizer, coded_messages(context), texts, max_tokens=56, width=56)
    batch = jax.tree.map(jnp.asarray, Batch(encoded.tokens, encoded.mask, encoded.prefix))
    algorithm = Algorithm(
        samples_per_prompt=settings.samples_per_prompt,
        max_new_tokens=settings.max_new_tokens,
        stop=(-1,),  # never met, so that every run does the same work
        method=Temperature(0.7),
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-5))
    state = init_state(params, optimizer)
    key = jax.random.key(0)

    sample = jax.jit(lambda params: rollout(model, algorithm, params, batch, key))
    sampling, samples = best(lambda: sample(params), settings.repeats)
    rows = samples.tokens.shape[0]
    advantage = jnp.asarray(np.random.default_rng(0).normal(size=rows), jnp.float32)

    def updater(batch: Batch) -> Callable[[], Any]:
        step = jax.jit(
            lambda state, samples: update(
                model, optimizer, algorithm, state, batch, samples, advantage
            )
        )
        return lambda: step(state, samples)

    shared, _ = best(updater(batch), settings.repeats)
    plain, _ = best(updater(unshare(batch, samples)), settings.repeats)
    reward_params = make_reward_params(safety_verifiers(tokenizer), params, dtype)
    step = make_step(model, optimizer, algorithm, alphaalign_reward(model))
    bare = encode_prompts(tokenizer, bare_messages, texts[2 * quarter :], max_tokens=56, width=56)
    kinds = jnp.array([KINDS.index(prompt.kind) for prompt in prompts])
    facts = PromptFacts(kinds, bare.tokens, bare.mask)
    whole_batch = jax.tree.map(jnp.asarray, dataclasses.replace(batch, extras=facts))
    held = [state]

    def whole() -> Any:
        held[0], result = step(held[0], whole_batch, key, reward_params)
        return result.metrics

    whole_step, _ = best(whole, settings.repeats)
    rate = product_rate(dtype)

    layer = 2 * (config.num_heads + config.num_kv_heads) * config.head_dim * config.model_dim
    weights = config.num_layers * (layer + 3 * config.mlp_dim * config.model_dim)
    head = config.vocab_size * config.model_dim
    new = samples.tokens.size
    seen = new + batch.prompts.size + batch.prefix.size
    sampling_flops = 2 * (seen * weights + new * head)
    update_flops = 2 * (3 * seen * weights + 4 * new * head)
    print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}, {jnp.dtype(dtype).name}")
    print(f"one product: {rate / 1e9:.0f} GFLOP/s; {new} new tokens, prefix {batch.prefix.size}")
    print(f"{'part':28}{'seconds':>9}{'GFLOP':>9}{'floor s':>9}{'of floor':>9}")
    for name, seconds, flops in (
        ("sample", sampling, sampling_flops),
        ("update, shared context", shared, update_flops),
        ("both", sampling + shared, sampling_flops + update_flops),
        ("whole step", whole_step, None),
        ("update, plain", plain, None),
    ):
        floor = (
            f"{flops / 1e9:9.0f}{flops / rate:9.1f}{flops / rate / seconds:9.0%}" if flops else ""
        )
        print(f"{name:28}{seconds:9.1f}{floor}")
    print(f"sampling: {new / sampling:.0f} tokens/s")
    unshared = samples.tokens.shape[0] * (batch.prefix.size + batch.prompts.shape[1]) + new
    print(f"tokens in the update: {seen} shared, {unshared} without: {unshared / seen:.1f} times")
    print(f"shared context: the update is {plain / shared:.2f} times as fast")


def unshare(batch: Batch, samples: Rollout) -> Batch:
    """The same batch with prefix and prompt written out for every sample."""
    group = samples.tokens.shape[0] // batch.prompts.shape[0]
    opening = jnp.broadcast_to(batch.prefix, (batch.prompts.shape[0], batch.prefix.size))
    whole = jnp.concatenate([opening, batch.prompts], axis=1)
    mask = jnp.concatenate([jnp.ones(opening.shape, bool), batch.prompt_mask], axis=1)
    return Batch(jnp.repeat(whole, group, 0), jnp.repeat(mask, group, 0), batch.prefix[:0])


if __name__ == "__main__":
    try:
        main(tyro.cli(Settings, description=__doc__))
    except InputError as error:
        print(f"step: error: {error}", file=sys.stderr)
        sys.exit(2)
