"""Texts that share most of their words: our prompts and cases must not."""

import re
from collections.abc import Sequence


def near_duplicates(
    left: Sequence[str], right: Sequence[str], *, threshold: float = 0.6
) -> list[tuple[int, int, float]]:
    """Finds the pairs of texts that share most of their words.

    The similarity is Jaccard's, |A ∩ B| / |A ∪ B| over the sets of lower-cased words, and 1 for two
    texts without any word. Ours: word order and repetition do not count, so it is a coarse sieve.

    Args:
      left: L texts.
      right: R texts.
      threshold: the least similarity that is reported.

    Returns:
      (index in `left`, index in `right`, similarity), ordered by the indices. Takes O(L·R) time.
    """
    left_words, right_words = ([_words(text) for text in side] for side in (left, right))
    pairs = []
    for i, a in enumerate(left_words):
        for j, b in enumerate(right_words):
            union = len(a | b)
            similarity = len(a & b) / union if union else 1.0
            if similarity >= threshold:
                pairs.append((i, j, similarity))
    return pairs


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[\w']+", text.lower()))
