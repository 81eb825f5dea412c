"""Prefix tuning that starts from another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gistcli import run
from gistcli.errors import BaseMismatch, NotFound, RecipeError, Refused
from gistcli.recipe import Recipe, load_recipe
from gistcli.recipe.points import with_values
from tests.listening import Listener
from tests.run.calling import call
from tests.run.task_files import labelled_rows, task_recipe, write_tasks
from tests.run.text_models import save_model, write_rows


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hypernetwork, a shared prefix, and the pairs of a new task with and without a template."""
    folder = tmp_path_factory.mktemp("starts")
    save_model(folder / "llama", "Llama", "causal_lm")
    write_tasks(folder / "tasks")
    run.finetune(task_recipe(folder / "llama", folder / "tasks"), output=folder / "hyper")
    prefix = {"name": "prefix", "length": 3}
    shared = task_recipe(folder / "llama", folder / "tasks", method=prefix, hyper=None)
    run.finetune(shared, output=folder / "shared")
    lora = task_recipe(folder / "llama", folder / "tasks", hyper=None)
    run.finetune(lora, output=folder / "lora")
    rows = [{key: row[key] for key in ("prompt", "completion")} for row in labelled_rows("new", 20)]
    write_rows(folder / "bare.jsonl", rows)
    put = [{**row, "prompt": f"Input:\n{row['prompt']}\nOutput:\n"} for row in rows]
    write_rows(folder / "new.jsonl", put)
    return folder


def recipe(place: Path, file: str, init: Path, **method: Any) -> Recipe:
    tree = {
        "model": {"name": str(place / "llama")},
        "data": {"path": str(place / file)},
        "method": {"name": "prefix", "length": 3, "init": f"run:{init}", **method},
        "train": {"max_steps": 1, "batch_size": 4},
        "eval": {"every": "none"},
        "optim": {"lr": 1e-12, "schedule": "constant", "warmup_ratio": 0.0},
    }
    return Recipe.model_validate(tree)


def keys(run_path: Path) -> torch.Tensor:
    return load_file(run_path / "tuner.safetensors")["keys"]


def test_a_hypernetwork_reads_the_training_examples(place: Path, tmp_path: Path) -> None:
    listener = Listener()
    run.finetune(
        recipe(place, "new.jsonl", place / "hyper"), output=tmp_path / "run", reporter=listener
    )
    assert any("4 training examples" in line for line in listener.lines)
    assert not any("put otherwise" in line for line in listener.lines)
    splits = (tmp_path / "run" / "splits.csv").read_text().splitlines()
    train = [line.split(",")[1] for line in splits if line.startswith("train,")]
    lines = (place / "bare.jsonl").read_text().splitlines()
    chosen = [lines[int(name.rpartition(":")[2]) - 1] for name in train]
    (tmp_path / "shown.jsonl").write_text("\n".join(chosen))
    run.compress(place / "hyper", tmp_path / "shown.jsonl", tmp_path / "made", device="cpu")
    made = load_file(tmp_path / "made" / "prefix.safetensors")["keys"]
    torch.testing.assert_close(keys(tmp_path / "run"), made, atol=1e-5, rtol=0)
    again = run.finetune(recipe(place, "new.jsonl", place / "hyper"), output=tmp_path / "run")
    assert again["method"] == "prefix"
    assert run.evaluate(tmp_path / "run", device="cpu")["metrics"]


def test_a_shared_prefix_is_taken_over(place: Path, tmp_path: Path) -> None:
    run.finetune(recipe(place, "new.jsonl", place / "shared"), output=tmp_path / "run")
    torch.testing.assert_close(keys(tmp_path / "run"), keys(place / "shared"), atol=1e-6, rtol=0)


def test_prompts_without_the_template_are_warned_of(place: Path, tmp_path: Path) -> None:
    listener = Listener()
    run.finetune(
        recipe(place, "bare.jsonl", place / "hyper"), output=tmp_path / "run", reporter=listener
    )
    assert any("put otherwise" in line for line in listener.lines)


def test_what_has_no_prefix_to_offer_is_refused_in_a_line(place: Path, tmp_path: Path) -> None:
    def refused(error: type[Exception], words: str, init: str, **method: Any) -> None:
        asked = recipe(place, "new.jsonl", place / init, **method)
        with pytest.raises(error, match=words):
            run.finetune(asked, output=tmp_path / "run")
        assert not (tmp_path / "run").exists()

    refused(RecipeError, "3 positions, and method.length is 5", "hyper", length=5)
    refused(RecipeError, "Set method.length|3 positions", "shared", length=2)
    refused(Refused, "makes no prefix", "lora")
    refused(NotFound, "does not exist", "nowhere")
    save_model(tmp_path / "other", "Llama", "causal_lm")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    from safetensors.torch import save_file

    weights = {name: tensor + 1 for name, tensor in weights.items()}
    save_file(weights, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    tree = recipe(place, "new.jsonl", place / "hyper").as_dict()
    other = Recipe.model_validate({**tree, "model": {"name": str(tmp_path / "other")}})
    with pytest.raises(BaseMismatch, match="another network"):
        run.finetune(other, output=tmp_path / "run")


def test_the_run_is_relative_to_the_recipe(place: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(
        f"model: {{name: {place / 'llama'}}}\n"
        f"data: {{path: {place / 'new.jsonl'}}}\n"
        "method: {name: prefix, length: 3, init: run:runs/hyper}\n"
    )
    init = load_recipe(tmp_path / "recipe.yaml").method["init"]
    assert init == f"run:{tmp_path / 'runs' / 'hyper'}"
    error = call("gist finetune", tmp_path / "recipe.yaml", "-o", tmp_path / "run", code=2)
    assert "runs/hyper" in error["error"]["message"]


def test_a_comparison_has_a_row_and_a_curve_for_every_start(place: Path, tmp_path: Path) -> None:
    starts, paths = [place / "hyper", place / "shared"], []
    for start in starts:
        started = recipe(place, "new.jsonl", start)
        watched = with_values(started, {"eval.every": 1, "train.max_steps": 3}, "the test")
        run.finetune(watched, output=tmp_path / start.name)
        paths.append(tmp_path / start.name)
    found = run.compare(paths, output=tmp_path / "compared")
    names = [row["name"] for row in found["rows"]]
    assert len(names) == 2
    assert all(any(f"run:{path}" in name for name in names) for path in starts)
    assert (tmp_path / "compared" / "curves.png").stat().st_size > 5_000
