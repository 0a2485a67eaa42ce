"""Times sampling with and without a tool in the loop, in turn, on the same prompts.

    python experiments/benchmarks/tools.py
    python experiments/benchmarks/tools.py --dtype float32

SmolLM2-135M with ASCL's instruction, worked examples and rules; 16 prompts with 4 samples of 160
tokens. No completion ends early, so both do the same number of steps. `all tokens` counts what is
generated and what the tool answers, for an answer is read a token a step as if it were generated:
its ratio is what the tool costs the loop. `generated` leaves the answers out: its ratio also has
what they take of the 160 tokens.
"""

import dataclasses
import functools
from typing import Literal

import jax
from timing import best, first_batch, print_setting

from jaxalign.data import builtin_rules
from jaxalign.data.templates import consulting_messages
from jaxalign.engine.step import Sampling, draw
from jaxalign.host.command import run_command
from jaxalign.models import load_pretrained
from jaxalign.models.precision import named_dtype
from jaxalign.sampling import Temperature, consultation, rule_answer


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to time."""

    model: str = "smollm2"
    """As for load_pretrained."""
    dtype: Literal["auto", "bfloat16", "float32"] = "auto"
    """Compute dtype; auto takes the faster one in a probe."""


def main(settings: Settings) -> None:
    """Prints the table."""
    dtype, _ = named_dtype(settings.dtype)
    model, params, tokenizer = load_pretrained(settings.model, dtype=dtype)
    rules = builtin_rules().rules
    template = consulting_messages(list(rules), functools.partial(rule_answer, rules))
    _, batch = first_batch(tokenizer, template, 16)
    sampling = Sampling(4, 160, stop=(-1,), method=Temperature(0.7))  # -1 is never met
    tool = consultation(rules, tokenizer, max_calls=1)
    rows = {}
    for label, given in (("without", None), ("with the tool", tool)):
        asked = dataclasses.replace(batch, tool=given)
        run = functools.partial(draw, model, sampling, params, asked, jax.random.key(0))
        seconds, samples = best(run, 3)
        every, generated = float(samples.present.sum()), float(samples.mask.sum())
        rows[label] = (seconds, every / seconds, generated / seconds)
        consulted = float(samples.mode.mean())
    print_setting(dtype)
    print(f"{samples.tokens.shape[0]} rows, prefix {batch.prefix.size}, {consulted:.0%} consult")
    print(f"{'':16}{'seconds':>9}{'all tokens/s':>14}{'generated/s':>13}")
    for label, (seconds, every, generated) in rows.items():
        print(f"{label:16}{seconds:9.1f}{every:14.0f}{generated:13.0f}")
    without, with_tool = rows["without"], rows["with the tool"]
    print(f"{'ratio':16}{'':9}{with_tool[1] / without[1]:14.2f}{with_tool[2] / without[2]:13.2f}")


if __name__ == "__main__":
    run_command("tools", Settings, main, __doc__)
