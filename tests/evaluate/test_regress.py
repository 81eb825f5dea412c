"""Figures of values against their closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gistcli.evaluate.regress import score_values


def test_values_are_scored_by_both_correlations_and_their_squared_error() -> None:
    targets, predicted = np.array([0.0, 1.0, 2.0, 5.0]), np.array([1.0, 3.0, 2.0, 30.0])
    x, y = targets - 2, predicted - 9
    pearson = float((x * y).sum() / math.sqrt((x * x).sum() * (y * y).sum()))
    spearman = 1 - 6 * 2 / (4 * 15)
    assert score_values(targets, predicted) == {
        "n": 4,
        "pearson": pytest.approx(pearson),
        "spearman": pytest.approx(spearman),
        "correlation": pytest.approx((pearson + spearman) / 2),
        "loss": pytest.approx((1 + 4 + 0 + 625) / 4),
    }


def test_values_that_never_change_explain_nothing() -> None:
    figures = score_values(np.array([0.0, 1.0, 2.0]), np.array([3.0, 3.0, 3.0]))
    assert (figures["pearson"], figures["spearman"], figures["correlation"]) == (0, 0, 0)
