"""What both sides share: weights, tokenizer, prompts, host functions, and how results are written.

Nothing here imports jaxalign, so nothing here changes with its API.
"""

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from cases import (
    KINDS,
    PROMPT_TOKENS,
    PROMPTS,
    QUESTION_TOKENS,
    SHAPE,
    Case,
    named,
)

Arrays = dict[str, np.ndarray]
Tree = dict[str, Any]
Run = Callable[[Case, Arrays | None], Arrays]
"""`(case, what the other side wrote or None) -> what this side writes`."""


# --- weights -------------------------------------------------------------------------------------


def start_weights() -> Tree:
    """The policy before training."""
    return _tree(_random_weights(seed=0))


def learner_weights() -> Tree:
    """A policy that has moved off the one that sampled: ratios differ from 1, some are clipped."""
    noise = _random_weights(seed=1)
    return _tree({path: x + 0.02 * noise[path] for path, x in _random_weights(seed=0).items()})


def other_weights() -> Tree:
    """A reference that differs from the policy."""
    noise = _random_weights(seed=2)
    return _tree({path: x + 0.05 * noise[path] for path, x in _random_weights(seed=0).items()})


def critic_head() -> np.ndarray:
    """A critic's head that says something, unlike the zeros of a new one."""
    head = np.random.default_rng(3).normal(size=(1, SHAPE["model_dim"]))
    return (0.1 * head).astype(np.float32)


def _random_weights(*, seed: int, scale: float = 0.6) -> Arrays:
    width, hidden, layers = SHAPE["model_dim"], SHAPE["mlp_dim"], SHAPE["num_layers"]
    queries = SHAPE["num_heads"] * SHAPE["head_dim"]
    keys = SHAPE["num_kv_heads"] * SHAPE["head_dim"]
    shapes = {
        "embed/embedding": (SHAPE["vocab_size"], width),
        "final_norm/scale": (width,),
        "layers/attention_norm/scale": (layers, width),
        "layers/attention/query": (layers, queries, width),
        "layers/attention/key": (layers, keys, width),
        "layers/attention/value": (layers, keys, width),
        "layers/attention/output": (layers, width, queries),
        "layers/mlp_norm/scale": (layers, width),
        "layers/mlp/gate": (layers, hidden, width),
        "layers/mlp/up": (layers, hidden, width),
        "layers/mlp/down": (layers, width, hidden),
    }
    normal = np.random.default_rng(seed).normal
    return {
        path: (path.endswith("scale") + scale * normal(size=shape)).astype(np.float32)
        for path, shape in shapes.items()
    }


def _tree(leaves: Mapping[str, np.ndarray]) -> Tree:
    tree: Tree = {}
    for path, leaf in leaves.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def flat(prefix: str, tree: Any) -> Arrays:
    """The leaves of nested mappings as arrays, named `prefix/path/of/leaf`."""
    if not isinstance(tree, Mapping):
        return {prefix: np.asarray(tree)}
    arrays: Arrays = {}
    for name, node in tree.items():
        arrays |= flat(f"{prefix}/{name}", node)
    return arrays


def gradient(prefix: str, before: Tree, after: Any, rate: float) -> Arrays:
    """The gradient that one SGD step of this rate took."""
    start, end = flat(prefix, before), flat(prefix, after)
    return {path: (start[path] - end[path]) / np.float32(rate) for path in end}


# --- words ---------------------------------------------------------------------------------------

_LETTERS = "\n(). :,TNBCabcdeghiknorstuy"
_WORDS = ("[a]", "[bb]", "[ a ]", "[z]", "[", "]", "bb", "[b", "b]", " [", "$")
_PHRASES = ("I'm sorry", "I cannot", "<answer>", "</answer>", "<answer>Yes")


def tokenizer() -> Any:
    """A byte-level tokenizer with a token for each letter and for what is rewarded or calls."""
    from tokenizers import Tokenizer, decoders, pre_tokenizers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    visible = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    texts = [*dict.fromkeys((*_LETTERS, *_WORDS, *_PHRASES, *"0123456789ADEFGHIJKLMOPQRSUV"))]
    spelled = [visible.pre_tokenize_str(text)[0][0] for text in texts[: SHAPE["vocab_size"]]]
    plain = Tokenizer(BPE({word: index for index, word in enumerate(spelled)}, []))
    plain.pre_tokenizer, plain.decoder = visible, decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=plain)
    assert len(made) == SHAPE["vocab_size"], len(made)
    return made


def stop_ids(words: Any, tokens: Sequence[str]) -> tuple[int, ...]:
    """Ids of the tokens that end a completion."""
    return tuple(words.convert_tokens_to_ids(token) for token in tokens)


# --- prompts -------------------------------------------------------------------------------------


class Asked(NamedTuple):
    """The prompts of a step, and the bare questions of those that are not harmful.

    Attributes:
      prompts: `[N, P]` int32.
      prompt_mask: `[N, P]` bool, padded on the right, in every second step on the left.
      kinds: `[N]` int32.
      questions: `[N', Q]` int32, of the last N' prompts.
      question_mask: `[N', Q]` bool.
      texts: the N prompts in words, for scores on the host.
    """

    prompts: np.ndarray
    prompt_mask: np.ndarray
    kinds: np.ndarray
    questions: np.ndarray
    question_mask: np.ndarray
    texts: list[str]


def asked(step: int) -> Asked:
    """What a step asks."""
    rng = np.random.default_rng(100 + step)
    vocabulary = SHAPE["vocab_size"]
    kinds = np.array(KINDS, np.int32)
    prompt_mask = np.arange(PROMPT_TOKENS) < rng.integers(1, PROMPT_TOKENS + 1, (PROMPTS, 1))
    if step % 2:
        prompt_mask = prompt_mask[:, ::-1]
    harmless = int((kinds > 0).sum())
    lengths = rng.integers(2, QUESTION_TOKENS + 1, (harmless, 1))
    return Asked(
        rng.integers(0, vocabulary, (PROMPTS, PROMPT_TOKENS)).astype(np.int32),
        np.ascontiguousarray(prompt_mask),
        kinds,
        rng.integers(0, vocabulary, (harmless, QUESTION_TOKENS)).astype(np.int32),
        np.arange(QUESTION_TOKENS) < lengths,
        [f"Question {step}.{row}" for row in range(PROMPTS)],
    )


# --- functions of the host -----------------------------------------------------------------------


def score_texts(requests: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """A score of texts: the share of some letters, and a little for the request."""
    shares = [sum(map(text.count, "aeiorst")) / (len(text) + 1) for text in answers]
    more = [0.1 * int(request[-1]) for request in requests]
    return np.array(shares, np.float32) + np.array(more, np.float32)


def even_share(tokens: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The share `[B]` of even tokens among those generated."""
    even = ((tokens % 2 == 0) & mask).sum(axis=1)
    return (even / np.maximum(mask.sum(axis=1), 1)).astype(np.float32)


# --- one process ---------------------------------------------------------------------------------


def work(run: Run) -> None:
    """Runs cases and writes a file for each; those that are there already are left alone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkout", type=Path, required=True, help="where jaxalign must be from")
    parser.add_argument("--folder", type=Path, required=True, help="where to write")
    parser.add_argument("--fixed", type=Path, help="folder of the other side, to learn from")
    parser.add_argument("--devices", type=int, required=True)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    for case in named(options.names):
        path = options.folder / f"{case.name}.npz"
        if case.devices != options.devices or path.exists():
            continue
        given = None if options.fixed is None else read(options.fixed / path.name)
        arrays = run(case, given)
        _check_origin(options.checkout)
        _write(path, arrays)
        print(case.name, flush=True)


def read(path: Path) -> Arrays:
    """The arrays of a case."""
    with np.load(path) as file:
        return dict(file)


def below(prefix: str, arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Those arrays whose name begins with `prefix/`, without it."""
    start = f"{prefix}/"
    return {name.removeprefix(start): x for name, x in arrays.items() if name.startswith(start)}


def _write(path: Path, arrays: Arrays) -> None:
    """Writes all or nothing, for a process that crashes is started again."""
    unfinished, contents = path.with_suffix(".part"), cast(Any, arrays)
    with unfinished.open("wb") as file:
        np.savez(file, **contents)
    os.replace(unfinished, path)


def _check_origin(checkout: Path) -> None:
    """Refuses modules from elsewhere: an installed jaxalign fills in what a checkout lacks."""
    for name, module in list(sys.modules.items()):
        origin = getattr(module, "__file__", None)
        if name.partition(".")[0] != "jaxalign" or origin is None:
            continue
        if not Path(origin).resolve().is_relative_to(checkout.resolve()):
            sys.exit(f"{name} is from {origin}, not from {checkout}")
