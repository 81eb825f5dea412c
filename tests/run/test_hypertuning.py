"""Runs on task files: training, held-out tasks, going on, and what a dry run shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gistcli import run
from gistcli.errors import DataError, Interrupted, RecipeError, Refused
from gistcli.recipe import yaml
from tests.listening import Listener
from tests.run.calling import call
from tests.run.task_files import HYPER, free_rows, task_recipe, write_tasks
from tests.run.text_models import save_model, write_rows

CONDITIONS = ("zero_shot", "wrong_task", "in_context")
CONTROLS = ("alone", "in_context", "wrong_document")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hypertuning")
    save_model(folder / "llama", "Llama", "causal_lm")
    save_model(folder / "bert", "Bert", "classification")
    write_tasks(folder / "tasks")
    return folder


def recipe(place: Path, **sections: Any) -> Any:
    return task_recipe(place / "llama", place / "tasks", **sections)


def test_held_out_tasks_are_ranked_or_written_beside_controls(place: Path, tmp_path: Path) -> None:
    result = run.finetune(recipe(place), output=tmp_path / "run")
    metrics = result["metrics"]
    for name in ("accuracy", "rouge_l"):
        for figure in (name, *(f"{name}_{condition}" for condition in CONDITIONS)):
            assert 0 <= metrics[f"test/{figure}"] <= 1, figure
    assert "val/accuracy_wrong_task" not in metrics  # a single task has no other
    assert result["counts"]["test/accuracy"] == 2
    assert result["counts"]["test/rouge_l"] == 1
    assert "test/accuracy" in result["intervals"]
    assert "test/rouge_l" not in result["intervals"]  # a single task
    test = {task["task"]: task for task in result["tasks"] if task["split"] == "test"}
    assert test["test0"]["metric"] == "accuracy"
    assert test["copy"]["metric"] == "rouge_l"
    assert test["copy"]["examples"] == 3  # half of six items are asked
    assert result["figure"] == "accuracy"
    mean = (test["test0"]["score"] + test["test1"]["score"]) / 2
    assert metrics["test/accuracy"] == pytest.approx(mean)
    assert result["parameters"]["gist"] == 3 * 32
    assert result["next"][-1].startswith("gist compress ")
    lines = (tmp_path / "run" / "predictions" / "test.jsonl").read_text().splitlines()
    ranked, *_ = [row for row in map(json.loads, lines) if row["options"]]
    assert len(ranked["own"]["nll"]) == 2
    assert ranked["own"]["answer"] in ranked["options"]
    again = run.evaluate(tmp_path / "run", device="cpu", batch_size=3)
    same = {key: value for key, value in metrics.items() if key.startswith("test/")}
    assert again["metrics"] == pytest.approx(same, rel=1e-4)
    other = run.evaluate(tmp_path / "run", data=str(place / "tasks"), split="val", device="cpu")
    assert other["metrics"]["val/accuracy"] == pytest.approx(metrics["val/accuracy"])


def test_a_run_goes_on_after_an_interruption_as_if_there_had_been_none(
    place: Path, tmp_path: Path
) -> None:
    whole = run.finetune(recipe(place), output=tmp_path / "whole")
    with pytest.raises(Interrupted):
        run.finetune(recipe(place, train={"max_time": 1e-6}), output=tmp_path / "halves")
    halves = run.finetune(recipe(place), output=tmp_path / "halves")
    assert halves["metrics"] == whole["metrics"]


def test_queries_alone_train_a_prefix_for_all_tasks(place: Path, tmp_path: Path) -> None:
    shared = recipe(place, method={"name": "prefix", "length": 3}, hyper=None)
    result = run.finetune(shared, output=tmp_path / "run")
    assert {"test/accuracy", "test/accuracy_zero_shot"} <= result["metrics"].keys()
    assert "test/accuracy_in_context" not in result["metrics"]
    assert any("--format peft" in line for line in result["next"])


def test_the_multi_task_baseline_reads_the_examples_themselves(place: Path, tmp_path: Path) -> None:
    own = {key: value for key, value in HYPER.items() if key != "gists"}
    tree = recipe(place).as_dict()
    full = type(recipe(place)).model_validate({**tree, "hyper": {**own, "context": "full"}})
    result = run.finetune(full, output=tmp_path / "run")
    assert {f"test/accuracy_{name}" for name in CONDITIONS} <= result["metrics"].keys()
    assert result["merge"] is None
    assert run.merge(tmp_path / "run", tmp_path / "merged")["verified"]


def test_documents_are_compressed_and_a_run_goes_on_from_that(place: Path, tmp_path: Path) -> None:
    rows = [{"text": " ".join(f"w{(3 * i + k) % 50}" for k in range(60))} for i in range(30)]
    write_rows(tmp_path / "documents.jsonl", rows)
    documents = {"path": str(tmp_path / "documents.jsonl")}
    before = recipe(place, task={"type": "compression"}, data=documents)
    result = run.finetune(before, output=tmp_path / "before")
    assert result["metrics"].keys() == {
        f"{split}/{name}"
        for split in ("val", "test")
        for name in ("loss", "perplexity", *(f"loss_{control}" for control in CONTROLS))
    }
    after = run.finetune(
        recipe(place, hyper={"init": str(tmp_path / "before")}, train={"max_steps": 1},
               optim={"lr": 1e-9}),
        output=tmp_path / "after",
    )  # fmt: skip
    anew = run.finetune(recipe(place, train={"max_steps": 1}, optim={"lr": 1e-9}),
                        output=tmp_path / "anew")  # fmt: skip
    assert after["metrics"]["test/loss"] != pytest.approx(anew["metrics"]["test/loss"], abs=1e-3)


def test_a_dry_run_shows_two_episodes_with_what_is_learnt(place: Path) -> None:
    listener = Listener()
    found = run.dry_run(recipe(place), reporter=listener)
    assert found["parameters"]["gist"] == 3 * 32
    assert found["steps"] == 4
    said = "\n".join(listener.lines)
    assert said.count("tokens become 3 gists") == 2
    assert "\u27e6" in said
    bare = task_recipe(place / "llama", place / "nowhere")
    assert run.dry_run(bare)["parameters"] == found["parameters"]


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"task": {"type": "causal_lm"}}, "learns tasks or documents"),
        ({"task": {"type": "compression"}, "hyper": None}, "none of"),
        ({"data": {"packing": True}}, "data.packing"),
        ({"hyper": {"example_tokens": 60}}, "80 tokens, and the model has 64 positions"),
        ({"eval": {"protocol": "rank"}}, "eval.protocol"),
        ({"eval": {"metric": "macro_f1"}}, "not measured"),
    ],
)
def test_what_cannot_work_is_refused_in_a_line(
    place: Path, tmp_path: Path, sections: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecipeError, match=words):
        run.finetune(recipe(place, **sections), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_an_encoder_and_a_single_task_are_refused(place: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no decoder"):
        run.finetune(task_recipe(place / "bert", place / "tasks"), output=tmp_path / "run")
    write_rows(tmp_path / "one.jsonl", free_rows("one"))
    with pytest.raises(DataError, match="held out"):
        run.finetune(task_recipe(place / "llama", tmp_path / "one.jsonl"), output=tmp_path / "run")


def test_the_command_takes_recipes_of_tasks(place: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.dump(recipe(place).as_dict()))
    value = call("gist finetune", tmp_path / "recipe.yaml", "-o", tmp_path / "run")
    assert value["parameters"]["gist"] == 96
    assert value["tasks"]
