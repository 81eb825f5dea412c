"""`open_tasks`: from `data.path` to tasks in splits, of which some are held out whole."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from gistcli.data.base import SPLITS, Catalog, DataOptions, Found, Record, refuse_options, some
from gistcli.data.episodes.family import NAME, class_to_label
from gistcli.data.episodes.files import task_files
from gistcli.data.episodes.reading import read_tasks
from gistcli.data.episodes.tasks import Task
from gistcli.data.groups import group_pattern
from gistcli.data.splits import settle_splits
from gistcli.data.text.options import TextOptions
from gistcli.data.text.records import SHOWN
from gistcli.data.twins import leaking_groups
from gistcli.errors import DataError, GistError

BY_FAMILY = "family"
"""The `data.group_by` that goes by what tasks say themselves: S-NI's category, or their prefix."""


@dataclass(frozen=True)
class Stored:
    """A task in the place of an encoded picture."""

    task: Task

    @cached_property
    def nbytes(self) -> int:
        """Length of its content."""
        return len(self.read())

    def read(self) -> bytes:
        """Its content, without the places where its items stand."""
        task = self.task
        pairs = [
            [(i.prompt, i.completion, i.options, i.others) for i in items]
            for items in (task.items, task.positive)
        ]
        content = [task.name, task.family, task.definition, task.rule, *pairs]
        return json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogatepass")


def tasks_of(catalog: Catalog, split: str) -> list[Task]:
    """The tasks of a split of a catalog that `open_tasks` made."""
    stored = [record.source for record in catalog.splits[split]]
    return [source.task for source in stored if isinstance(source, Stored)]


def open_tasks(
    data: DataOptions,
    options: TextOptions,
    *,
    base: Path,
    pinned: Path | None = None,
    whole: bool = False,
) -> Catalog:
    """Finds the tasks and their splits; nothing is encoded.

    `data.path` is a folder of task files, which may stand in `train/`, `val/` and `test/`; a file
    (or one a split) whose column `task` says which row is of which; or `class-to-label`, the
    built-in family. `data.splits` names for each split a folder, a file, or a text file with the
    names of tasks, one a line. Where no split is given, `val_fraction` and `test_fraction` of the
    tasks are held out; with `data.group_by` whole families: `family` goes by what the tasks say, a
    regular expression by the first group that it finds in their names. There are no classes.

    Args:
        data: the recipe's section.
        options: its keys for text.
        base: what relative paths start from.
        pinned: a `splits.csv` whose splits must be reproduced.
        whole: divide nothing, for evaluation: splits as found, tasks without any are all `test`.

    Raises:
        NotFound: there is nothing of that path or name.
        DataError: files that cannot be used, tasks of fewer than two items, a name that two tasks
            have, or too few tasks to hold one out; all problems of a kind in one message.
        RecipeError: splits or families that are not there, or keys that cannot apply.
    """
    refuse_options("Tasks are held out whole", shots=data.shots)
    path = base / os.path.expanduser(data.path)
    if data.path == NAME and not path.exists():
        refuse_options("The built-in family has a fixed split", splits=data.splits != "auto",
                       group_by=data.group_by, folds=data.folds)  # fmt: skip
        found = Found({s: _records(tasks) for s, tasks in class_to_label().items()})
        splits = settle_splits(found, data, found.warnings, pinned=pinned, whole=whole)
        return Catalog(NAME, [], splits)
    name = path.resolve().stem
    found = _find(path, data, options)
    if pinned is None and not whole:
        _refuse_few(name, found, data)
    splits = settle_splits(found, data, found.warnings, pinned=pinned, whole=whole)
    found.warnings += _doubts(splits)
    return Catalog(name, [], splits, found.notes, found.warnings)


def _find(path: Path, data: DataOptions, options: TextOptions) -> Found:
    files, warnings = task_files(path, data.splits)
    found = Found({}, warnings=warnings)
    tasks = {s: _read(files[s], options, found.warnings) for s in SPLITS if s in files}
    _refuse_unusable(path, tasks)
    everything = [task for part in tasks.values() for task in part]
    groups = _families(everything, data.group_by)
    found.splits = {split: _records(part, groups) for split, part in tasks.items()}
    single = [_where(t) for t in everything if len({item.completion for item in t.items}) == 1]
    if single:
        found.warnings.append(
            f"{some(single, 'task', shown=SHOWN)} with one answer only, the same for every item: "
            f"nothing can be learnt from examples there"
        )
    return found


def _read(paths: Sequence[Path], options: TextOptions, warnings: list[str]) -> list[Task]:
    """The tasks of all files; the problems of those that cannot be used in one error."""
    tasks: list[Task] = []
    problems: list[str] = []
    first: GistError | None = None
    for path in paths:
        try:
            more, notes = read_tasks(path, options)
        except DataError as error:
            problems.append(error.message)
            first = first or error
            continue
        tasks += more
        warnings += notes
    if first is None:
        return tasks
    if options.skip and tasks:
        warnings.append(f"{some(problems, 'task file', shown=SHOWN)} left out")
        return tasks
    if len(problems) == 1:
        raise first
    raise DataError(
        f"{some(problems, 'task file', shown=SHOWN)} cannot be used.",
        f"{first.hint} Or leave such files out: data.on_error=skip.",
    ) from first


def _refuse_unusable(path: Path, splits: Mapping[str, Sequence[Task]]) -> None:
    """Tasks have items enough, and names of their own."""
    small: list[str] = []
    where: dict[str, list[str]] = defaultdict(list)
    for split, tasks in splits.items():
        for task in tasks:
            where[task.name].append(f"{_where(task)} in {split}")
            if len(task.items) < 2:
                small.append(f"{_where(task)}: {len(task.items)}")
    if small:
        raise DataError(
            f"{path}: {some(small, 'task', shown=SHOWN)} of fewer than two items, one to show and "
            f"one to ask.",
            "Add items, or take the task out.",
        )
    twice = [" and ".join(places) for places in where.values() if places[1:]]
    if twice:
        raise DataError(
            f"{path}: {some(twice, 'name', shown=SHOWN)} of two tasks each.",
            "A task is in one split only: take it out of the others, or rename the file of "
            "another task.",
        )


def _where(task: Task) -> str:
    """Its name, and its file's where that is another."""
    file = task.items[0].origin.rpartition(":")[0] or task.items[0].origin.partition("[")[0]
    return task.name if Path(file).stem == task.name else f"{task.name} ({file})"


def _families(tasks: Iterable[Task], group_by: str | None) -> dict[str, str]:
    """Name of a task -> what it is held out with; empty where each goes alone."""
    if group_by is None:
        return {}
    if group_by == BY_FAMILY:
        return {task.name: task.family for task in tasks}
    pattern = group_pattern(group_by)
    assert pattern is not None
    matches = {task.name: pattern.search(task.name) for task in tasks}
    without = [name for name, match in matches.items() if match is None or not match.group(1)]
    if without:
        raise DataError(
            f"{some(without, 'task name', shown=SHOWN)} without a group by {group_by}.",
            f"Write it so that it fits all, or say data.group_by={BY_FAMILY}.",
        )
    return {name: match.group(1) for name, match in matches.items() if match}


def _records(tasks: Sequence[Task], groups: Mapping[str, str] | None = None) -> list[Record]:
    grouped = [
        replace(task, family=groups[task.name]) if groups else task
        for task in sorted(tasks, key=lambda task: task.name)
    ]
    return [
        Record(task.name, "", Stored(task), task.family if groups else None) for task in grouped
    ]


def _refuse_few(name: str, found: Found, data: DataOptions) -> None:
    """There are as many tasks, or families, as have to be in different splits."""
    if "train" not in found.splits or "val" in found.splits:
        return  # nothing is divided, or `divide` says what is missing
    asked = {"val": data.val_fraction, "test": data.test_fraction}
    wanted = [split for split, share in asked.items() if share > 0 and split not in found.splits]
    if data.folds is not None:
        wanted = [f"fold {k}" for k in range(2, data.folds + 1)]
    train = found.splits["train"]
    units = {record.group or record.name for record in train}
    what = "family" if train[0].group else "task"
    if len(units) <= len(wanted):
        raise DataError(
            f"{name} has {some(sorted(units), what, 'families')}: none can be held out for "
            f"{' and '.join(wanted)}.",
            f"Give at least {len(wanted) + 1}: task files in a folder, or a column `task`; or set "
            f"data.val_fraction or data.test_fraction to 0.",
        )


def _doubts(splits: Mapping[str, Sequence[Record]]) -> list[str]:
    """Warnings on families, and on contents, that stand in two splits."""
    warnings = []
    groups = leaking_groups({split: [*records] for split, records in splits.items()})
    if groups:
        warnings.append(f"{some(groups, 'family', 'families', shown=SHOWN)} with tasks in two "
                        f"splits")  # fmt: skip
    seen: dict[bytes, dict[str, str]] = defaultdict(dict)
    for split, records in splits.items():
        for record in records:
            assert isinstance(record.source, Stored)
            content = repr([(i.prompt, i.completion) for i in record.source.task.items]).encode()
            seen[content].setdefault(split, record.name)
    twins = [" = ".join(names.values()) for names in seen.values() if len(names) > 1]
    if twins:
        warnings.append(f"{some(twins, 'task', shown=SHOWN)} in two splits with the same items: "
                        f"figures on them are too good")  # fmt: skip
    return warnings
