"""Metrics against closed forms and scikit-learn."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
from sklearn.metrics import (
    balanced_accuracy_score,
    f1_score,
    matthews_corrcoef,
    precision_recall_fscore_support,
    top_k_accuracy_score,
)

from gistcli.evaluate.metrics import positive_class, score_labels, top_k_accuracy, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [  # the bounds solve (p - q)^2 = z^2 q (1 - q) / n for q
        (8, 10, 0.490162, 0.943318),
        (1, 29, 0.006113, 0.171755),
        (0, 10, 0.0, 0.277533),
        (10, 10, 0.722467, 1.0),
        (500, 1000, 0.469069, 0.530931),
    ],
)
def test_wilson_intervals_have_their_known_values(
    successes: int, n: int, low: float, high: float
) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-6)


def test_wilson_bounds_solve_the_score_equation_and_hold_the_rate() -> None:
    for n in (1, 7, 100):
        for successes in range(n + 1):
            low, high = wilson(successes, n)
            p = successes / n
            assert 0 <= low <= p <= high <= 1
            for q in (low, high):
                if 0 < q < 1:
                    assert (p - q) ** 2 == pytest.approx(1.959964**2 * q * (1 - q) / n, rel=1e-5)


def test_wilson_of_nothing_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


def test_figures_of_a_table_by_hand() -> None:
    figures = score_labels(np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 2]), list("abc"))
    assert figures["confusion"] == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert (figures["n"], figures["accuracy"]) == (6, 4 / 6)
    assert figures["interval"] == list(wilson(4, 6))
    assert figures["balanced_accuracy"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert figures["macro_f1"] == pytest.approx((2 / 3 + 1 / 2 + 1) / 3)
    assert figures["per_class"][0] == {
        "class": "a",
        "n": 3,
        "recall": 2 / 3,
        "interval": list(wilson(2, 3)),
        "precision": 2 / 3,
        "f1": 2 / 3,
    }


@pytest.mark.parametrize("seed", range(5))
def test_figures_agree_with_scikit_learn_also_where_classes_are_missing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice([0, 2, 3, 5], 40)
    predicted = np.where(rng.random(40) < 0.6, labels, rng.choice([0, 1, 2, 3], 40))
    figures = score_labels(labels, predicted, [f"class {i}" for i in range(7)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # y_pred contains classes not in y_true
        balanced = balanced_accuracy_score(labels, predicted)
    assert figures["balanced_accuracy"] == pytest.approx(balanced)
    macro = f1_score(labels, predicted, average="macro", zero_division=0)
    assert figures["macro_f1"] == pytest.approx(macro)
    matthews = matthews_corrcoef(labels, predicted)
    assert figures["matthews"] == pytest.approx(matthews)
    assert "f1" not in figures  # of two classes only
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, predicted, labels=range(7), zero_division=np.nan
    )
    for i, row in enumerate(figures["per_class"]):
        for name, value in (("precision", precision[i]), ("recall", recall[i]), ("f1", f1[i])):
            assert row[name] == (None if np.isnan(value) else pytest.approx(value))
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


LABELS = np.array([1, 1, 1, 1, 0, 0, 0, 1, 0, 1])
PREDICTED = np.array([1, 0, 1, 1, 1, 0, 0, 1, 0, 0])
TP, FP, FN, TN = 4, 1, 2, 3


def test_matthews_is_the_correlation_of_the_two_by_two_table() -> None:
    figures = score_labels(LABELS, PREDICTED, ["0", "1"])
    sides = (TP + FP) * (TP + FN) * (TN + FP) * (TN + FN)
    assert figures["matthews"] == pytest.approx((TP * TN - FP * FN) / math.sqrt(sides))


def test_f1_is_that_of_the_second_of_two_classes_unless_another_is_named() -> None:
    second, first = 2 * TP / (2 * TP + FP + FN), 2 * TN / (2 * TN + FP + FN)
    assert score_labels(LABELS, PREDICTED, ["0", "1"])["f1"] == pytest.approx(second)
    assert score_labels(LABELS, PREDICTED, ["a", "not_a"])["f1"] == pytest.approx(first)
    assert score_labels(LABELS, PREDICTED, ["0", "1"], "0")["f1"] == pytest.approx(first)
    assert score_labels(LABELS, LABELS * 0, ["0", "1"])["f1"] == 0


@pytest.mark.parametrize(
    ("classes", "positive"),
    [
        (("0", "1"), "1"),
        (("negative", "positive"), "positive"),
        (("duplicate", "not_duplicate"), "duplicate"),
        (("equivalent", "non-equivalent"), "equivalent"),
        (("acceptable", "unacceptable"), "acceptable"),
        (("cat", "dog"), "dog"),
    ],
)
def test_what_is_looked_for_is_the_class_that_is_not_the_others_not(
    classes: tuple[str, str], positive: str
) -> None:
    assert positive_class(classes) == positive


def test_predictions_that_never_change_explain_nothing() -> None:
    assert score_labels(LABELS, LABELS * 0 + 1, ["0", "1"])["matthews"] == 0


def test_top_k_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(50, 8)), rng.integers(0, 8, 50)
    for k in (1, 3, 5):
        expected = top_k_accuracy_score(labels, logits, k=k, labels=range(8))
        assert top_k_accuracy(logits, labels, k) == pytest.approx(expected)
    assert top_k_accuracy(logits, labels, 8) == 1.0
