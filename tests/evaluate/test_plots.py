"""Pictures of results: they are drawn for any number of classes, and hold what they should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gistcli.errors import StorageError
from gistcli.evaluate.metrics import score_labels
from gistcli.evaluate.plots import plot_confusion, write_classification_plots


def figures(classes: int, right: float = 0.8, seed: int = 0) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, 20 * classes)
    guesses = rng.integers(0, classes, len(labels))
    predicted = np.where(rng.random(len(labels)) < right, labels, guesses)
    return score_labels(labels, predicted, names(classes))


def names(classes: int) -> list[str]:
    return [f"class_{i}" for i in range(classes)]


@pytest.mark.parametrize("classes", [2, 30, 70])
def test_both_pictures_are_drawn_for_few_and_many_classes(tmp_path: Path, classes: int) -> None:
    paths = write_classification_plots(tmp_path, "val", figures(classes), names(classes))
    assert [p.name for p in paths] == ["confusion-val.png", "classes-val.png"]
    for path in paths:
        with Image.open(path) as picture:
            assert min(picture.size) > 200
            assert max(picture.size) < 2600
            assert np.asarray(picture.convert("L")).std() > 5
    assert sorted(p.name for p in tmp_path.iterdir()) == ["classes-val.png", "confusion-val.png"]


def test_a_class_without_examples_and_one_without_predictions_are_drawn(tmp_path: Path) -> None:
    found = score_labels(np.array([0, 0, 2]), np.array([0, 0, 0]), names(4))
    assert len(write_classification_plots(tmp_path, "test", found, names(4))) == 2


def test_a_perfect_matrix_is_dark_on_the_diagonal_only(tmp_path: Path) -> None:
    def dark(right: float) -> float:
        plot_confusion(figures(10, right), names(10), tmp_path / "m.png")
        with Image.open(tmp_path / "m.png") as picture:
            pixels = np.asarray(picture.convert("RGB")).astype(int)
        return float((abs(pixels - (8, 48, 107)).sum(axis=2) < 12).mean())  # the end of "Blues"

    assert dark(1.0) > 0.03
    assert dark(0.3) < 0.01


def test_a_folder_that_may_not_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        plot_confusion(figures(3), names(3), tmp_path / "file" / "m.png")
