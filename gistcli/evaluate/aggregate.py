"""Means over seeds, tasks and groups of tasks: which figures a mean rests on is never silent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Mean:
    """A mean over seeds with its sample standard deviation; None where there is a single seed."""

    mean: float
    deviation: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        """For JSON."""
        return {"mean": self.mean, "deviation": self.deviation}


@dataclass(frozen=True)
class Means:
    """Both means that papers print, and the groups behind the first.

    Attributes:
        groups: mean of each group that is complete.
        of_groups: mean of the groups' means; None where a group lacks a task, or without groups.
        of_tasks: mean of all tasks; None where one is missing.
    """

    groups: dict[str, Mean] = field(default_factory=dict)
    of_groups: Mean | None = None
    of_tasks: Mean | None = None


def over_seeds(values: Sequence[float]) -> Mean:
    """Mean and deviation of a figure over seeds."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Mean(float(np.mean(values)), deviation)


def group_tasks(tasks: Sequence[str], group_of: Mapping[str, str | None]) -> dict[str, list[str]]:
    """Group -> its tasks, both in the order of the tasks; tasks without a group are in none."""
    groups: dict[str, list[str]] = {}
    for task in tasks:
        group = group_of.get(task)
        if group is not None:
            groups.setdefault(group, []).append(task)
    return groups


def means(
    values: Mapping[str, Mapping[Any, float]],
    tasks: Sequence[str],
    groups: Mapping[str, Sequence[str]],
) -> Means:
    """Means over the tasks of a table's columns: a mean over fewer of them is left out.

    The deviations are those of the mean, seed by seed; None where tasks have different seeds.

    Args:
        values: task -> seed -> figure.
        tasks: the columns.
        groups: group -> its tasks, as `group_tasks` gives them.
    """
    complete = {g: _mean(values, {g: members}) for g, members in groups.items()}
    return Means(
        groups={g: mean for g, mean in complete.items() if mean is not None},
        of_groups=_mean(values, groups) if groups else None,
        of_tasks=_mean(values, {"all": tasks}),
    )


def _mean(
    values: Mapping[str, Mapping[Any, float]], groups: Mapping[str, Sequence[str]]
) -> Mean | None:
    """The mean over groups of the mean over their tasks; None where a task has no figure."""
    tasks = [task for members in groups.values() for task in members]
    if not tasks or not all(values.get(task) for task in tasks):
        return None
    mean = _nested({task: float(np.mean(list(values[task].values()))) for task in tasks}, groups)
    seeds = values[tasks[0]].keys()
    if any(values[task].keys() != seeds for task in tasks):
        return Mean(mean)
    by_seed = [_nested({t: values[t][seed] for t in tasks}, groups) for seed in seeds]
    return Mean(mean, over_seeds(by_seed).deviation)


def _nested(figures: Mapping[str, float], groups: Mapping[str, Sequence[str]]) -> float:
    return float(np.mean([np.mean([figures[t] for t in members]) for members in groups.values()]))
