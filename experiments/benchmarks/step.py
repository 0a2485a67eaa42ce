"""Times one training step of the demo's size, part by part, beside what the machine can do.

    python experiments/benchmarks/step.py
    python experiments/benchmarks/step.py --prompts 64 --samples-per-prompt 1
    python experiments/benchmarks/step.py --dtype float32 --repeats 5
    python experiments/benchmarks/step.py --context detailed-code
    python experiments/benchmarks/step.py --model Qwen/Qwen2.5-3B-Instruct --random-weights \
        --remat full --max-new-tokens 512 --micro-batches 4     # on one large GPU

8 prompts x 8 samples unless asked otherwise, 64 new tokens, the demo's few-shot prefix (with
--context CADA's code or cases in it), SmolLM2-135M with its weights. The demo has as many
completions a step: 64 prompts, one sample of each.
The floor is the step's FLOPs over the rate of one large product measured in the same process, so
the last column means the same on every machine. `plain` is the update with every prompt repeated
for each of its samples and no shared context: what the update would cost without it. `whole step`
is the compiled AlphaAlign step, verifiers and helpfulness scores included. On a GPU attention is
cuDNN's, and `attention by blocks` is the update without it. Where the device's published peak is
known, `of peak` is the model FLOP utilisation: FLOPs of the policy's own products, 2 a weight and
token forwards and 6 in the update, nothing that is computed again, over time and peak.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from timing import PEAKS, best, first_batch, print_setting, product_rate

from jaxalign.data import KINDS, context_text
from jaxalign.data.templates import bare_messages, coded_messages, encode_prompts
from jaxalign.engine.experience import experience_of
from jaxalign.engine.objective import GRPO
from jaxalign.engine.optimizer import skip_nonfinite
from jaxalign.engine.state import init_state
from jaxalign.engine.step import Frozen, Sampling, Updates, draw, make_step, update_once
from jaxalign.host.command import run_command
from jaxalign.host.errors import InputError
from jaxalign.methods.alphaalign.reward import alphaalign_reward
from jaxalign.models import Transformer, load_pretrained
from jaxalign.models.files.architectures import read_architecture
from jaxalign.models.fused_attention import attention_path
from jaxalign.models.precision import named_dtype
from jaxalign.planning.stand_in import stand_in_tokenizer
from jaxalign.records import Batch, Params, Prompts, Rollout
from jaxalign.rewards import Likelihood, PromptFacts, safety_verifiers
from jaxalign.sampling import Temperature


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to time."""

    model: str = "smollm2"
    """As for load_pretrained."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Compute dtype; auto takes the faster one in a probe."""
    remat: Literal["none", "dots", "full"] = "dots"
    """As for the model."""
    random_weights: bool = False
    """Draw the weights, in the sizes of the model of that name (a preset's, or a folder with
    config.json), and take a stand-in tokenizer: for times nothing has to be downloaded."""
    context: Literal["none", "short-code", "detailed-code", "cases"] = "none"
    """What the shared prefix holds beside the demo's instruction and examples."""
    prompts: int = 8
    """N, a multiple of 4: half harmful, a quarter benign, a quarter look-alike."""
    samples_per_prompt: int = 8
    """G."""
    max_new_tokens: int = 64
    """T."""
    max_prompt_tokens: int = 56
    """P, beyond the prefix; every prompt is padded to it."""
    micro_batches: int = 1
    """Parts of the batch that gradients are accumulated over, for memory."""
    repeats: int = 3
    """Runs after the compiling one; the fastest counts."""


def main(settings: Settings) -> None:
    """Prints the table."""
    if settings.prompts < 4 or settings.prompts % 4:
        raise InputError(f"prompts={settings.prompts} is not a multiple of 4")
    dtype, _ = named_dtype(settings.dtype)
    model, params, tokenizer = load(settings, dtype)
    context = "" if settings.context == "none" else context_text(settings.context)
    width = settings.max_prompt_tokens
    prompts, batch = first_batch(tokenizer, coded_messages(context), settings.prompts, width)
    prefix = batch.prefix.size
    sampling = Sampling(
        samples_per_prompt=settings.samples_per_prompt,
        max_new_tokens=settings.max_new_tokens,
        stop=(-1,),  # never met, so that every run does the same work
        method=Temperature(0.7),
    )
    objective = GRPO()
    optimizer = skip_nonfinite(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-5)))
    key = jax.random.key(0)
    reward = alphaalign_reward(safety_verifiers(tokenizer), Likelihood.of(model, params))
    held = [init_state(params, optimizer)]
    del params  # every update takes the place of the state before

    sample = jax.jit(lambda params: draw(model, sampling, params, batch, key))
    drawing, samples = best(lambda: sample(held[0].params), settings.repeats)
    rows = samples.tokens.shape[0]
    advantage = jnp.asarray(np.random.default_rng(0).normal(size=rows), jnp.float32)

    def time_update(batch: Batch, model: Transformer = model) -> float:
        step = jax.jit(
            lambda state, experience: update_once(
                model,
                optimizer,
                objective,
                state,
                experience,
                micro_batches=settings.micro_batches,
            ),
            donate_argnums=0,
        )
        experience = experience_of(batch, samples, advantage)

        def run() -> Any:
            held[0], metrics = step(held[0], experience)
            return metrics

        return best(run, settings.repeats)[0]

    shared, plain = time_update(batch), time_update(unshare(batch, samples))
    step = make_step(
        model,
        optimizer,
        sampling=sampling,
        objective=objective,
        updates=Updates(micro_batches=settings.micro_batches),
    )
    texts = [prompt.text for prompt in prompts if not prompt.is_harmful]
    bare = encode_prompts(tokenizer, bare_messages, texts, max_tokens=width, width=width)
    kinds = jnp.array([KINDS.index(prompt.kind) for prompt in prompts])
    facts = PromptFacts(np.arange(len(prompts)), bare.tokens, bare.mask)
    whole_batch = dataclasses.replace(batch, kind=kinds, facts=jax.tree.map(jnp.asarray, facts))

    def whole() -> Any:
        held[0], result = step(held[0], whole_batch, key, Frozen(reward))
        return result.metrics

    config = model.config
    layer = 2 * (config.num_heads + config.num_kv_heads) * config.head_dim * config.model_dim
    weights = config.num_layers * (layer + 3 * config.mlp_dim * config.model_dim)
    head = config.vocab_size * config.model_dim
    new = samples.tokens.size
    seen = new + batch.prompts.tokens.size + prefix
    forward = 2 * (seen * weights + new * head)
    update = 2 * (3 * seen * weights + 4 * new * head)
    # Part, seconds, FLOPs, FLOPs of the policy's own products.
    parts = [
        ("sample", drawing, forward, forward),
        ("update, shared context", shared, update, 3 * forward),
        ("both", drawing + shared, forward + update, 4 * forward),
        ("whole step", best(whole, settings.repeats)[0], None, 4 * forward),
    ]
    if model.attention == "cudnn":
        blocks = time_update(batch, model.clone(attention="blocks"))
        parts.append(("update, attention by blocks", blocks, None, 3 * forward))
    parts.append(("update, plain", plain, None, None))
    rate = product_rate(dtype, inner=config.model_dim)
    device = jax.devices()[0]
    peak = PEAKS.get(device.device_kind)
    print_setting(dtype, settings)
    print(f"one product: {rate / 1e9:.0f} GFLOP/s; {new} new tokens, prefix {prefix}")
    print(f"{'part':28}{'seconds':>9}{'GFLOP':>9}{'floor s':>9}{'of floor':>9}{'of peak':>9}")
    for name, seconds, flops, useful in parts:
        line = f"{name:28}{seconds:9.3f}"
        if flops:
            line += f"{flops / 1e9:9.0f}{flops / rate:9.3f}{flops / rate / seconds:9.0%}"
        if peak and useful:
            line = f"{line:64}{useful / seconds / peak:9.1%}"
        print(line)
    print(f"sampling: {new / drawing:.0f} tokens/s")
    unshared = rows * (prefix + width) + new
    print(f"tokens in the update: {seen} shared, {unshared} without: {unshared / seen:.1f} times")
    print(f"shared context: the update is {plain / shared:.2f} times as fast")
    if memory := device.memory_stats():
        print(f"most memory in use: {memory['peak_bytes_in_use'] / 2**30:.1f} GiB")


def load(settings: Settings, dtype: Any) -> tuple[Transformer, Params, Any]:
    """The model, from its files or drawn at random in its sizes."""
    if not settings.random_weights:
        return load_pretrained(settings.model, dtype=dtype, remat=settings.remat)
    config = read_architecture(settings.model)
    attention = attention_path(config, dtype)
    model = Transformer(config, dtype=dtype, remat=settings.remat, attention=attention)
    tokens = jnp.zeros((1, 1), jnp.int32)
    init = jax.jit(lambda key: model.init(key, tokens, tokens, tokens == 0))
    params = init(jax.random.key(0))["params"]
    return model, params, stand_in_tokenizer(config.vocab_size)


def unshare(batch: Batch, samples: Rollout) -> Batch:
    """The same batch with prefix and prompt written out for every sample."""
    prompts, prefix = batch.prompts, batch.prefix
    opening = jnp.broadcast_to(prefix, (prompts.tokens.shape[0], prefix.size))
    whole = jnp.concatenate([opening, prompts.tokens], axis=1)
    mask = jnp.concatenate([jnp.ones(opening.shape, bool), prompts.mask], axis=1)
    group = samples.tokens.shape[0] // whole.shape[0]
    return Batch(Prompts(jnp.repeat(whole, group, 0), jnp.repeat(mask, group, 0)))


if __name__ == "__main__":
    run_command("step", Settings, main, __doc__)
