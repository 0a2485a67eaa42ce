"""A vocabulary in which a random model often calls a tool, for tests of tool turns."""

import dataclasses
import functools

import transformers
from tiny_model import SMALL
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from jaxalign.sampling import consultation

RULES = {"a": "No.", "bb": "Be kind."}
# Whole calls and parts of calls are tokens, so that a random model often makes one; "z" is unknown.
WORDS = ["[a]", "[bb]", "[ a ]", "[z]", "[", "]", "a", "bb", "x]x", "[b", "b]", " [", "[[a]", "$"]
LETTERS = sorted(set("\n(). :,TNBCabcdeghiknorstuy"))
T, TEMPERATURE = 48, 0.7


@functools.cache
def tokenizer(more_letters=""):
    """Byte-level, one token for each of the words and letters above, and for more letters."""
    visible = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    spelled = lambda text: visible.pre_tokenize_str(text)[0][0]  # noqa: E731
    words = dict.fromkeys([spelled(text) for text in (*LETTERS, *WORDS, *more_letters)])
    plain = Tokenizer(BPE({word: i for i, word in enumerate(words)}, []))
    plain.pre_tokenizer, plain.decoder = visible, decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=plain)


@functools.cache
def tool(max_calls=3, more_letters=""):
    words = tokenizer(more_letters)
    return consultation(
        RULES, words, max_calls=max_calls, call_tags=("[", "]"), answer_tags=("(", ")")
    )


VOCABULARY = len(tokenizer())
STOP = tokenizer().convert_tokens_to_ids("$")
CONFIG = dataclasses.replace(SMALL, vocab_size=VOCABULARY, max_positions=64)
