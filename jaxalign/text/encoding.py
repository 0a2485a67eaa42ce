"""From text to token ids that spell its letters, whatever it names, and back."""

from typing import Any

import numpy as np


def decode(tokenizer: Any, tokens: np.ndarray, mask: np.ndarray) -> str:
    """The text of one completion, `[T]` ids and `[T]` bool: the text that the verifiers judge."""
    text: str = tokenizer.decode(
        tokens[mask], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """The ids of a plain text, in which the names of all added tokens are letters.

    Not of special ones alone: Qwen's `<think>` and `<tool_call>` are added and not special. The ids
    are those that the tokenizer, a fast Hugging Face one, would give if it had no added tokens; but
    a word in which it would still find one is given letter by letter.
    """
    ids: list[int]
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    added = set(tokenizer.get_added_vocab().values())
    if added.isdisjoint(ids):
        return ids
    # What the tokenizer does to a text, but for looking for added tokens before anything else.
    backend = tokenizer.backend_tokenizer
    model, words = backend.model, [text]
    if backend.normalizer is not None:
        words = [backend.normalizer.normalize_str(text)]
    if backend.pre_tokenizer is not None:
        words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(words[0])]
    added -= {tokenizer.unk_token_id}  # what the model can't spell
    ids = []
    for word in words:
        found = [token.id for token in model.tokenize(word)]
        if not added.isdisjoint(found):  # the word stands in the model's own vocabulary too
            found = [token.id for letter in word for token in model.tokenize(letter)]
        ids += found
    return ids
