"""ROUGE-L (Lin 2004): the longest common subsequence of words, as an F-measure."""

from __future__ import annotations

import re
from collections.abc import Sequence

_BETWEEN = re.compile(r"[^a-z0-9]+")


def words(text: str) -> list[str]:
    """Lower-case runs of a-z and 0-9, without stemming: the standard tokenisation."""
    return [w for w in _BETWEEN.split(text.lower()) if w]


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Its length, by bit-parallel dynamic programming (Hyyroe 2004): one word of bits a column."""
    places: dict[str, int] = {}
    for i, word in enumerate(a):
        places[word] = places.get(word, 0) | 1 << i
    full = (1 << len(a)) - 1
    column = full  # zeros mark where the length grows by one
    for word in b:
        hits = column & places.get(word, 0)
        column = ((column + hits) | (column - hits)) & full
    return len(a) - column.bit_count()


def rouge_l(predicted: str, references: str | Sequence[str]) -> float:
    """The F-measure 2 P R / (P + R), P = L / |prediction|, R = L / |reference|, from 0 to 1.

    With several references the best of them counts; 0 where one side has no word.
    """
    texts = [references] if isinstance(references, str) else list(references)
    guess = words(predicted)
    return max((_f_measure(guess, words(text)) for text in texts), default=0.0)


def mean_rouge_l(predicted: Sequence[str], references: Sequence[str | Sequence[str]]) -> float:
    """The mean over pairs of texts; 0 without any."""
    scores = [rouge_l(p, r) for p, r in zip(predicted, references, strict=True)]
    return sum(scores) / len(scores) if scores else 0.0


def _f_measure(guess: Sequence[str], truth: Sequence[str]) -> float:
    # 2 P R / (P + R) with P = L/n, R = L/m is 2 L / (n + m)
    both = len(guess) + len(truth)
    return 2 * longest_common_subsequence(guess, truth) / both if guess and truth else 0.0
