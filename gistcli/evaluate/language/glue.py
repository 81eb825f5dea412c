"""The figures of the GLUE tasks (Wang et al. 2019), by scikit-learn and SciPy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef

from gistcli.errors import DataError, UnknownName, did_you_mean
from gistcli.evaluate.metrics import wilson


def _correlation(measure: Callable[..., Any]) -> Callable[[np.ndarray, np.ndarray], float]:
    """The coefficient; 0 where one side is constant, which then explains nothing of the other."""

    def figure(labels: np.ndarray, predicted: np.ndarray) -> float:
        if len(labels) < 2 or np.ptp(labels) == 0 or np.ptp(predicted) == 0:
            return 0.0
        return float(measure(labels, predicted).statistic)

    return figure


def _accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    return float(np.mean(labels == predicted))


def _f1(labels: np.ndarray, predicted: np.ndarray) -> float:
    """Of class 1, as GLUE counts it; 0 where nothing is found."""
    return float(f1_score(labels, predicted, labels=[1], average="macro", zero_division=0))


def _matthews(labels: np.ndarray, predicted: np.ndarray) -> float:
    return float(matthews_corrcoef(labels, predicted))


FIGURES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _accuracy,
    "f1": _f1,
    "matthews": _matthews,
    "pearson": _correlation(pearsonr),
    "spearman": _correlation(spearmanr),
}

TASKS: dict[str, tuple[str, ...]] = {
    "cola": ("matthews", "accuracy"),
    "mnli": ("accuracy",),
    "mrpc": ("accuracy", "f1"),
    "qnli": ("accuracy",),
    "qqp": ("accuracy", "f1"),
    "rte": ("accuracy",),
    "sst2": ("accuracy",),
    "stsb": ("pearson", "spearman"),
    "wnli": ("accuracy",),
}
"""Task -> its figures; the first is the one that the papers' tables hold and that selects."""


def main_figure(task: str) -> str:
    """The name of the figure that a task is compared by.

    Raises:
        UnknownName: no such task.
    """
    return _figures_of(task)[0]


def score_glue(
    task: str, labels: Sequence[float] | np.ndarray, predicted: Sequence[float] | np.ndarray
) -> dict[str, Any]:
    """All figures of a task, as JSON values.

    Args:
        task: a key of TASKS.
        labels: (N,) class numbers, or the true scores of stsb.
        predicted: (N,) likewise.

    Returns:
        `n`, the task's figures, and with accuracy its 95 % Wilson `interval`.

    Raises:
        UnknownName: no such task.
        DataError: no example, or not as many predictions as labels.
    """
    names = _figures_of(task)
    truth_N, guess_N = np.asarray(labels), np.asarray(predicted)
    if truth_N.shape != guess_N.shape or truth_N.ndim != 1 or not len(truth_N):
        raise DataError(
            f"{task}: {guess_N.shape} predictions for {truth_N.shape} labels cannot be scored.",
            "Give one prediction for each of at least one label.",
        )
    figures: dict[str, Any] = {"n": len(truth_N)}
    figures |= {name: FIGURES[name](truth_N, guess_N) for name in names}
    if "accuracy" in names:
        figures["interval"] = list(wilson(int((truth_N == guess_N).sum()), len(truth_N)))
    return figures


def _figures_of(task: str) -> tuple[str, ...]:
    if task not in TASKS:
        raise UnknownName(f"{task!r} is no GLUE task.", did_you_mean(task, TASKS))
    return TASKS[task]
