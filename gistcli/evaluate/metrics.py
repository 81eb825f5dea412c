"""Figures of a classifier, in closed form."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

Z_95 = 1.959963984540054
"""Two-sided 95 % quantile of the normal distribution."""


def wilson(successes: int, n: int, z: float = Z_95) -> tuple[float, float]:
    """The Wilson score interval of a rate p = successes / n.

    (p + z^2/2n +- z sqrt(p (1 - p)/n + z^2/4n^2)) / (1 + z^2/n); (0, 1) where n is 0.
    """
    if n == 0:
        return 0.0, 1.0
    p = successes / n
    centre = p + z * z / (2 * n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return max(low, 0.0), min(high, 1.0)


def score_labels(
    labels: np.ndarray,
    predicted: np.ndarray,
    classes: Sequence[str],
    positive: str | None = None,
) -> dict[str, Any]:
    """Figures that follow from the hard predictions alone.

    Args:
        labels: (N,) true class numbers.
        predicted: (N,) predicted class numbers.
        classes: names in order.
        positive: of two classes the one that `f1` is of; None for `positive_class`.

    Returns:
        `n`, `accuracy`, `interval` (95 % Wilson), `balanced_accuracy` (mean recall over the
        classes that occur), `macro_f1` (mean over the classes that occur or are predicted),
        `matthews` (the correlation of labels and predictions), with two classes `f1` of the
        positive one, `per_class` (rows of class, n, recall, interval, precision, f1; None where
        undefined) and `confusion` (rows true, columns predicted).
    """
    many = len(classes)
    pairs_N = np.asarray(labels, np.int64) * many + predicted
    counts_KK = np.bincount(pairs_N, minlength=many * many).reshape(many, many)
    right_K, true_K, named_K = counts_KK.diagonal(), counts_KK.sum(1), counts_KK.sum(0)
    n, right = int(counts_KK.sum()), int(right_K.sum())
    rows = [
        _class_row(name, int(r), int(t), int(p))
        for name, r, t, p in zip(classes, right_K, true_K, named_K, strict=True)
    ]
    recalls = [row["recall"] for row in rows if row["recall"] is not None]
    f1s = [row["f1"] for row in rows if row["f1"] is not None]
    binary = {}
    if len(classes) == 2:
        place = list(classes).index(positive or positive_class(classes))
        binary["f1"] = rows[place]["f1"] or 0.0
    return {
        "n": n,
        "accuracy": right / n if n else 0.0,
        "interval": list(wilson(right, n)),
        "balanced_accuracy": float(np.mean(recalls)) if recalls else 0.0,
        "macro_f1": float(np.mean(f1s)) if f1s else 0.0,
        "matthews": _matthews(right, true_K.tolist(), named_K.tolist()),
        **binary,
        "per_class": rows,
        "confusion": counts_KK.tolist(),
    }


def positive_class(classes: Sequence[str]) -> str:
    """Of two classes the one that is looked for: not the other's `not_`, else the second."""
    first, second = classes
    return first if re.fullmatch(rf"(not|non|un)[-_ ]?{re.escape(first)}", second) else second


def _matthews(right: int, true_K: Sequence[int], named_K: Sequence[int]) -> float:
    """(c s - t.p) / sqrt((s^2 - p.p) (s^2 - t.t)) of c right of s (Gorodkin 2004).

    0 where one side is of a single class, which then explains nothing of the other.
    """
    s = sum(true_K)
    both = sum(t * p for t, p in zip(true_K, named_K, strict=True))
    spread = (s * s - sum(p * p for p in named_K)) * (s * s - sum(t * t for t in true_K))
    return (right * s - both) / math.sqrt(spread) if spread else 0.0


def _class_row(name: str, right: int, true: int, named: int) -> dict[str, Any]:
    """The table row of one class: `right` of `true` examples found, `named` predictions made."""
    return {
        "class": name,
        "n": true,
        "recall": right / true if true else None,
        "interval": list(wilson(right, true)) if true else None,
        "precision": right / named if named else None,
        "f1": 2 * right / (true + named) if true + named else None,
    }


def top_k_accuracy(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Share of examples whose label is among the k largest of their logits (N, K).

    A label that ties with others counts by the number of strictly larger logits.
    """
    own_N1 = logits[np.arange(len(labels)), labels][:, None]
    return float(((logits > own_N1).sum(axis=1) < k).mean()) if len(labels) else 0.0
