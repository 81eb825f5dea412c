"""Per-example outputs as CSV."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gistcli.artifacts.predictions import read_csv, write_predictions, write_top_k
from gistcli.errors import DataError

PROBABILITIES = torch.tensor([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]])
CLASSES = ["ant", 'a "bee", large', "çe"]


def test_each_example_has_its_label_prediction_and_probabilities(tmp_path: Path) -> None:
    path = tmp_path / "predictions" / "test.csv"
    write_predictions(path, ["a/1.jpg", "b,2.jpg"], torch.tensor([0, 1]), PROBABILITIES, CLASSES)
    assert read_csv(path) == [
        {
            "name": "a/1.jpg", "label": "ant", "predicted": "ant", "correct": "1",
            "probability": "0.700000", "label_probability": "0.700000",
        },
        {
            "name": "b,2.jpg", "label": 'a "bee", large', "predicted": "çe", "correct": "0",
            "probability": "0.500000", "label_probability": "0.250000",
        },
    ]  # fmt: skip


def test_the_best_classes_stand_in_order(tmp_path: Path) -> None:
    write_top_k(tmp_path / "p.csv", ["x.png", "y.png"], PROBABILITIES, CLASSES, 2)
    lines = (tmp_path / "p.csv").read_text().splitlines()
    assert lines[0] == "file,class,probability,class_2,probability_2"
    assert lines[1] == 'x.png,ant,0.700000,"a ""bee"", large",0.200000'
    write_top_k(tmp_path / "p.csv", ["x.png", "y.png"], PROBABILITIES, CLASSES, 99)
    assert (tmp_path / "p.csv").read_text().splitlines()[0].endswith("class_3,probability_3")


def test_names_and_rows_must_be_as_many(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="zip"):
        write_predictions(tmp_path / "p", ["a"], torch.tensor([0, 1]), PROBABILITIES, CLASSES)
    assert not (tmp_path / "p").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"p\.csv"):
        read_csv(tmp_path / "p.csv")
