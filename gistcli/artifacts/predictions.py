"""Per-example outputs as CSV, readable by any spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from gistcli import atomic
from gistcli.errors import DataError


def write_predictions(
    path: Path,
    names: Sequence[str],
    labels: Tensor,
    probabilities: Tensor,
    classes: Sequence[str],
) -> None:
    """One line an example, with the probability of the predicted class and of the label.

    Columns: name, label, predicted, correct (1 or 0), probability, label_probability.

    Args:
        path: of the CSV file.
        names: of the examples, in the order of the rows.
        labels: (N,) class numbers.
        probabilities: (N, K), after the softmax.
        classes: K names.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    best = probabilities.argmax(dim=1)
    header = ["name", "label", "predicted", "correct", "probability", "label_probability"]
    rows = (
        [
            name,
            classes[label],
            classes[guess],
            int(label == guess),
            f"{probabilities[i, guess]:.6f}",
            f"{probabilities[i, label]:.6f}",
        ]
        for i, (name, label, guess) in enumerate(
            zip(names, labels.tolist(), best.tolist(), strict=True)
        )
    )
    write_csv(path, header, rows)


def write_values(
    path: Path, names: Sequence[str], targets: Sequence[float], values: Sequence[float]
) -> None:
    """One line an example: name, target, prediction.

    Args:
        path: of the CSV file.
        names: of the examples, in the order of the rows.
        targets: N true values.
        values: N predicted ones.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    rows = zip(names, targets, values, strict=True)
    cells = ([name, f"{target:.6g}", f"{value:.6g}"] for name, target, value in rows)
    write_csv(path, ["name", "target", "prediction"], cells)


def write_top_k(
    path: Path, files: Sequence[str], probabilities: Tensor, classes: Sequence[str], k: int
) -> None:
    """One line a file: file, class, probability, class_2, probability_2, ... up to k.

    Args:
        path: of the CSV file.
        files: as the user named them.
        probabilities: (N, K), after the softmax.
        classes: K names.
        k: how many classes; K where that is fewer.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    k = min(k, len(classes))
    top = probabilities.topk(k, dim=1)
    header = ["file"]
    for place in range(1, k + 1):
        suffix = "" if place == 1 else f"_{place}"
        header += [f"class{suffix}", f"probability{suffix}"]
    rows = []
    for file, values, indices in zip(files, top.values, top.indices, strict=True):
        pairs = zip(indices.tolist(), values.tolist(), strict=True)
        rows.append([file, *(cell for i, v in pairs for cell in (classes[i], f"{v:.6f}"))])
    write_csv(path, header, rows)


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write aside and rename.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    atomic.write_text(path, text.getvalue())


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file with a header.

    Raises:
        DataError: the file is missing or no CSV.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read: {error}", "Run `gist eval` again.") from error
