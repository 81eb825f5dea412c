"""Runs on text with tokens in the sequence: prompts that write, a gist token that goes along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification

from gistcli import run
from gistcli.errors import GistError, NotMergeable, NotSupported
from gistcli.recipe import Recipe
from tests.run.text_models import completions, labelled, save_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classifiers and a language model, and data for each."""
    folder = tmp_path_factory.mktemp("tokens")
    save_model(folder / "llama", "Llama", "causal_lm")
    save_model(folder / "classifier", "Llama", "classification")
    save_model(folder / "roberta", "Roberta", "classification")
    completions(folder / "echo.jsonl", 40)
    labelled(folder / "parity.jsonl", 120)
    return folder


def recipe(place: Path, model: str, file: str, **sections: Any) -> Recipe:
    tree = {
        "model": {"name": str(place / model)},
        "data": {"path": str(place / file)},
        "train": {"max_steps": 6, "batch_size": 8},
        "optim": {"lr": 0.01},
        "eval": {"every": "none"},
    }
    return Recipe.model_validate({**tree, **sections})


def test_prompts_are_trained_measured_again_and_write(place: Path, tmp_path: Path) -> None:
    asked = recipe(
        place, "llama", "echo.jsonl", method={"name": "prompt", "length": 5, "init_text": "w1 w2"}
    )
    result = run.finetune(asked, output=tmp_path / "run")
    assert result["parameters"]["method"] == 5 * 32
    again = run.evaluate(tmp_path / "run", device="cpu", batch_size=3)
    assert again["metrics"]["test/loss"] == pytest.approx(result["metrics"]["test/loss"], rel=1e-5)
    other = run.evaluate(tmp_path / "run", device="cpu", batch_size=1)
    assert other["metrics"]["test/loss"] == pytest.approx(again["metrics"]["test/loss"], rel=1e-5)


@pytest.mark.parametrize("model", ["roberta", "classifier"])
def test_a_classifier_of_texts_learns_with_the_gist_token(
    place: Path, tmp_path: Path, model: str
) -> None:
    asked = recipe(place, model, "parity.jsonl", method={"name": "lora", "rank": 2}, gist={})
    asked = asked.model_copy(
        update={"task": asked.task.model_copy(update={"type": "classification"})}
    )
    result = run.finetune(asked, output=tmp_path / "run")
    assert result["parameters"]["gist"] == 32
    again = run.evaluate(tmp_path / "run", device="cpu", batch_size=5)
    assert again["metrics"]["test/accuracy"] == result["metrics"]["test/accuracy"]
    if model == "roberta":
        with pytest.raises(NotMergeable, match="no place for a trained token"):
            run.merge(tmp_path / "run", output=tmp_path / "merged")
        return
    run.merge(tmp_path / "run", output=tmp_path / "merged")
    merged = run.evaluate(tmp_path / "merged", data=str(place / "parity.jsonl"), device="cpu")
    tuned = run.evaluate(tmp_path / "run", data=str(place / "parity.jsonl"), device="cpu")
    assert merged["metrics"] == tuned["metrics"]
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")


def test_a_gist_token_is_refused_where_texts_are_written(place: Path, tmp_path: Path) -> None:
    asked = recipe(place, "llama", "echo.jsonl", method={"name": "lora"}, gist={})
    with pytest.raises(NotSupported, match="one answer a text") as caught:
        run.finetune(asked, output=tmp_path / "run")
    assert isinstance(caught.value, GistError)
    assert caught.value.exit_code == 2
    assert not (tmp_path / "run").exists()
