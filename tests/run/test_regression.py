"""Values instead of classes: trained, measured, merged, predicted; and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from gistcli import run
from gistcli.errors import DataError, RecipeError
from gistcli.recipe import Recipe
from tests.run.calling import call
from tests.run.text_models import save_model, valued, write_rows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("values")
    save_model(folder / "bert", "Bert", "classification")
    save_model(folder / "llama", "Llama", "causal_lm")
    valued(folder / "pairs.jsonl")
    return folder


def recipe(place: Path, model: str = "bert", /, **more: object) -> Recipe:
    tree: dict[str, object] = {
        "model": {"name": str(place / model)},
        "data": {"path": str(place / "pairs.jsonl")},
        "method": {"name": "full"},
        "optim": {"lr": 3e-3, "head_lr": 1e-2},
        "train": {"max_steps": 80, "batch_size": 16, "save_steps": 1000},
        **more,
    }
    return Recipe.model_validate(tree)


@pytest.mark.parametrize("model", ["bert", "llama"])
def test_values_are_learnt_and_their_file_holds_what_the_figures_rest_on(
    place: Path, tmp_path: Path, model: str
) -> None:
    evaluation = {"every": 20, "select": "best"}
    result = run.finetune(recipe(place, model, eval=evaluation), output=tmp_path / "run")
    figures = result["metrics"]
    assert figures["test/pearson"] > 0.5
    assert result["selected_on"] == "val"
    assert result["figure"] == "pearson"
    assert result["best"]["value"] == pytest.approx(figures["val/pearson"])
    with (tmp_path / "run" / "predictions" / "test.csv").open() as file:
        rows = list(csv.DictReader(file))
    targets = np.array([float(row["target"]) for row in rows])
    values = np.array([float(row["prediction"]) for row in rows])
    assert len(rows) == result["examples"]["test"]
    assert figures["test/pearson"] == pytest.approx(pearsonr(targets, values).statistic, abs=1e-4)
    rank = spearmanr(targets, values).statistic
    assert figures["test/spearman"] == pytest.approx(rank, abs=1e-4)
    assert figures["test/loss"] == pytest.approx(np.mean((targets - values) ** 2), rel=1e-3)
    again = run.evaluate(tmp_path / "run", device="cpu", batch_size=3)
    tested = {k: v for k, v in figures.items() if k.startswith("test/")}
    assert again["metrics"] == pytest.approx(tested, rel=1e-4)


def test_a_merged_folder_is_a_regression_of_transformers_and_repeats_figures_and_predictions(
    place: Path, tmp_path: Path
) -> None:
    asked = recipe(
        place, method={"name": "gift", "rank": 2}, train={"max_steps": 4, "batch_size": 16}
    )
    run.finetune(asked, output=tmp_path / "run")
    assert run.merge(tmp_path / "run", tmp_path / "merged")["verified"] is True
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["problem_type"] == "regression"
    data = str(place / "pairs.jsonl")
    whole = run.evaluate(tmp_path / "run", data=data, device="cpu")
    merged = run.evaluate(tmp_path / "merged", data=data, device="cpu")
    assert merged["metrics"] == pytest.approx(whole["metrics"], rel=1e-4)
    found = [
        run.predict(tmp_path / name, [place / "pairs.jsonl"], device="cpu")["predictions"]
        for name in ("run", "merged")
    ]
    assert [row["name"] for row in found[0]] == [row["name"] for row in found[1]]
    values = [[row["value"] for row in rows] for rows in found]
    assert values[0] == pytest.approx(values[1], abs=1e-4)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    first = json.loads((place / "pairs.jsonl").read_text().splitlines()[0])
    tokens = AutoTokenizer.from_pretrained(tmp_path / "merged")(
        first["sentence1"], first["sentence2"], return_tensors="pt"
    )
    with torch.no_grad():
        assert float(plain(**tokens).logits) == pytest.approx(values[0][0], abs=1e-4)


def test_bad_values_are_named_and_whole_numbers_are_values_where_that_is_asked_for(
    place: Path, tmp_path: Path
) -> None:
    rows = [{"text": f"w{i}", "label": str(i)} for i in range(30)]
    write_rows(tmp_path / "whole.jsonl", rows)
    asked = recipe(
        place,
        data={"path": str(tmp_path / "whole.jsonl")},
        task={"type": "regression"},
        train={"max_steps": 1},
    )
    assert "test/pearson" in run.finetune(asked, output=tmp_path / "run")["metrics"]
    write_rows(tmp_path / "bad.jsonl", [*rows, {"text": "w", "label": "many"}])
    bad = asked.model_copy(
        update={"data": asked.data.model_copy(update={"path": str(tmp_path / "bad.jsonl")})}
    )
    with pytest.raises(DataError, match=r"bad.jsonl:31: the label 'many' is no number"):
        run.finetune(bad, output=tmp_path / "bad")


def test_what_cannot_be_a_regression_is_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="regression"):
        run.finetune(
            Recipe.model_validate(
                {
                    "model": {"name": "gist_vit_nano"},
                    "data": {"path": "digits"},
                    "task": {"type": "regression"},
                }
            ),
            output=tmp_path / "pictures",
        )
    line = f"gist finetune --model {place / 'bert'} --max-steps 1 --set eval.metric=accuracy"
    found = call(f"{line} -o {tmp_path / 'run'}", "--data", place / "pairs.jsonl", code=2)
    assert "eval.metric: 'accuracy' is not measured" in found["error"]["message"]
    assert "pearson" in found["error"]["hint"]
    assert not (tmp_path / "run").exists()


def test_a_part_of_train_selects_where_the_dev_set_is_to_be_the_test(
    place: Path, tmp_path: Path
) -> None:
    lines = (place / "pairs.jsonl").read_text().splitlines()
    folder = tmp_path / "stsb"
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(lines[:200]) + "\n")
    (folder / "dev.jsonl").write_text("\n".join(lines[200:]) + "\n")
    common = {"train": {"max_steps": 1}, "eval": {"every": "none"}}
    plain = recipe(place, data={"path": str(folder)}, **common)
    assert run.finetune(plain, output=tmp_path / "plain")["examples"] == {"train": 200, "val": 100}
    nested = {
        "path": str(folder),
        "splits": {"train": "train.jsonl", "test": "dev.jsonl"},
        "val_fraction": 0.2,
    }
    result = run.finetune(recipe(place, data=nested, **common), output=tmp_path / "nested")
    assert result["examples"] == {"train": 160, "val": 40, "test": 100}
