"""Figures of a network that gives one value an example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr


def score_values(targets: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """What a regression is measured by, as JSON values.

    Args:
        targets: (N,) true values.
        predicted: (N,) outputs.

    Returns:
        `n`, `pearson`, `spearman`, `correlation` (the mean of the two, as GLUE counts STS-B) and
        `loss`, the mean squared error.
    """
    truth_N, guess_N = targets.astype(np.float64), predicted.astype(np.float64)
    pearson = _correlation(pearsonr, truth_N, guess_N)
    spearman = _correlation(spearmanr, truth_N, guess_N)
    return {
        "n": len(truth_N),
        "pearson": pearson,
        "spearman": spearman,
        "correlation": (pearson + spearman) / 2,
        "loss": float(np.mean((truth_N - guess_N) ** 2)) if len(truth_N) else 0.0,
    }


def _correlation(measure: Callable[..., Any], truth_N: np.ndarray, guess_N: np.ndarray) -> float:
    """The coefficient; 0 where one side is constant, which then explains nothing of the other."""
    if len(truth_N) < 2 or np.ptp(truth_N) == 0 or np.ptp(guess_N) == 0:
        return 0.0
    return float(measure(truth_N, guess_N).statistic)
