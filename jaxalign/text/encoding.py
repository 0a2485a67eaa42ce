"""From text to token ids that spell its letters, whatever it names, and back."""

from collections.abc import Set
from typing import Any

import numpy as np

from jaxalign.host.errors import InputError


def decode(tokenizer: Any, tokens: np.ndarray, mask: np.ndarray) -> str:
    """The text of one completion, `[T]` ids and `[T]` bool: the text that the verifiers judge."""
    text: str = tokenizer.decode(
        tokens[mask], skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


_BREAK = "\n"  # no piece of a sentencepiece vocabulary goes over it


def encode_text(tokenizer: Any, text: str, first: bool = True) -> list[int]:
    """The ids of a plain text, in which the names of all added tokens are letters.

    Not of special ones alone: Qwen's `<think>` and `<tool_call>` are added and not special. The ids
    are those that the tokenizer, a fast Hugging Face one, would give if it had no added tokens.
    Where the model's own vocabulary makes one of a name, the name alone is in smaller pieces. What
    is not `first` in a text gets no space before it of a tokenizer (Mistral's) that puts one before
    the first word alone.

    Raises:
      InputError: the text has a letter that the vocabulary spells by an added token alone.
    """
    ids: list[int]
    if not first and _prepends_once(tokenizer):
        known, ids = (encode_text(tokenizer, x) for x in (_BREAK, _BREAK + text))
        if ids[: len(known)] == known:
            return ids[len(known) :]
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    added = set(tokenizer.get_added_vocab().values())
    if added.isdisjoint(ids):
        return ids
    # What the tokenizer does to a text, but for looking for added tokens before anything else.
    backend = tokenizer.backend_tokenizer
    words = [text]
    if backend.normalizer is not None:
        words = [backend.normalizer.normalize_str(text)]
    if backend.pre_tokenizer is not None:
        words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(words[0])]
    return [index for word in words for index in _spell(backend.model, word, added)]


def _prepends_once(tokenizer: Any) -> bool:
    pre_tokenizer = tokenizer.backend_tokenizer.pre_tokenizer
    return getattr(pre_tokenizer, "prepend_scheme", None) == "first"


def _spell(model: Any, word: str, added: Set[int]) -> list[int]:
    """The ids of a word; an added token's name in it, which the model knows too, in pieces."""
    spelled = word.encode()
    ids: list[int] = []
    for token in model.tokenize(word):
        name = model.id_to_token(token.id) if token.id in added else ""
        first, last = token.offsets
        if name and spelled[first:last] == name.encode():
            ids += _pieces(model, name, added)
        else:  # an added token of another name stands for what the model can't spell
            ids.append(token.id)
    return ids


def _pieces(model: Any, name: str, added: Set[int]) -> list[int]:
    """The longest beginning of a name that is no added token, and the same of what remains."""
    for end in range(len(name) - 1, 0, -1):
        ids = [token.id for token in model.tokenize(name[:end])]
        if added.isdisjoint(ids):
            return ids + _spell(model, name[end:], added)
    letter, rest = name[0], name[1:]
    ids = [token.id for token in model.tokenize(letter)]
    if model.token_to_id(letter) in ids:
        ids = [model.token_to_id(f"<0x{byte:02X}>") for byte in letter.encode()]
        if None in ids or not added.isdisjoint(ids):
            raise InputError(
                f"the tokenizer spells {letter!r} by an added token alone, which no text may hold: "
                "take the letter out of the text"
            )
    return ids + (_spell(model, rest, added) if rest else [])
