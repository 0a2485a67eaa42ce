"""The order in which training goes through data, and parts of data."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


def walk(size: int, step: int, *, count: int, seed: tuple[int, ...]) -> list[int]:
    """The `count` indices of one step in an endless sequence, one shuffle of `size` after another.

    Step s takes places s·count … s·count + count − 1, so each epoch of `size` places holds every
    index once (and a step across two epochs, perhaps, one twice), and a run that resumes at step s
    goes on as if it had never stopped. The shuffle depends on (seed, epoch) alone. Ours.
    """
    places = range(step * count, (step + 1) * count)
    epochs = {place // size for place in places}
    orders = {epoch: _shuffle(size, (*seed, epoch)) for epoch in epochs}
    return [int(orders[place // size][place % size]) for place in places]


def evenly(items: Sequence[T], count: int) -> list[T]:
    """At most `count` items, as far apart as can be: files are often sorted."""
    count = min(count, len(items))
    return [items[index * len(items) // count] for index in range(count)]


def first_of_each(items: Sequence[T], key: Callable[[T], Hashable], count: int) -> list[T]:
    """The first `count` items of each key, in their order."""
    seen: dict[Hashable, int] = {}
    taken = []
    for item in items:
        seen[key(item)] = seen.get(key(item), 0) + 1
        if seen[key(item)] <= count:
            taken.append(item)
    return taken


def grouped(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """The items of each key; keys and items in their order."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def _shuffle(size: int, entropy: tuple[int, ...]) -> np.ndarray:
    """A permutation of range(size), int64 [size], fixed by `entropy` for good.

    It sorts raw PCG64 draws: NumPy keeps those the same in every version, which it does not promise
    for `Generator.permutation`. Ties among 64-bit draws are too rare to bias the order.
    """
    return np.argsort(np.random.PCG64(entropy).random_raw(size), kind="stable")
