"""Held-out tasks as figures: a score for each, and means over tasks with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gistcli.data.episodes import Episode
from gistcli.evaluate.language.held_out import OWN, Answers, is_ranked
from gistcli.evaluate.paired import interval_of_mean

METRICS = ("accuracy", "rouge_l")
"""Of tasks whose queries have options, and of the others."""


@dataclass(frozen=True)
class TaskScores:
    """Scores of tasks.

    Attributes:
        tasks: a JSON object each: `task`, `examples`, `queries`, `metric`, `score`, and the scores
            under the other conditions, by their names.
        rows: a JSON object for each query, with what was answered under every condition.
    """

    tasks: Sequence[Mapping[str, Any]]
    rows: Sequence[Mapping[str, Any]]

    def figures(self) -> dict[str, float]:
        """Means over tasks: `accuracy`, `accuracy_zero_shot`, ..., `rouge_l`, ..."""
        return {name: float(np.mean(values)) for name, values in self._values().items()}

    def intervals(self) -> dict[str, list[float]]:
        """95 % of each of these, over the tasks (bootstrap): what other tasks would have given.

        A single task says nothing about others.
        """
        several = {name: values for name, values in self._values().items() if len(values) > 1}
        return {name: [*interval_of_mean(np.array(values))] for name, values in several.items()}

    def counts(self) -> dict[str, int]:
        """How many tasks each figure is a mean of."""
        return {name: len(values) for name, values in self._values().items()}

    def _values(self) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for metric in METRICS:
            for task in self.tasks:
                if task["metric"] == metric:
                    for condition, score in _scores(task).items():
                        name = metric if condition == "score" else f"{metric}_{condition}"
                        found.setdefault(name, []).append(score)
        return found


def _scores(task: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in task.items() if isinstance(value, float)}


def score_tasks(episodes: Sequence[Episode], answers: Mapping[str, Answers]) -> TaskScores:
    """Scores of the queries' answers, by task.

    Args:
        episodes: a task each.
        answers: condition -> answers of every episode.
    """
    tasks, rows = [], []
    for place, episode in enumerate(episodes):
        by_condition = {name: found[place] for name, found in answers.items()}
        ranked = all(map(is_ranked, episode.queries))
        scores = {
            "score" if name == OWN else name: float(np.mean([one.score for one in found]))
            for name, found in by_condition.items()
        }
        tasks.append(
            {
                "task": episode.task,
                "examples": episode.shown,
                "queries": len(episode.queries),
                "metric": METRICS[0 if ranked else 1],
                **scores,
            }
        )
        for i, query in enumerate(episode.queries):
            assert query.item is not None
            told = {
                name: {"answer": found[i].text, "score": found[i].score,
                       **({"nll": list(found[i].nll)} if found[i].nll else {})}
                for name, found in by_condition.items()
            }  # fmt: skip
            rows.append(
                {
                    "task": episode.task,
                    "name": query.item.origin,
                    "prompt": query.item.prompt,
                    "gold": query.item.completion,
                    "options": list(query.item.options),
                    **told,
                }
            )
    return TaskScores(tasks, rows)
