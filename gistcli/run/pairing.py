"""Paired differences between rows: the same examples or none at all."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gistcli.errors import DataError, Refused, WeightsError
from gistcli.evaluate.language.records import read_json_lines
from gistcli.evaluate.paired import Outcomes, Resampled, averaged, paired
from gistcli.reporting import Reporter
from gistcli.run.collecting import Entry, listed
from gistcli.run.rows import Row

WITHOUT = "Compare fewer runs, or leave the differences out: --no-differences."
Tasks = Sequence[str]
Groups = Mapping[str, Sequence[str]]
PHASE = "predictions"
COLUMNS = ("name", "label", "correct")
_AGREE = 1e-6
"""Largest difference between the accuracy of a result and that of its own predictions."""


@dataclass(frozen=True)
class _Read:
    """Names and labels of N examples, and (N,) whether they were right.

    From predictions/SPLIT.csv, or SPLIT.jsonl of a language model.
    """

    names: list[str]
    labels: list[str]
    correct_N: np.ndarray


def require_same_examples(rows: Sequence[Row], tasks: Sequence[str], split: str) -> None:
    """Whether all runs of each task were measured on the same examples, by their hashes.

    Raises:
        Refused: they were not, or a run has no hash; tasks and runs are named.
    """
    lacking, different = [], []
    for task in tasks:
        found: dict[str | None, list[str]] = {}
        for row in rows:
            for entry in row.tasks.get(task, {}).values():
                found.setdefault(entry.fingerprint(split), []).append(entry.path)
        lacking += found.pop(None, [])
        if len(found) > 1:
            sides = " against ".join(listed(paths) for paths in found.values())
            different.append(f"{task}: {sides}")
    if lacking:
        raise Refused(
            f"Without the hash of their {split} examples runs cannot be paired: {listed(lacking)}.",
            f"Run them again (`gist finetune ... --overwrite`). {WITHOUT}",
        )
    if different:
        raise Refused(
            f"These runs cannot be paired: their {split} examples differ. {'; '.join(different)}.",
            WITHOUT,
        )


class Predictions:
    """What the runs of rows got right, each file read once.

    Args:
        rows: of a table; those that share a task have to be measured on the same examples.
        tasks: its columns.
        split: whose predictions.
        reporter: gets the progress.

    Raises:
        Refused: as `require_same_examples`.
    """

    def __init__(
        self, rows: Sequence[Row], tasks: Sequence[str], split: str, reporter: Reporter
    ) -> None:
        shared = [task for task in tasks if sum(task in row.tasks for row in rows) > 1]
        require_same_examples(rows, shared, split)
        self._split, self._reporter = split, reporter
        self._first: dict[str, _Read] = {}
        self._found: dict[tuple[str, str], Outcomes] = {}
        runs = sum(len(row.tasks.get(task, {})) for row in rows for task in shared)
        reporter.start(PHASE, runs, "runs")

    def of(self, row: Row, task: str) -> Outcomes:
        """Of one row on one of its tasks; every row has the examples in the same order.

        Raises:
            Refused: the predictions are of other examples or labels than those of another row.
            DataError, WeightsError: they are missing, damaged or of another result.
        """
        key = row.name, task
        if key not in self._found:
            self._found[key] = Outcomes(
                np.stack([self._aligned(task, entry) for entry in row.tasks[task].values()]),
                tuple(row.tasks[task]),
            )
        return self._found[key]

    def _aligned(self, task: str, entry: Entry) -> np.ndarray:
        read = read_outcomes(entry, self._split)
        self._reporter.advance(PHASE)
        return _aligned(read, self._first.setdefault(task, read), entry)

    def finish(self) -> None:
        """All is read."""
        self._reporter.finish(PHASE)


def differences(
    rows: Sequence[Row], reference: Row, predictions: Predictions, tasks: Tasks, groups: Groups
) -> list[dict[str, Any]]:
    """Accuracy of every other row minus that of the reference, by task, group and over all.

    Raises:
        GistError: as `Predictions.of`.
    """
    return [
        difference(row, reference, predictions, tasks, groups)
        for row in rows
        if row is not reference
    ]


def difference(
    row: Row, reference: Row, predictions: Predictions, tasks: Tasks, groups: Groups
) -> dict[str, Any]:
    """Accuracy of one row minus that of another, by task, group and over all.

    Raises:
        GistError: as `Predictions.of`.
    """
    found = {}
    for task in tasks:
        if task in row.tasks and task in reference.tasks:
            theirs = predictions.of(reference, task)
            found[task] = paired(predictions.of(row, task), theirs, task)
    return {"row": row.name, "reference": reference.name, **described(found, tasks, groups)}


def read_outcomes(entry: Entry, split: str) -> _Read:
    """What a run got right, checked against its result.

    Raises:
        DataError: the file is missing or damaged, or names an example twice.
        WeightsError: it belongs to another result.
    """
    path = entry.run.answers_path(split)
    if path.is_file():
        names, labels, correct = _read_answers(path)
    else:
        path = entry.run.predictions_path(split)
        names, labels, correct = _read_columns(path)
    if len(set(names)) != len(names):
        raise DataError(f"{path} names an example twice.", "Copy the file again.")
    correct_N = np.array(correct, dtype=np.uint8)
    stated = entry.result["metrics"].get(f"{split}/accuracy", 0.0)
    if not len(names) or abs(correct_N.mean() - stated) > _AGREE:
        raise WeightsError(
            f"{path} is not of this result: accuracy {correct_N.mean() if names else 0:.6f} there, "
            f"{stated:.6f} in {entry.run.result_path.name}.",
            "Copy the run again.",
        )
    return _Read(names, labels, correct_N)


def _read_columns(path: Path) -> tuple[list[str], list[str], list[int]]:
    """Names, labels and outcomes; column by column, for a test set may have 70,000 lines."""
    names, labels, correct = [], [], []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            name, label, right = (header.index(column) for column in COLUMNS)
            for row in reader:
                names.append(row[name])
                labels.append(row[label])
                correct.append(int(row[right]))
        if not set(correct) <= {0, 1}:
            raise ValueError(f"'correct' is {max(correct, key=abs)}, not 0 or 1")
    except (OSError, ValueError, IndexError, csv.Error) as error:
        raise DataError(
            f"{path} cannot be read: {error}.", f"Copy the run again. {WITHOUT}"
        ) from error
    return names, labels, correct


def _read_answers(path: Path) -> tuple[list[str], list[str], list[int]]:
    """Names, right answers and outcomes of what a language model answered."""
    rows = read_json_lines(path)
    try:
        correct = [int(row["right"]) for row in rows]
        return [row["name"] for row in rows], [row["gold"] for row in rows], correct
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path} holds no answers that are right or wrong.", f"Copy the run again. {WITHOUT}"
        ) from error


def _aligned(read: _Read, first: _Read, entry: Entry) -> np.ndarray:
    """`correct` in the order of the names of `first`.

    Raises:
        Refused: other names, or other labels.
    """
    if read.names != first.names:
        place = {name: i for i, name in enumerate(read.names)}
        if place.keys() != set(first.names):
            odd = sorted(place.keys() ^ set(first.names))
            raise Refused(
                f"{entry.path} cannot be paired: its predictions are of other examples "
                f"({listed(odd)}).",
                WITHOUT,
            )
        order = [place[name] for name in first.names]
        labels = [read.labels[i] for i in order]
        read = _Read(first.names, labels, read.correct_N[order])
    if read.labels != first.labels:
        pairs = zip(first.names, read.labels, first.labels, strict=True)
        odd = [f"{name}: {mine}, not {other}" for name, mine, other in pairs if mine != other]
        raise Refused(
            f"{entry.path} cannot be paired: examples have other labels there ({listed(odd)}).",
            WITHOUT,
        )
    return read.correct_N


def described(found: Mapping[str, Resampled], tasks: Tasks, groups: Groups) -> dict[str, Any]:
    """Differences by task as JSON, with their means over complete groups and over all tasks."""
    whole = {g: _average(found, members) for g, members in groups.items()}
    complete = [mean for mean in whole.values() if mean is not None]
    of_groups = averaged(complete) if complete and len(complete) == len(whole) else None
    return {
        "tasks": {task: _figures(one) for task, one in found.items()},
        "groups": {g: _figures(mean) for g, mean in whole.items() if mean is not None},
        "mean_of_groups": _figures(of_groups) if of_groups else None,
        "mean_of_tasks": _figures(mean) if (mean := _average(found, tasks)) else None,
    }


def _average(found: Mapping[str, Resampled], tasks: Tasks) -> Resampled | None:
    return averaged([found[t] for t in tasks]) if all(t in found for t in tasks) else None


def _figures(one: Resampled) -> dict[str, Any]:
    both = one.interval_with_seeds
    return {
        "mean": one.mean,
        "interval": list(one.interval),
        "interval_with_seeds": list(both) if both else None,
        "deviation": one.deviation,
        "examples": one.examples,
    }
