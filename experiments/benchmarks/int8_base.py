"""What a base in 8 bits costs before any training: log-probabilities and perplexity.

    python -m experiments.benchmarks.int8_base
    python -m experiments.benchmarks.int8_base --model runs/demo/model --requests 100

The start model answers benign held-out requests, greedy, in float32. Under its parameters as they
are and with the layers' matrices in 8 bits (`--lora.base int8`), in each compute dtype: the mean
and the largest |difference| of log π(token) from float32 as it is, over the answers' tokens, and
their perplexity. Ours; docs/lora.md has the table.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.answers.asking import Asking, LanguageModel
from jaxalign.data.prompts import builtin_prompts
from jaxalign.data.templates import bare_messages
from jaxalign.host.command import run_command
from jaxalign.host.fields import Checked, Count
from jaxalign.host.markdown import markdown_table
from jaxalign.models.packing import pack, packed_logps, place
from jaxalign.models.quantised import quantise
from jaxalign.records import Params
from jaxalign.utility.perplexity import reference_answers


@dataclasses.dataclass(frozen=True)
class Command(Checked):
    """Measures what 8 bits cost."""

    model: str = "smollm2"
    """Model to quantise, as of `jaxalign eval`."""
    requests: Count = 60
    """How many benign held-out requests it answers."""
    max_new_tokens: Count = 96
    """Longest answer."""


def run(command: Command) -> None:
    """Prints the table."""
    lm = LanguageModel.load(command.model, dtype="float32")
    benign = [x.text for x in builtin_prompts("heldout") if x.kind == "benign"]
    asking = Asking(template=bare_messages, max_new_tokens=command.max_new_tokens)
    documents, prefix = reference_answers(lm, benign[: command.requests], asking)
    lengths = [len(document.tokens) for document in documents]
    length = max(512, *lengths)
    batch = pack(documents, length=length, rows=len(place(lengths, length=length)), prefix=prefix)

    def logps(dtype: Any, params: Params) -> np.ndarray:
        model = lm.model.clone(dtype=dtype)
        found = jax.jit(lambda params: packed_logps(model, params, batch))(params)
        return np.asarray(found)[batch.learned]

    table, exact = [], logps(jnp.float32, lm.params)
    for base, params in (("as it is", lm.params), ("int8", quantise(lm.params))):
        for dtype in (jnp.float32, jnp.bfloat16):
            found = logps(dtype, params)
            off = np.abs(found - exact)
            shown = f"{off.mean():.4f}", f"{off.max():.3f}", f"{np.exp(-found.mean()):.3f}"
            table.append((base, jnp.dtype(dtype).name, *shown))
    print(f"{exact.size} tokens of {len(documents)} answers")
    print(
        markdown_table(("base", "computed in", "mean difference", "largest", "perplexity"), table)
    )


if __name__ == "__main__":
    run_command("int8_base", Command, run, __doc__)
