"""From runs to the rows of a table: one a method under one configuration, its seeds together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gistcli.evaluate.aggregate import group_tasks
from gistcli.recipe import MAY_CHANGE, yaml
from gistcli.recipe.model import flatten
from gistcli.run.collecting import SEED_KEYS, Entry, Seeds, listed

NO_CONFIGURATION = (*SEED_KEYS, *MAY_CHANGE, "task", "data.path", "data.subset", "eval.best_test")
"""Keys (and sections) that make no other configuration: seeds, the task itself, what is reported.
Whether two paths hold the same data, the hash in the runs says."""


@dataclass
class Row:
    """The runs of one method under one configuration.

    Attributes:
        name: unique in the table.
        tasks: task -> seeds -> run.
    """

    name: str
    tasks: dict[str, dict[Seeds, Entry]] = field(default_factory=dict)

    @property
    def entries(self) -> list[Entry]:
        """All runs, task by task."""
        return [entry for runs in self.tasks.values() for entry in runs.values()]

    def figures(self, metric: str) -> dict[str, dict[Seeds, float]]:
        """Task -> seeds -> the metric, which every run has."""
        return {
            task: {seeds: float(e.result["metrics"][metric]) for seeds, e in runs.items()}
            for task, runs in self.tasks.items()
        }


@dataclass
class _Draft:
    """A row before it has its name: the shortest of `names` that no other row has."""

    names: list[str]
    entries: list[Entry]


def build_rows(entries: Sequence[Entry], notes: list[str]) -> list[Row]:
    """Rows in the order of their first runs.

    In a sweep a row is (recipe, method), whatever was chosen for each task. Runs outside of one are
    a row where nothing but NO_CONFIGURATION differs within a task; if something does, it is part of
    the row's name.

    Args:
        entries: of `collect`.
        notes: gets what is left out.
    """
    swept: dict[Hashable, list[Entry]] = {}
    for entry in entries:
        swept.setdefault(_key(entry), []).append(entry)
    drafts = []
    for group in swept.values():
        drafts += [_swept(group)] if group[0].planned else _variants(group)
    order = {id(entry): place for place, entry in enumerate(entries)}
    drafts.sort(key=lambda draft: order[id(draft.entries[0])])
    names = _distinct([draft.names for draft in drafts])
    return [_row(name, d.entries, notes) for name, d in zip(names, drafts, strict=True)]


def columns(rows: Sequence[Row], notes: list[str]) -> tuple[list[str], dict[str, list[str]]]:
    """All tasks, those of a group side by side, and group -> its tasks."""
    found = [entry for row in rows for entry in row.entries]
    tasks = list(dict.fromkeys(entry.task for entry in found))
    group_of: dict[str, str | None] = {}
    for entry in found:
        if group_of.setdefault(entry.task, entry.group) != entry.group:
            notes.append(
                f"{entry.task} stands in the groups {group_of[entry.task]} and {entry.group}: "
                "the first counts"
            )
    groups = group_tasks(tasks, group_of)
    grouped = [task for members in groups.values() for task in members]
    alone = [task for task in tasks if task not in grouped]
    if groups and alone:
        notes.append(f"in no group, so in no mean of groups: {listed(alone)}")
    return [*grouped, *alone], groups


def configuration(entry: Entry) -> dict[str, Any]:
    """Dotted key -> value of all that makes a run's configuration."""
    return {k: v for k, v in flatten(entry.recipe).items() if not _is_under(k, NO_CONFIGURATION)}


def differing(configurations: Iterable[Mapping[str, Any]]) -> list[str]:
    """Keys that all have and that have not one value; an older run may not know a newer key."""
    found = list(configurations)
    keys = [key for key in found[0] if all(key in other for other in found)]
    return [key for key in keys if any(other[key] != found[0][key] for other in found)]


def _is_under(key: str, places: Iterable[str]) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in places)


def _key(entry: Entry) -> Hashable:
    if entry.ledger is None or entry.planned is None:
        return entry.label
    return entry.ledger.path.resolve(), entry.planned.recipe, entry.planned.method


def _swept(group: list[Entry]) -> _Draft:
    first = group[0]
    assert first.ledger is not None
    assert first.planned is not None
    labels = {entry.label for entry in group}
    label = labels.pop() if len(labels) == 1 else first.planned.method
    stem = f"{Path(first.planned.recipe).stem} {label}"
    return _Draft([label, stem, f"{first.ledger.path.name} {stem}"], group)


def _variants(group: list[Entry]) -> list[_Draft]:
    """Runs of one label outside of sweeps, divided by the keys that differ within a task."""
    of_task: dict[str, list[dict[str, Any]]] = {}
    for entry in group:
        of_task.setdefault(entry.task, []).append(configuration(entry))
    keys = list(dict.fromkeys(k for found in of_task.values() for k in differing(found)))
    drafts: dict[str, _Draft] = {}
    for entry in group:
        flat = configuration(entry)
        words = ", ".join(f"{key}={yaml.inline(flat.get(key))}" for key in keys)
        name = f"{entry.label} ({words})" if keys else entry.label
        drafts.setdefault(name, _Draft([name], [])).entries.append(entry)
    return list(drafts.values())


def _distinct(candidates: Sequence[Sequence[str]]) -> list[str]:
    """For each the shortest name that no other has; numbers where there is none."""
    names = [c[0] for c in candidates]
    for level in range(1, max(map(len, candidates))):
        count = Counter(names)
        names = [
            c[level] if count[name] > 1 and level < len(c) else name
            for name, c in zip(names, candidates, strict=True)
        ]
    seen: Counter[str] = Counter()
    for place, name in enumerate(names):
        seen[name] += 1
        names[place] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return names


def _row(name: str, entries: Sequence[Entry], notes: list[str]) -> Row:
    row = Row(name)
    repeated = []
    for entry in entries:
        first = row.tasks.setdefault(entry.task, {}).setdefault(entry.seeds, entry)
        if first is not entry:
            repeated.append(f"{entry.path} (as {first.path})")
    for task, runs in row.tasks.items():
        row.tasks[task] = dict(sorted(runs.items()))
    if repeated:
        notes.append(
            f"{name}: the same recipe and seed a second time counts once; left out: "
            f"{listed(repeated)}"
        )
    return row
