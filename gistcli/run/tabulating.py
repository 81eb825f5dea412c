"""Rows as the JSON of a comparison: ours, and what papers say of the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gistcli.evaluate.aggregate import Mean, Means, means, over_seeds
from gistcli.run.collecting import Entry, Seeds, listed, section, trained_parameters
from gistcli.run.rows import Row

Tasks = Sequence[str]
Groups = Mapping[str, Sequence[str]]
COUNTS_DIFFER = 0.05
"""Papers round their counts: a note is due where ours is off by more than this share."""


def row_figures(
    row: Row, metric: str, tasks: Tasks, groups: Groups, best_test: bool
) -> dict[str, Any]:
    """A row as JSON: figures by task, means over complete sets of tasks, costs, runs."""
    entries = row.entries
    tried = [e.tried for e in entries if e.tried is not None]
    return {
        "name": row.name,
        "tasks": {t: _cell(row.tasks[t], metric) for t in tasks if t in row.tasks},
        **_means(means(row.figures(metric), tasks, groups)),
        "missing": [task for task in tasks if task not in row.tasks],
        "seeds": _range([len(runs) for runs in row.tasks.values()]),
        "parameters": _range([trained_parameters(entry.result) for entry in entries]),
        "head": _range([(e.result.get("parameters") or {}).get("head") for e in entries]),
        "seconds": _range([e.result.get("seconds") for e in entries]),
        "peak_memory_bytes": _range([e.result.get("peak_memory_bytes") for e in entries]),
        "tried": _range(tried) if len(tried) == len(entries) else None,
        "best_test": _best_tests(row, metric, tasks, groups) if best_test else None,
        "runs": [entry.path for entry in entries],
    }


def _cell(runs: Mapping[Seeds, Entry], metric: str) -> dict[str, Any]:
    """One row on one task."""
    entries = list(runs.values())
    values = [float(e.result["metrics"][metric]) for e in entries]
    examples = {_examples(entry, metric) for entry in entries}
    return {
        **over_seeds(values).as_dict(),
        "interval": entries[0].result["intervals"].get(metric) if len(entries) == 1 else None,
        "examples": examples.pop() if len(examples) == 1 else None,
        "seeds": [seeds[0] for seeds in runs],
        "values": values,
        "tried": entries[0].tried,
        "runs": [entry.path for entry in entries],
    }


def _examples(entry: Entry, metric: str) -> int | None:
    """How many a figure is over."""
    counts, examples = entry.result.get("counts") or {}, entry.result.get("examples") or {}
    found: int | None = counts.get(metric, examples.get(metric.partition("/")[0]))
    return found


def _means(found: Means) -> dict[str, Any]:
    def plain(mean: Mean | None) -> dict[str, float | None] | None:
        return mean.as_dict() if mean else None

    return {
        "groups": {group: mean.as_dict() for group, mean in found.groups.items()},
        "mean_of_groups": plain(found.of_groups),
        "mean_of_tasks": plain(found.of_tasks),
    }


def _range(values: Sequence[float | None]) -> dict[str, float] | None:
    """Smallest, mean and largest; None where a run has no figure."""
    known = [v for v in values if v is not None]
    if not known or len(known) < len(values):
        return None
    return {"min": min(known), "mean": sum(known) / len(known), "max": max(known)}


def best_on_test(entry: Entry, metric: str) -> float | None:
    """The best on test of all evaluations of a run: selected on test."""
    extras = entry.result.get("extras") or {}
    return extras.get(f"best_test/{metric.partition('/')[2]}")


def _best_tests(row: Row, metric: str, tasks: Tasks, groups: Groups) -> dict[str, Any]:
    """Tasks of which every run has one, and the means over all tasks."""
    values: dict[str, dict[Seeds, float]] = {}
    for task, runs in row.tasks.items():
        found = {seeds: best_on_test(entry, metric) for seeds, entry in runs.items()}
        known = {seeds: value for seeds, value in found.items() if value is not None}
        if len(known) == len(found):
            values[task] = known
    by_task = {task: over_seeds(list(v.values())).as_dict() for task, v in values.items()}
    return {"tasks": by_task, **_means(means(values, tasks, groups))}


def published_rows(
    rows: Sequence[Row], metric: str, tasks: Tasks, groups: Groups, notes: list[str]
) -> list[dict[str, Any]]:
    """The figures that the recipes of the rows stand for, at most one row for each of ours."""
    found = [_published(row, metric, tasks, groups, notes) for row in rows]
    return [one for one in found if one is not None]


def _published(
    row: Row, metric: str, tasks: Tasks, groups: Groups, notes: list[str]
) -> dict[str, Any] | None:
    found: dict[str, dict[str, Any]] = {}
    others = []
    for task, runs in row.tasks.items():
        one = section(next(iter(runs.values())).recipe, "published")
        if one and one.get("metric") == metric:
            found[task] = one
        elif one:
            others.append(f"{task} ({one.get('metric')})")
    if others:
        notes.append(f"{row.name}: published figures of another metric: {listed(others)}")
    if not found:
        return None
    mean = _means(means({t: {0: float(one["value"])} for t, one in found.items()}, tasks, groups))
    counts = [one["parameters"] for one in found.values() if one.get("parameters")]
    ours = _range([trained_parameters(entry.result) for entry in row.entries])
    if counts and ours and abs(ours["mean"] / (sum(counts) / len(counts)) - 1) > COUNTS_DIFFER:
        notes.append(
            f"{row.name} trains {ours['mean']:,.0f} parameters, the published figure stands for "
            f"{sum(counts) / len(counts):,.0f}"
        )
    return {
        "row": row.name,
        "tasks": {t: float(found[t]["value"]) for t in tasks if t in found},
        "groups": {g: m["mean"] for g, m in mean["groups"].items()},
        "mean_of_groups": mean["mean_of_groups"] and mean["mean_of_groups"]["mean"],
        "mean_of_tasks": mean["mean_of_tasks"] and mean["mean_of_tasks"]["mean"],
        "parameters": _range(counts),
        "protocol": _words(found, "protocol"),
        "source": _words(found, "source"),
    }


def _words(found: Mapping[str, Mapping[str, Any]], key: str) -> str | None:
    """The distinct texts behind a row's published figures."""
    return " / ".join(dict.fromkeys(one[key] for one in found.values() if one.get(key))) or None
