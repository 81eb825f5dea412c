"""Rows that differ in the gist token alone, and what it does to them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gistcli.evaluate.paired import paired_over
from gistcli.run.collecting import Entry
from gistcli.run.pairing import Groups, Predictions, Tasks, described, difference
from gistcli.run.rows import Row, configuration

GIST = "gist"
Pair = tuple[Row, Row]
"""A row with the token, and the same without."""


def gist_pairs(rows: Sequence[Row]) -> list[Pair]:
    """All pairs of rows that differ in the section `gist` alone.

    The two arms of one sweep are a pair, whatever was chosen for each; other rows are where their
    configurations are equal but for that section on every task that both have.
    """
    having = [row for row in rows if all(e.recipe.get(GIST) is not None for e in row.entries)]
    lacking = [row for row in rows if all(e.recipe.get(GIST) is None for e in row.entries)]
    return [(a, b) for a in having for b in lacking if _is_pair(a, b)]


def ablation(
    pairs: Sequence[Pair], predictions: Predictions, tasks: Tasks, groups: Groups
) -> dict[str, Any]:
    """Accuracy with the token minus that without: `pairs`, and the `mean` of several.

    The mean is over the pairs that all have a task, with the same seeds; None for a single pair.

    Raises:
        GistError: as `Predictions.of`.
    """
    return {
        "pairs": [difference(*pair, predictions, tasks, groups) for pair in pairs],
        "mean": _mean(pairs, predictions, tasks, groups) if len(pairs) > 1 else None,
    }


def _mean(
    pairs: Sequence[Pair], predictions: Predictions, tasks: Tasks, groups: Groups
) -> dict[str, Any] | None:
    found = {}
    for task in tasks:
        if all(task in row.tasks for pair in pairs for row in pair):
            both = [(predictions.of(a, task), predictions.of(b, task)) for a, b in pairs]
            mean = paired_over(both, task)
            if mean is not None:
                found[task] = mean
    return described(found, tasks, groups) if found else None


def _is_pair(a: Row, b: Row) -> bool:
    if _arm(a.entries[0]) is not None and _arm(a.entries[0]) == _arm(b.entries[0]):
        return True
    common = [task for task in a.tasks if task in b.tasks]
    return bool(common) and all(_bare(a, task) == _bare(b, task) for task in common)


def _arm(entry: Entry) -> tuple[Any, ...] | None:
    """Sweep, recipe and method, without what the sweep varies in them."""
    if entry.ledger is None or entry.planned is None:
        return None
    return entry.ledger.path.resolve(), entry.planned.recipe, entry.recipe["method"]["name"]


def _bare(row: Row, task: str) -> dict[str, Any]:
    """The configuration of a row on a task without the section."""
    found = configuration(next(iter(row.tasks[task].values())))
    return {k: v for k, v in found.items() if k.partition(".")[0] != GIST}
