"""Paired differences between rows: the same examples or none at all."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from gistcli.errors import DataError, Refused, WeightsError
from gistcli.evaluate.paired import Outcomes, Resampled, averaged, paired
from gistcli.reporting import Reporter
from gistcli.run.collecting import Entry, Seeds, listed
from gistcli.run.rows import Row

WITHOUT = "Compare fewer runs, or leave the differences out: --no-differences."
COLUMNS = ("name", "label", "correct")
_AGREE = 1e-6
"""Largest difference between the accuracy of a result and that of its own predictions."""


@dataclass(frozen=True)
class _Read:
    """predictions/SPLIT.csv: names and labels of N examples, and (N,) whether they were right."""

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


def differences(
    rows: Sequence[Row],
    reference: Row,
    tasks: Sequence[str],
    groups: Mapping[str, Sequence[str]],
    split: str,
    reporter: Reporter,
) -> list[dict[str, Any]]:
    """Accuracy of every other row minus that of the reference, by task, group and over all.

    Raises:
        Refused: as `require_same_examples`, or the predictions are of other examples or labels.
        DataError, WeightsError: predictions that are missing, damaged or of another result.
    """
    others = [row for row in rows if row is not reference]
    common = [t for t in tasks if t in reference.tasks and any(t in row.tasks for row in others)]
    require_same_examples(rows, common, split)
    found: dict[str, dict[str, Resampled]] = {row.name: {} for row in others}
    runs = sum(len(row.tasks.get(task, {})) for row in rows for task in common)
    reporter.start("predictions", runs, "runs")
    for task in common:
        first = read_outcomes(next(iter(reference.tasks[task].values())), split)
        of_reference = _outcomes(reference.tasks[task], first, split, reporter)
        for row in others:
            if task in row.tasks:
                mine = _outcomes(row.tasks[task], first, split, reporter)
                found[row.name][task] = paired(mine, of_reference, task)
    reporter.finish("predictions")
    return [
        {"row": row.name, "reference": reference.name, **_described(found[row.name], tasks, groups)}
        for row in others
    ]


def read_outcomes(entry: Entry, split: str) -> _Read:
    """What a run got right, checked against its result.

    Raises:
        DataError: the file is missing or damaged, or names an example twice.
        WeightsError: it belongs to another result.
    """
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


def _outcomes(
    runs: Mapping[Seeds, Entry], first: _Read, split: str, reporter: Reporter
) -> Outcomes:
    """The runs of a row on a task, their examples in the order of `first`."""
    rows = []
    for entry in runs.values():
        rows.append(_aligned(read_outcomes(entry, split), first, entry))
        reporter.advance("predictions")
    return Outcomes(np.stack(rows), tuple(runs))


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


def _described(
    found: Mapping[str, Resampled], tasks: Sequence[str], groups: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    whole = {g: _average(found, members) for g, members in groups.items()}
    complete = [mean for mean in whole.values() if mean is not None]
    of_groups = averaged(complete) if complete and len(complete) == len(whole) else None
    return {
        "tasks": {task: _figures(one) for task, one in found.items()},
        "groups": {g: _figures(mean) for g, mean in whole.items() if mean is not None},
        "mean_of_groups": _figures(of_groups) if of_groups else None,
        "mean_of_tasks": _figures(mean) if (mean := _average(found, tasks)) else None,
    }


def _average(found: Mapping[str, Resampled], tasks: Sequence[str]) -> Resampled | None:
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
