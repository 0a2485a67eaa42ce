"""Times sampling with and without a tool in the loop, in turn, on the same prompts.

    python experiments/benchmarks/tools.py
    python experiments/benchmarks/tools.py --dtype float32 --repeats 5

SmolLM2-135M with ASCL's instruction, worked examples and rules. No completion ends early, so both
do the same number of steps. `all tokens` counts what is generated and what the tool answers, for
an answer is read a token a step as if it were generated: its ratio is what the tool costs the loop.
`generated` leaves the answers out: its ratio also has what they take of the T tokens.
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp
from timing import best, dtype_of, print_setting

from jaxalign.data import batch_at, builtin_prompts, builtin_rules
from jaxalign.data.templates import consulting_messages, encode_prompts
from jaxalign.host.command import run_command
from jaxalign.models import load_pretrained
from jaxalign.records import Rollout
from jaxalign.sampling import Temperature, Tool, consultation, rule_answer, sample


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to time."""

    model: str = "smollm2"
    """As for load_pretrained."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Compute dtype; auto takes the faster one in a probe."""
    samples_per_prompt: int = 4
    """G, of 16 prompts."""
    max_new_tokens: int = 160
    """T."""
    max_calls: int = 1
    """Consultations that are answered in one completion."""
    repeats: int = 3
    """Runs after the compiling one; the fastest counts."""


def main(settings: Settings) -> None:
    """Prints the table."""
    dtype = dtype_of(settings.dtype)
    model, params, tokenizer = load_pretrained(settings.model, dtype=dtype)
    rules = builtin_rules().rules
    template = consulting_messages(list(rules), functools.partial(rule_answer, rules))
    counts = {"harmful": 8, "benign": 4, "lookalike": 4}
    prompts = batch_at(builtin_prompts("train"), 0, counts=counts, seed=0)
    texts = [prompt.text for prompt in prompts]
    encoded = encode_prompts(tokenizer, template, texts, max_tokens=56, width=56)

    def sampled(tool: Tool | None) -> Rollout:
        return sample(
            model,
            params,
            jnp.asarray(encoded.tokens),
            jnp.asarray(encoded.mask),
            jax.random.key(0),
            samples_per_prompt=settings.samples_per_prompt,
            max_new_tokens=settings.max_new_tokens,
            method=Temperature(0.7),
            stop=(-1,),  # never met, so that both do the same work
            prefix=jnp.asarray(encoded.prefix),
            tool=tool,
        )

    tool = consultation(rules, tokenizer, max_calls=settings.max_calls)
    rows = {}
    for label, given in (("without", None), ("with the tool", tool)):
        seconds, samples = best(functools.partial(sampled, given), settings.repeats)
        every, generated = float(samples.present.sum()), float(samples.mask.sum())
        rows[label] = (seconds, every / seconds, generated / seconds)
        consulted = float(samples.mode.mean())
    print_setting(dtype)
    print(f"{samples.tokens.shape[0]} rows, prefix {encoded.prefix.size}, {consulted:.0%} consult")
    print(f"{'':16}{'seconds':>9}{'all tokens/s':>14}{'generated/s':>13}")
    for label, (seconds, every, generated) in rows.items():
        print(f"{label:16}{seconds:9.1f}{every:14.0f}{generated:13.0f}")
    without, with_tool = rows["without"], rows["with the tool"]
    print(f"{'ratio':16}{'':9}{with_tool[1] / without[1]:14.2f}{with_tool[2] / without[2]:13.2f}")


if __name__ == "__main__":
    run_command("tools", Settings, main, __doc__)
