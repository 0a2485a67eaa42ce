"""Automata that read token ids on the device, and the bytes of a tokenizer's vocabulary."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.text.utf8 import ByteDfa

Tokenizer = Any  # transformers.PreTrainedTokenizerFast, which importing here would slow down

NEVER = np.iinfo(np.int32).max

_CHUNK = 64  # bytes looked up at once; a compromise between overhead and waste in the last chunk
_Carry = tuple[jax.Array, jax.Array, jax.Array]
_NO_BYTE = 256  # the column that leaves every state as it is


def token_bytes(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """The bytes that each token adds to the decoded text.

    Special tokens have none: the text is that of
    `tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)`.

    Args:
      tokenizer: a fast Hugging Face tokenizer, either byte-level BPE (SmolLM2, GPT-2, Llama 3,
        Qwen) or of the sentencepiece type with byte tokens (Llama 2, Mistral). In the second,
        decoding writes one U+FFFD for *each* byte of a malformed run of byte tokens, also the
        well-formed ones; here such a run reads as `errors="replace"` would.

    Returns:
      bytes `[V, L]` uint8, zero beyond a token's length, and lengths `[V]` int32.

    Raises:
      ValueError: the tokenizer is not a fast one, or decodes in another way.
    """
    backend = _backend(tokenizer)
    to_bytes = _byte_level_bytes if _is_byte_level(backend) else _byte_fallback_bytes
    added = backend.get_added_tokens_decoder()
    special = {token.content for token in added.values() if token.special}
    vocabulary = backend.get_vocab(with_added_tokens=True)
    size = max(vocabulary.values()) + 1
    tokens = [b""] * size
    for token, index in vocabulary.items():
        tokens[index] = b"" if token in special else to_bytes(token)
    lengths = np.array([len(token) for token in tokens], np.int32)
    table = np.zeros((size, max(1, int(lengths.max()))), np.uint8)
    table[np.arange(table.shape[1]) < lengths[:, None]] = np.frombuffer(b"".join(tokens), np.uint8)
    return table, lengths


def _backend(tokenizer: Tokenizer) -> Any:
    try:
        return tokenizer.backend_tokenizer
    except AttributeError:
        kind = type(tokenizer).__name__
        raise ValueError(f"needs a fast tokenizer of Hugging Face, got {kind}") from None


def _decoder_steps(backend: Any) -> list[dict[str, Any]]:
    """The decoder's parts as the plain dicts of `tokenizer.json`."""
    if backend.decoder is None:
        return [{"type": "none"}]
    decoder = json.loads(backend.decoder.__getstate__())
    return decoder.get("decoders", [decoder])


_SPACE = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
_STRIP = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
_BYTE_FALLBACK = [_SPACE, {"type": "ByteFallback"}, {"type": "Fuse"}]


def _is_byte_level(backend: Any) -> bool:
    """Whether the tokenizer is byte-level; else it is of the sentencepiece type with bytes."""
    steps = _decoder_steps(backend)
    if [step["type"] for step in steps] == ["ByteLevel"]:
        return True
    if steps in (_BYTE_FALLBACK, [*_BYTE_FALLBACK, _STRIP]):
        return False
    kinds = ", ".join(step["type"] for step in steps)
    raise ValueError(f"cannot tell the bytes of this tokenizer's tokens: its decoder is {kinds}")


def _byte_level_bytes(token: str) -> bytes:
    try:
        return bytes(_byte_of_character()[character] for character in token)
    except KeyError:  # an added token that is plain text
        return token.encode()


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, the rest follows from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + index): byte for index, byte in enumerate(others)
    }


def _byte_fallback_bytes(token: str) -> bytes:
    if re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", token):
        return bytes.fromhex(token[3:5])
    return token.replace("▁", " ").encode()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """The bytes of all tokens, one after the other.

    Attributes:
      data: `[bytes]` uint8.
      starts: `[V + 1]` int32, where each token's bytes begin, and where the last one's end.
      strips_space: whether decoding drops one space at the beginning of the text.
    """

    data: jax.Array
    starts: jax.Array
    strips_space: bool = dataclasses.field(metadata={"static": True})

    @classmethod
    def build(cls, tokenizer: Tokenizer) -> Vocabulary:
        """Reads the vocabulary of a tokenizer; raises what `token_bytes` raises."""
        table, lengths = token_bytes(tokenizer)
        return cls(
            data=jnp.asarray(table[np.arange(table.shape[1]) < lengths[:, None]]),
            starts=jnp.asarray(np.concatenate([[0], np.cumsum(lengths)]), jnp.int32),
            strips_space=_STRIP in _decoder_steps(_backend(tokenizer)),
        )

    def span(self, tokens: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Where in `data` each token's bytes begin, and how many they are; any shape, int32.

        Masked tokens and ids beyond the vocabulary (models pad theirs) have no bytes.
        """
        known = mask.astype(bool) & (tokens >= 0) & (tokens < self.starts.shape[0] - 1)
        token = jnp.where(known, tokens, 0)
        begin = self.starts[token]
        return begin, jnp.where(known, self.starts[token + 1] - begin, 0)

    def locate(self, tokens: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`span` of the tokens of whole texts, `[B, T]`, less the space that decoding drops."""
        begin, length = self.span(tokens, mask)
        if self.strips_space:
            first = (length > 0) & (jnp.cumsum(length > 0, axis=1) == 1)
            dropped = (first & (self.data[begin] == ord(" "))).astype(begin.dtype)
            begin, length = begin + dropped, length - dropped
        return begin, length


class Reading(NamedTuple):
    """What K automata found in B texts of T tokens.

    Attributes:
      accepted: `[B, K]` bool, whether the automaton accepts the text.
      first: `[B, K]` int32, after how many bytes it first accepted, `NEVER` if it did not.
      begin: `[B, T]` int32, at which byte of the text the token begins.
      end: `[B, T]` int32, at which byte it ends; equal to `begin` where it has no bytes.
    """

    accepted: jax.Array
    first: jax.Array
    begin: jax.Array
    end: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
    """K automata that read the same tokens side by side; a pytree, so it can pass through jit.

    Attributes:
      vocabulary: the bytes of the tokens.
      transitions: `[Q, 257]` int32, those of all automata, one below the other; column 256 stays.
      accepting: `[Q]` bool.
      initial: `[K]` int32.
    """

    vocabulary: Vocabulary
    transitions: jax.Array
    accepting: jax.Array
    initial: jax.Array

    @classmethod
    def build(cls, automata: Sequence[ByteDfa], tokenizer: Tokenizer) -> Reader:
        """Puts the automata into one table; raises what `token_bytes` raises."""
        sizes = [len(automaton.transitions) for automaton in automata]
        offsets = np.cumsum([0, *sizes[:-1]])
        moved = [a.transitions + offset for a, offset in zip(automata, offsets, strict=True)]
        stay = np.arange(sum(sizes))[:, None]
        return cls(
            vocabulary=Vocabulary.build(tokenizer),
            transitions=jnp.asarray(np.hstack([np.vstack(moved), stay]), jnp.int32),
            accepting=jnp.asarray(np.concatenate([a.accepting for a in automata])),
            initial=jnp.asarray(offsets + [a.start for a in automata], jnp.int32),
        )

    def start(self, batch: int) -> jax.Array:
        """The automata's states `[B, K]` before the first byte, for `advance`."""
        return jnp.broadcast_to(self.initial, (batch, self.initial.shape[0]))

    def advance(self, states: jax.Array, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Reads one more token a row.

        Args:
          states: `[B, K]` int32.
          tokens: `[B]` int; ids that the tokenizer does not know have no bytes.
          mask: `[B]` bool, the rows that read theirs.

        Returns:
          the next states, `[B, K]` int32; `accepting[states]` tells who accepts.
        """
        chex.assert_rank([states, tokens, mask], [2, 1, 1])
        begin, length = self.vocabulary.span(tokens, mask)

        def byte(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            place, states = carry
            data = self.vocabulary.data[begin + place].astype(jnp.int32)
            data = jnp.where(place < length, data, _NO_BYTE)
            return place + 1, self.transitions[states, data[:, None]]

        longest = jnp.max(length, initial=0)
        _, states = jax.lax.while_loop(
            lambda carry: carry[0] < longest, byte, (jnp.int32(0), states)
        )
        return states

    def read(self, tokens: jax.Array, mask: jax.Array) -> Reading:
        """Runs the automata over the bytes of the masked-in tokens.

        One loop over chunks of bytes, as long as the longest text: a chunk's bytes are looked up
        for all rows at once, which leaves one gather per byte to the sequential part.

        Args:
          tokens: `[B, T]` int.
          mask: `[B, T]` bool, the tokens that belong to the text.
        """
        chex.assert_rank([tokens, mask], 2)
        chex.assert_equal_shape([tokens, mask])
        begin, length = self.vocabulary.locate(tokens, mask)
        ends = jnp.cumsum(length, axis=1)
        total = jnp.sum(length, axis=1, keepdims=True)
        offset = begin - (ends - length)  # from a place in the text to a place in the vocabulary
        token_at = jax.vmap(functools.partial(jnp.searchsorted, side="right"), (0, None))

        def chunk(carry: _Carry) -> _Carry:
            position, states, first = carry
            places = position + jnp.arange(_CHUNK, dtype=jnp.int32)
            index = jnp.minimum(token_at(ends, places), tokens.shape[1] - 1)
            data = self.vocabulary.data[places + jnp.take_along_axis(offset, index, axis=1)]
            data = jnp.where(places < total, data.astype(jnp.int32), _NO_BYTE)

            def step(states: jax.Array, byte: jax.Array) -> tuple[jax.Array, jax.Array]:
                states = self.transitions[states, byte[:, None]]
                return states, states

            states, path = jax.lax.scan(step, states, data.T)
            hit = self.accepting[path]
            here = position + 1 + jnp.argmax(hit, axis=0).astype(jnp.int32)
            return (
                position + _CHUNK,
                states,
                jnp.minimum(first, jnp.where(jnp.any(hit, axis=0), here, NEVER)),
            )

        states = self.start(tokens.shape[0])
        first = jnp.where(self.accepting[states], 0, NEVER).astype(jnp.int32)
        longest = jnp.max(total, initial=0)
        _, states, first = jax.lax.while_loop(
            lambda carry: carry[0] < longest, chunk, (jnp.int32(0), states, first)
        )
        return Reading(self.accepting[states], first, ends - length, ends)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Matcher:
    """One automaton over token ids: `matcher(tokens, mask)`, under jit or not.

    A pytree: pass it through jit as an argument, or close over it and have its tables become
    constants of the program.
    """

    reader: Reader

    def __call__(self, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Whether the decoded text of each row's masked-in tokens matches.

        Args:
          tokens: `[B, T]` int; ids that the tokenizer does not know decode to nothing.
          mask: `[B, T]` bool; it may have holes.

        Returns:
          `[B]` bool.
        """
        return self.reader.read(tokens, mask).accepted[:, 0]
