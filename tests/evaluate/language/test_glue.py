"""GLUE's figures against their closed forms."""

from __future__ import annotations

import math

import pytest

from gistcli.errors import DataError, UnknownName
from gistcli.evaluate.language.glue import TASKS, main_figure, score_glue
from gistcli.evaluate.metrics import wilson

LABELS = [1, 1, 1, 1, 0, 0, 0, 1, 0, 1]
PREDICTED = [1, 0, 1, 1, 1, 0, 0, 1, 0, 0]
TP, FP, FN, TN = 4, 1, 2, 3


def test_matthews_is_the_correlation_of_the_two_by_two_table() -> None:
    figures = score_glue("cola", LABELS, PREDICTED)
    sides = (TP + FP) * (TP + FN) * (TN + FP) * (TN + FN)
    assert figures["matthews"] == pytest.approx((TP * TN - FP * FN) / math.sqrt(sides))
    assert main_figure("cola") == "matthews"


@pytest.mark.parametrize("task", ["mrpc", "qqp"])
def test_f1_is_that_of_class_one(task: str) -> None:
    figures = score_glue(task, LABELS, PREDICTED)
    assert figures["f1"] == pytest.approx(2 * TP / (2 * TP + FP + FN))
    assert figures["accuracy"] == 0.7
    assert main_figure(task) == "accuracy"


@pytest.mark.parametrize("task", ["sst2", "qnli", "rte", "mnli", "wnli"])
def test_accuracy_comes_with_its_interval(task: str) -> None:
    figures = score_glue(task, LABELS, PREDICTED)
    assert figures == {"n": 10, "accuracy": 0.7, "interval": list(wilson(7, 10))}


def test_stsb_is_scored_by_both_correlations() -> None:
    labels, predicted = [0.0, 1.0, 2.0, 5.0], [1.0, 3.0, 2.0, 30.0]
    figures = score_glue("stsb", labels, predicted)
    x, y = [v - 2 for v in labels], [v - 9 for v in predicted]
    product = sum(a * b for a, b in zip(x, y, strict=True))
    norms = math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))
    assert figures["pearson"] == pytest.approx(product / norms)
    assert figures["spearman"] == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert figures.keys() == {"n", "pearson", "spearman"}


def test_predictions_that_never_change_explain_nothing() -> None:
    assert score_glue("cola", LABELS, [1] * 10)["matthews"] == 0
    assert score_glue("mrpc", LABELS, [0] * 10)["f1"] == 0
    stsb = score_glue("stsb", [0.0, 1.0, 2.0], [3.0, 3.0, 3.0])
    assert stsb == {"n": 3, "pearson": 0, "spearman": 0}


def test_perfect_predictions_reach_one_in_every_task() -> None:
    for task, names in TASKS.items():
        figures = score_glue(task, [0, 1, 1, 0, 1], [0, 1, 1, 0, 1])
        assert [figures[name] for name in names] == pytest.approx([1.0] * len(names))


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(UnknownName, match="rtee") as caught:
        score_glue("rtee", [1], [1])
    assert "'rte'" in caught.value.hint
    with pytest.raises(DataError, match="cannot be scored"):
        score_glue("rte", [1, 0], [1])
    with pytest.raises(DataError, match="cannot be scored"):
        score_glue("rte", [], [])
