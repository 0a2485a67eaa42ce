"""A model whose every token has one successor: what it answers is written down by hand."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import transformers
from tiny_model import SMALL, random_params
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from jaxalign.answers import LanguageModel
from jaxalign.models import Transformer, plain_decoder

BARE = "{% for m in messages %}{{ m.content }}{% endfor %}"
SPOKEN = (
    "{% for m in messages %}{{ m.role.title() }}: {{ m.content }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


#: The same without a transformer: its parameters are `successors(lm)`.
CHAINED = plain_decoder(lambda params, tokens, mask: params[tokens], max_positions=256)


def successors(lm: LanguageModel) -> Any:
    """`[V, V]`, the logits behind each token."""
    return jnp.asarray(lm.params["lm_head"]["kernel"].T)


def chained_model(*chains: Sequence[str], template: str = BARE) -> LanguageModel:
    """Tokens follow each other as in the chains; of the last ones nothing is said.

    The tokenizer is byte-level and reads text letter by letter, so that a prompt that ends in the
    first letter of a chain is answered by the rest of it.
    """
    visible = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    letters = [*map(chr, range(32, 127)), "\n"]
    words = dict.fromkeys([*letters, *itertools.chain(*chains)])
    places = {visible.pre_tokenize_str(word)[0][0]: place for place, word in enumerate(words)}
    plain = Tokenizer(BPE(places, []))
    plain.pre_tokenizer, plain.decoder = visible, decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, chat_template=template)

    size = len(words)
    config = dataclasses.replace(
        SMALL,
        vocab_size=size,
        num_layers=1,
        model_dim=size,
        max_positions=256,
        tie_embeddings=False,
    )
    params: Any = random_params(config)
    for part, name in (("attention", "output"), ("mlp", "down")):
        params["layers"][part][name][:] = 0.0
    params["embed"]["embedding"] = np.eye(size, dtype=np.float32)
    params["lm_head"]["kernel"] = np.zeros((size, size), np.float32)
    number = {word: place for place, word in enumerate(words)}
    for chain in chains:
        for word, follower in itertools.pairwise(chain):
            params["lm_head"]["kernel"][number[follower], number[word]] = 9.0
    return LanguageModel(Transformer(config, dtype=jnp.float32), params, tokenizer)
