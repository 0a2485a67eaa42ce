"""Automata that read token ids on the device, and the bytes of a tokenizer's vocabulary."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxalign.text.utf8 import ByteDfa, well_formed

Tokenizer = Any  # transformers.PreTrainedTokenizerFast, which importing here would slow down

NEVER = np.iinfo(np.int32).max

CHUNK = 64  # bytes looked up at once; a compromise between overhead and waste in the last chunk
_Pair = tuple[jax.Array, jax.Array]
_Carry = tuple[jax.Array, jax.Array, jax.Array]
NO_BYTE = 256  # the column that leaves every state as it is
_WHOLE = 0  # the state of `well_formed` between characters
_REPLACEMENT = np.frombuffer("\ufffd".encode(), np.uint8)


def token_bytes(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """The bytes that each token adds to the decoded text.

    Special tokens have none: the text is that of
    `tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)`.

    Args:
      tokenizer: a fast Hugging Face tokenizer, either byte-level BPE (SmolLM2, GPT-2, Llama 3,
        Qwen) or of the sentencepiece type with byte tokens (Llama 2, Mistral). In the second,
        decoding takes a run of byte tokens as a whole: if it is not UTF-8, then *each* of its
        bytes adds U+FFFD instead, also those of characters within it that are whole.

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


_is_byte_name = re.compile(r"<0x[0-9A-Fa-f+][0-9A-Fa-f]>").fullmatch  # Rust reads "+5" as 5


def _byte_fallback_bytes(token: str) -> bytes:
    if _is_byte_name(token):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode()


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Vocabulary:
    """The bytes of all tokens, one after the other.

    Attributes:
      data: `[bytes]` uint8, in the end those of U+FFFD.
      starts: `[V + 1]` int32, where each token's bytes begin, and where the last one's end.
      byte_tokens: `[V]` bool, the tokens that stand for one byte of what may not be UTF-8, and are
        decoded by the run; None for a byte-level tokenizer, which has no such runs.
      strips_space: whether decoding drops one space at the beginning of the text.
    """

    data: jax.Array
    starts: jax.Array
    byte_tokens: jax.Array | None
    strips_space: bool = dataclasses.field(metadata={"static": True})

    @classmethod
    def build(cls, tokenizer: Tokenizer) -> Vocabulary:
        """Reads the vocabulary of a tokenizer; raises what `token_bytes` raises."""
        table, lengths = token_bytes(tokenizer)
        data = table[np.arange(table.shape[1]) < lengths[:, None]]
        backend, byte_tokens = _backend(tokenizer), None
        if not _is_byte_level(backend):
            names = [backend.id_to_token(index) or "" for index in range(len(lengths))]
            byte_tokens = jnp.array([_is_byte_name(name) is not None for name in names])
        return cls(
            data=jnp.asarray(np.concatenate([data, _REPLACEMENT])),
            starts=jnp.asarray(np.concatenate([[0], np.cumsum(lengths)]), jnp.int32),
            byte_tokens=byte_tokens,
            strips_space=_STRIP in _decoder_steps(backend),
        )

    def span(self, tokens: jax.Array, mask: jax.Array) -> _Pair:
        """Where in `data` each token's bytes begin, and how many they are; any shape, int32.

        Masked tokens and ids beyond the vocabulary (models pad theirs) have no bytes.
        """
        known = mask.astype(bool) & (tokens >= 0) & (tokens < self.starts.shape[0] - 1)
        token = jnp.where(known, tokens, 0)
        begin = self.starts[token]
        return begin, jnp.where(known, self.starts[token + 1] - begin, 0)

    def runs(self, tokens: jax.Array, length: jax.Array) -> _Pair:
        """Which tokens are bytes of a run, and which end one: skipped tokens do neither."""
        assert self.byte_tokens is not None
        one_byte = (length > 0) & self.byte_tokens[tokens]
        return one_byte, (length > 0) & ~one_byte

    def replaced(self, malformed: jax.Array, begin: jax.Array, length: jax.Array) -> _Pair:
        """`begin` and `length` of tokens, but those of U+FFFD where they are malformed."""
        begin = jnp.where(malformed, self.starts[-1], begin)
        return begin, jnp.where(malformed, len(_REPLACEMENT), length)

    def stripped(self, begin: jax.Array, length: jax.Array) -> _Pair:
        """`begin` and `length` of whole texts, `[B, T]`, less the space that decoding drops."""
        if self.strips_space:
            first = (length > 0) & (jnp.cumsum(length > 0, axis=1) == 1)
            dropped = (first & (self.data[begin] == ord(" "))).astype(begin.dtype)
            begin, length = begin + dropped, length - dropped
        return begin, length

    def chunks(self, begin: jax.Array, length: jax.Array) -> Callable[[jax.Array], jax.Array]:
        """From a place in texts, `begin` and `length` `[B, T]`, to the `CHUNK` bytes there.

        They are `[B, CHUNK]` int32, with `NO_BYTE` behind the end.
        """
        ends = jnp.cumsum(length, axis=1)
        total = jnp.sum(length, axis=1, keepdims=True)
        offset = begin - (ends - length)  # from a place in the text to a place in the vocabulary
        token_at = jax.vmap(functools.partial(jnp.searchsorted, side="right"), (0, None))

        def chunk_at(position: jax.Array) -> jax.Array:
            places = position + jnp.arange(CHUNK, dtype=jnp.int32)
            index = jnp.minimum(token_at(ends, places), begin.shape[1] - 1)
            data = self.data[places + jnp.take_along_axis(offset, index, axis=1)]
            return jnp.where(places < total, data.astype(jnp.int32), NO_BYTE)

        return chunk_at


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
        If there are byte tokens, `well_formed` is above them and tells which runs are UTF-8.
      accepting: `[Q]` bool.
      initial: `[K]` int32.
    """

    vocabulary: Vocabulary
    transitions: jax.Array
    accepting: jax.Array
    initial: jax.Array

    @classmethod
    def build(cls, automata: Sequence[ByteDfa], tokenizer: Tokenizer) -> Reader:
        """Of a tokenizer's vocabulary; raises what `token_bytes` raises."""
        return cls.of(automata, Vocabulary.build(tokenizer))

    @classmethod
    def of(cls, automata: Sequence[ByteDfa], vocabulary: Vocabulary) -> Reader:
        """Puts the automata into one table."""
        above = [] if vocabulary.byte_tokens is None else [well_formed()]
        everything = [*above, *automata]
        offsets = np.cumsum([0, *(len(a.transitions) for a in everything)])
        moved = [a.transitions + offset for a, offset in zip(everything, offsets, strict=False)]
        stay = np.arange(offsets[-1])[:, None]
        return cls(
            vocabulary=vocabulary,
            transitions=jnp.asarray(np.hstack([np.vstack(moved), stay]), jnp.int32),
            accepting=jnp.asarray(np.concatenate([a.accepting for a in everything])),
            initial=jnp.asarray(offsets[len(above) : -1] + [a.start for a in automata], jnp.int32),
        )

    def start(self, batch: int) -> jax.Array:
        """The states before the first byte, for `advance`: `[B, 1, K]` int32.

        With byte tokens they are `[B, 2, K + 1]`: as if the present run of them were UTF-8, and
        with U+FFFD for each of its bytes; the last is that of `well_formed` over the run.
        """
        one = self.initial[None]
        if self.vocabulary.byte_tokens is not None:
            one = jnp.tile(jnp.append(one, _WHOLE), (2, 1))
        return jnp.broadcast_to(one, (batch, *one.shape))

    def accepted(self, states: jax.Array) -> jax.Array:
        """Which automata accept the text read so far, its first space included: `[B, K]` bool."""
        return self.accepting[self._decided(states)[:, : len(self.initial)]]

    def _decided(self, states: jax.Array) -> jax.Array:
        """`[B, K]` or `[B, K + 1]`, the states if the text, and so a run, ends here."""
        return jnp.where(states[:, 0, -1:] == _WHOLE, states[:, 0], states[:, -1])

    def advance(self, states: jax.Array, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        """Reads one more token, `[B]` int, in the rows of the mask, `[B]` bool.

        `states` are from `start` or an earlier `advance`; ids that the tokenizer does not know have
        no bytes. Returns the next states; `accepted` tells who accepts.
        """
        chex.assert_rank([states, tokens, mask], [3, 1, 1])
        tokens, mask = tokens[:, None], mask[:, None]
        begin, length = self.vocabulary.span(tokens, mask)
        if self.vocabulary.byte_tokens is not None:
            one_byte, ends_run = self.vocabulary.runs(tokens, length)
            states = jnp.where(ends_run[..., None], self._decided(states)[:, None], states)
            other_begin, other_length = self.vocabulary.replaced(one_byte, begin, length)
            begin = jnp.hstack([begin, other_begin])
            length = jnp.hstack([length, other_length])

        def byte(carry: _Pair) -> _Pair:
            place, states = carry
            data = self.vocabulary.data[begin + place].astype(jnp.int32)
            data = jnp.where(place < length, data, NO_BYTE)
            return place + 1, self.transitions[states, data[..., None]]

        longest = jnp.max(length, initial=0)
        _, states = jax.lax.while_loop(
            lambda carry: carry[0] < longest, byte, (jnp.int32(0), states)
        )
        return states

    def _malformed(self, tokens: jax.Array, begin: jax.Array, length: jax.Array) -> jax.Array:
        """`[B, T]` bool, the byte tokens whose run is not UTF-8."""
        one_byte, ends_run = self.vocabulary.runs(tokens, length)
        data = jnp.where(one_byte, self.vocabulary.data[begin].astype(jnp.int32), NO_BYTE)

        def step(state: jax.Array, column: _Pair) -> _Pair:
            byte, ends_run = column
            state = jnp.where(ends_run, _WHOLE, self.transitions[state, byte])
            return state, state == _WHOLE

        start = jnp.full(len(tokens), _WHOLE, jnp.int32)
        _, whole = jax.lax.scan(step, start, (data.T, ends_run.T))
        places = jnp.arange(tokens.shape[1])
        stop = jax.lax.cummin(jnp.where(ends_run, places, len(places)), axis=1, reverse=True)
        return one_byte & ~jnp.take_along_axis(whole.T, stop - 1, axis=1)

    def laid_out(self, tokens: jax.Array, mask: jax.Array) -> _Pair:
        """Where in `vocabulary.data` the bytes of each token of a text begin, and their number."""
        begin, length = self.vocabulary.span(tokens, mask)
        if self.vocabulary.byte_tokens is not None:
            malformed = self._malformed(tokens, begin, length)
            begin, length = self.vocabulary.replaced(malformed, begin, length)
        return self.vocabulary.stripped(begin, length)

    def read(self, tokens: jax.Array, mask: jax.Array) -> Reading:
        """Runs the automata over the bytes of the masked-in tokens; both are `[B, T]`.

        One loop over chunks of bytes, as long as the longest text: a chunk's bytes are looked up
        for all rows at once, which leaves one gather per byte to the sequential part.
        """
        chex.assert_rank([tokens, mask], 2)
        chex.assert_equal_shape([tokens, mask])
        begin, length = self.laid_out(tokens, mask)
        ends = jnp.cumsum(length, axis=1)
        chunk_at = self.vocabulary.chunks(begin, length)

        def chunk(carry: _Carry) -> _Carry:
            position, states, first = carry

            def step(states: jax.Array, byte: jax.Array) -> _Pair:
                states = self.transitions[states, byte[:, None]]
                return states, states

            states, path = jax.lax.scan(step, states, chunk_at(position).T)
            hit = self.accepting[path]
            here = position + 1 + jnp.argmax(hit, axis=0).astype(jnp.int32)
            return (
                position + CHUNK,
                states,
                jnp.minimum(first, jnp.where(jnp.any(hit, axis=0), here, NEVER)),
            )

        states = jnp.broadcast_to(self.initial, (len(tokens), len(self.initial)))
        first = jnp.where(self.accepting[states], 0, NEVER).astype(jnp.int32)
        longest = jnp.max(ends, initial=0)
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
        """Whether the decoded text of each row's masked-in tokens matches: `[B]` bool.

        Tokens are `[B, T]` int, of which those that the tokenizer does not know decode to nothing;
        the mask, `[B, T]` bool, may have holes.
        """
        return self.reader.read(tokens, mask).accepted[:, 0]
