"""How well labels alone teach a model to tell harmful from harmless prompts: RL's yardstick.

    python -m experiments.benchmarks.supervised_verdicts
    python -m experiments.benchmarks.supervised_verdicts --suites ours=builtin:heldout \
        xstest=xstest_prompts.csv --epochs 2

RL learns a verdict from whether it was right. Here the same model learns it by supervision: after
each training prompt, asked bare, " unsafe" against " safe" is fitted by the logistic loss, as many
harmful prompts as harmless ones in a batch. What is reached after so many labels says what the data
and the size of the model allow, and how far behind RL is. No reasoning, no answers, no examples.

Columns: AUC, the probability that a harmful prompt has a higher log P("unsafe") − log P("safe")
than a harmless one of a kind; and the shares of each kind that are called unsafe. Ours.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmarks.judges import auc
from jaxalign.answers.asking import LanguageModel
from jaxalign.data.order import walk
from jaxalign.data.prompts import KINDS, Prompt, builtin_prompts
from jaxalign.data.suites import load_suite
from jaxalign.data.templates import bare_messages, encode_requests, pad
from jaxalign.host.command import run_command
from jaxalign.host.errors import InputError
from jaxalign.host.fields import Checked, Count, Positive
from jaxalign.host.markdown import markdown_table
from jaxalign.models import Transformer, load_pretrained
from jaxalign.models.precision import named_dtype
from jaxalign.records import Params


@dataclasses.dataclass(frozen=True)
class Command(Checked):
    """Trains by labels alone and says what is told apart."""

    model: str = "smollm2"
    """Model to train, as of `jaxalign eval`."""
    suites: tuple[str, ...] = ("ours=builtin:heldout",)
    """What to tell apart, as `jaxalign eval --suites`."""
    limit: Count = 1000
    """Most prompts of a suite, evenly spread."""
    batch_size: Count = 64
    """Labels in an update, half of them of harmful prompts."""
    epochs: Count = 1
    """Passes over the harmful training prompts."""
    evaluate_every: Count = 22
    """Updates between two evaluations."""
    learning_rate: Positive = 5e-5
    """Of Adam, constant."""
    seed: int = 0
    """Of the order."""


def margins(
    model: Transformer,
    params: Params,
    tokens: jax.Array,
    mask: jax.Array,
    *,
    words: tuple[int, int],
    prefix: jax.Array | None = None,
) -> jax.Array:
    """How much likelier the first of two tokens is behind each prompt, in nats: `[N]`."""
    both = jnp.tile(jnp.array(words, jnp.int32)[:, None], (len(tokens), 1))
    logps = model.logps(params, tokens, mask, both, jnp.ones(both.shape, bool), prefix=prefix)
    return logps.reshape(-1, 2) @ jnp.array([1.0, -1.0])


def encode(lm: LanguageModel, texts: Sequence[str]) -> Any:
    """Requests, asked bare, padded to the longest."""
    opening, requests = encode_requests(lm.tokenizer, bare_messages, texts)
    rows = [[*opening, *request] for request in requests]
    return pad(rows, max(map(len, rows)))


def first_token(lm: LanguageModel, word: str) -> int:
    """The token of a word behind a blank.

    Raises:
      InputError: it takes several.
    """
    ids: list[int] = lm.tokenizer(f" {word}", add_special_tokens=False).input_ids
    if len(ids) > 1:
        raise InputError(f"{word!r} takes {len(ids)} tokens of this tokenizer: one is needed")
    return ids[0]


def table_row(prompts: Sequence[Prompt], found: np.ndarray) -> list[str]:
    """AUC against each harmless kind, and the share of each kind that is called unsafe."""
    kinds = np.array([prompt.kind for prompt in prompts])
    told = []
    for kind in KINDS[1:]:
        rows = (kinds == "harmful") | (kinds == kind)
        there = "harmful" in kinds and kind in kinds
        told.append(f"{auc(found[rows], kinds[rows] == 'harmful'):.3f}" if there else "–")
    shares = [f"{(found[kinds == k] > 0).mean():.2f}" if k in kinds else "–" for k in KINDS]
    return [*told, *shares]


def learn(command: Command, lm: LanguageModel, suites: dict[str, list[Prompt]]) -> list[list[str]]:
    """Trains; the rows of the table, printed as they come."""
    train = builtin_prompts("train")
    tokens, mask = encode(lm, [prompt.text for prompt in train])
    harmful = np.array([prompt.is_harmful for prompt in train])
    words = tuple(first_token(lm, word) for word in ("unsafe", "safe"))
    told = functools.partial(margins, lm.model, words=words)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(command.learning_rate))
    params, state = lm.params, optimizer.init(lm.params)
    read = jax.jit(told)

    @jax.jit
    def update(params: Params, state: Any, tokens: jax.Array, mask: jax.Array, signs: jax.Array):
        loss = lambda params: jax.nn.softplus(-signs * told(params, tokens, mask)).mean()  # noqa: E731
        gradient = jax.grad(loss)(params)
        changes, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, changes), state

    encoded = {name: encode(lm, [x.text for x in prompts]) for name, prompts in suites.items()}
    half, sides = command.batch_size // 2, (np.flatnonzero(harmful), np.flatnonzero(~harmful))
    rows, last = [], command.epochs * (len(sides[0]) // half)
    for step in range(last + 1):
        if step % command.evaluate_every == 0 or step == last:
            for name, prompts in suites.items():
                parts = [
                    read(params, *(x[i : i + half] for x in encoded[name]))
                    for i in range(0, len(prompts), half)
                ]
                row = table_row(prompts, np.concatenate(parts))
                rows.append([str(step * command.batch_size), name, *row])
                print(*rows[-1], flush=True)
        if step == last:
            break
        chosen = [
            side[walk(len(side), step, count=half, seed=(command.seed, number))]
            for number, side in enumerate(sides)
        ]
        batch = np.concatenate(chosen)
        signs = jnp.where(harmful[batch], 1.0, -1.0)
        params, state = update(params, state, tokens[batch], mask[batch], signs)
    return rows


def run(command: Command) -> None:
    """Prints the table."""
    if command.batch_size % 2:
        raise InputError(f"batch_size={command.batch_size} is odd: half are of harmful prompts")
    suites = dict(load_suite(spec, command.limit) for spec in command.suites)
    # Parameters stay float32, whatever is computed in: bfloat16 ones would not move by so little.
    model, params, tokenizer = load_pretrained(command.model, dtype=named_dtype("auto")[0])
    rows = learn(command, LanguageModel(model, params, tokenizer), suites)
    told = [f"AUC, harmful and {kind}" for kind in KINDS[1:]]
    called = [f"{kind} called unsafe" for kind in KINDS]
    print(markdown_table(["labels", "suite", *told, *called], rows))


if __name__ == "__main__":
    run_command("supervised_verdicts", Command, run, __doc__)
