"""Completions that share rows with their prompts: a training pass without padding.

    row:        [ prompt a | completion a1 | completion a2 | prompt b | completion b1 | padding ]
    documents:  [ 1 1 1      D+1 D+1 D+1     2D+1            2 2        D+2 D+2         0       ]
    positions:  [ 0 1 2      3 4 5           3               0 1        2 3             0       ]

A completion sees its prompt and itself, a prompt stands once in each row that has completions of
it, and all see the prefix; D is `jaxalign.models.attention.OPENED`. As everywhere, a prompt's last
token is the first input of its completions. So each log-probability is the one that the token has
in a row of its own.

Rows are filled inside the program, by first fit, from a batch's lengths: prompts with the most
tokens first, of each the longest completions first, each into the first row with room for it, and
for its prompt where the row has none. Ours.
"""

import math

import jax
import jax.numpy as jnp
from flax import struct
from jax.sharding import Mesh

from jaxalign.models.attention import OPENED
from jaxalign.models.completion import last_place
from jaxalign.models.sharding import split_of


@struct.dataclass
class Layout:
    """Which token lies where, in S shards of N/S prompts and B/S completions each.

    A shard's inputs are numbered: its prompts' tokens from 0, behind them those of completions.

    Attributes:
      source: `[S, R, L]` int32, the input at each place of the rows, −1 for none.
      place: `[S, B/S, T]` int32, where each token's input lies in the shard's rows as they follow
        each other; −1 for a token that is not there.
    """

    source: jax.Array
    place: jax.Array

    @property
    def rows(self) -> jax.Array:
        """How many rows the fullest shard takes, scalar int32."""
        return (self.source >= 0).any(axis=2).sum(axis=1).max()

    def part(self, index: jax.Array, rows: int) -> "Layout":
        """Rows number index·rows to (index + 1)·rows of every shard, and the tokens in these."""
        length = self.source.shape[2]
        source = jax.lax.dynamic_slice_in_dim(self.source, index * rows, rows, axis=1)
        place = self.place - index * rows * length
        return Layout(source, jnp.where((place >= 0) & (place < rows * length), place, -1))

    @property
    def holds(self) -> jax.Array:
        """`[B, T]` bool, the tokens whose inputs are in these rows."""
        return (self.place >= 0).reshape(-1, self.place.shape[2])

    def take(self, prompts: jax.Array, completions: jax.Array) -> jax.Array:
        """What stands at each place: `[N, P]` and `[B, T]` to `[S·R, L]`, 0 where there is none."""
        shards, rows, length = self.source.shape
        flat = [x.reshape(shards, -1) for x in (prompts, completions)]
        inputs = jnp.concatenate(flat, axis=1)
        taken = jax.vmap(lambda x, at: jnp.take(x, at, axis=0, mode="clip"))(inputs, self.source)
        return jnp.where(self.source >= 0, taken, 0).reshape(shards * rows, length)

    def back(self, values: jax.Array) -> jax.Array:
        """What rows say of the tokens: `[S·R, L, …]` to `[B, T, …]`, 0 where `holds` is False."""
        shards, _, length = self.place.shape
        flat = values.reshape(shards, -1, *values.shape[2:])
        taken = jax.vmap(lambda x, at: jnp.take(x, at, axis=0, mode="clip"))(flat, self.place)
        taken = taken.reshape(-1, length, *values.shape[2:])
        holds = self.holds.reshape(self.holds.shape + (1,) * (taken.ndim - 2))
        return jnp.where(holds, taken, 0)


@struct.dataclass
class SharedRows:
    """The inputs of a layout's rows, `[S·R, L]` int32 each.

    Attributes:
      tokens: inputs.
      positions: their positions, the prefix counted.
      documents: as `jaxalign.models.attention.attend` has them.
    """

    tokens: jax.Array
    positions: jax.Array
    documents: jax.Array


def rows_of(
    layout: Layout,
    prompts: jax.Array,
    prompt_mask: jax.Array,
    tokens: jax.Array,
    *,
    offset: int,
) -> SharedRows:
    """What lies in a layout's rows.

    Args:
      layout: of these prompts and completions.
      prompts: `[N, P]` int32.
      prompt_mask: `[N, P]` bool.
      tokens: `[B, T]` int32.
      offset: tokens of the prefix.
    """
    count, group = len(prompts), len(tokens) // len(prompts)
    last = last_place(prompt_mask)[:, None]
    opening = jnp.repeat(jnp.take_along_axis(prompts, last, axis=1), group, axis=0)
    positions = offset + jnp.cumsum(prompt_mask, axis=1) - 1
    follow = jnp.repeat(jnp.take_along_axis(positions, last, axis=1), group, axis=0)
    shards = layout.source.shape[0]
    number = (1 + jnp.arange(count) % (count // shards))[:, None]
    sample = (1 + jnp.arange(len(tokens)) % group)[:, None]
    return SharedRows(
        layout.take(prompts, jnp.concatenate([opening, tokens[:, :-1]], axis=1)),
        layout.take(positions, follow + jnp.arange(tokens.shape[1])),
        layout.take(
            jnp.broadcast_to(number, prompts.shape),
            jnp.broadcast_to(jnp.repeat(number, group, axis=0) + OPENED * sample, tokens.shape),
        ),
    )


def lay_rows_out(
    prompt_mask: jax.Array, mask: jax.Array, *, rows: int, mesh: Mesh | None = None
) -> Layout:
    """Fills rows of twice P + T places.

    Args:
      prompt_mask: `[N, P]` bool.
      mask: `[B, T]` bool, a prefix of each row: which tokens exist.
      rows: what the layout is taken apart by (`Layout.part`); its R is a multiple.
      mesh: as the model's; a device's prompts and completions fill rows of their own, so N is
        divided by data·fsdp or all of it lies on every device.

    Raises:
      ValueError: more prompts or samples than documents can be numbered for.
    """
    count, group = len(prompt_mask), len(mask) // len(prompt_mask)
    shards = math.prod(mesh.shape[name] for name in split_of(count, "batch", mesh)) if mesh else 1
    if count // shards >= OPENED or group >= 2**31 // OPENED - 1:
        raise ValueError(
            f"{count // shards} prompts of {group} samples on a device can't share rows: at most "
            f"{OPENED - 1} and {2**31 // OPENED - 2}; take more minibatches"
        )
    source, place = jax.vmap(lambda p, m: _fill(p, m, rows))(
        prompt_mask.reshape(shards, -1, prompt_mask.shape[1]),
        mask.reshape(shards, -1, mask.shape[1]),
    )
    return Layout(source, place)


def row_length(prompt: int, completion: int) -> int:
    """Places of a row, of the longest prompt and completion.

    Twice both: in a row for just one, what is a little over half as long would leave half empty.
    """
    return 2 * (prompt + completion)


def _fill(prompt_mask: jax.Array, mask: jax.Array, multiple: int) -> tuple[jax.Array, jax.Array]:
    """A shard's `source` and `place`."""
    (count, width), (completions, new) = prompt_mask.shape, mask.shape
    body = prompt_mask & (jnp.arange(width) != last_place(prompt_mask)[:, None])
    lengths = mask.sum(axis=1).reshape(count, -1)
    size = row_length(width, new)
    row, start, opening = _first_fit(body.sum(axis=1), lengths, size)
    rows = -(-completions // multiple) * multiple
    nowhere = rows * size
    begin = (row * size)[:, :, None]

    place = begin + start[:, :, None] + jnp.arange(new)
    place = jnp.where(mask.reshape(place.shape), place, -1).reshape(mask.shape)
    copies = begin + opening[:, :, None] + (jnp.cumsum(body, axis=1) - 1)[:, None]
    copies = jnp.where(body[:, None] & (opening >= 0)[:, :, None], copies, nowhere)
    numbers = jnp.broadcast_to(jnp.arange(count * width).reshape(count, 1, width), copies.shape)
    source = jnp.full(nowhere, -1, jnp.int32)
    source = source.at[copies.reshape(-1)].set(numbers.reshape(-1), mode="drop")
    own = count * width + jnp.arange(mask.size)
    source = source.at[jnp.where(place < 0, nowhere, place).reshape(-1)].set(own, mode="drop")
    return source.reshape(rows, -1), place


def _first_fit(
    openings: jax.Array, lengths: jax.Array, size: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Places completions of `lengths` `[N, G]` behind prompts of `openings` `[N]` tokens.

    Returns:
      `[N, G]` each: the row of `size` places, where in it the completion begins, and where its
      prompt does, −1 if another completion has brought it or there is nothing to place.
    """
    count, group = lengths.shape
    prompts = jnp.argsort(-(openings + lengths.sum(axis=1)))
    samples = jnp.argsort(-lengths[prompts], axis=1).reshape(-1)
    prompts = jnp.repeat(prompts, group)
    first = jnp.arange(count * group) % group == 0
    numbers = jnp.arange(count * group)

    def put(carry: tuple[jax.Array, jax.Array], item: tuple[jax.Array, ...]):
        used, has = carry
        opening, length, first = item
        has = has & ~first
        need = length + jnp.where(has, 0, opening)
        fits = used + need <= size
        row = jnp.argmin(jnp.where(fits, numbers, 2 * len(numbers)) - len(numbers) * (has & fits))
        begin, brings = used[row], ~has[row] & (length > 0)
        start = begin + jnp.where(has[row], 0, opening)
        used = used.at[row].add(jnp.where(length > 0, need[row], 0))
        return (used, has.at[row].set(has[row] | brings)), (
            row,
            start,
            jnp.where(brings, begin, -1),
        )

    begin = jnp.zeros(count * group, jnp.int32), jnp.zeros(count * group, bool)
    _, placed = jax.lax.scan(put, begin, (openings[prompts], lengths[prompts, samples], first))
    back = prompts * group + samples
    row, start, opening = (jnp.zeros_like(x).at[back].set(x).reshape(count, group) for x in placed)
    return row, start, opening
