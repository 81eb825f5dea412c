"""Dry runs on benchmarks whose data are not there, and the list of sources."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gistcli import run
from gistcli.errors import DataError, RecipeError, UnknownName
from gistcli.recipe import Recipe
from tests.data.trees import vtab_lists, write_lists
from tests.listening import Listener

Make = Callable[..., Recipe]
KITTI = {"path": "nowhere/vtab-1k", "source": "vtab", "subset": "kitti"}


@pytest.mark.parametrize(
    ("keys", "steps", "examples"),
    [
        ({}, 16, {"train": 800, "val": 200, "test": 711}),
        ({"include_val": True}, 20, {"train": 1000, "test": 711}),
        ({"source": "fewshot", "subset": "pets", "shots": 8}, 6, {"train": 296, "test": 3_669}),
        ({"shots": 8}, None, None),
    ],
)
def test_without_data_the_published_sizes_give_head_and_steps(
    keys: dict[str, Any], steps: int | None, examples: dict[str, int] | None, recipe: Make
) -> None:
    train = {"epochs": 1, "batch_size": 50}
    listener = Listener()
    planned = recipe(data={**KITTI, "classes": 4, **keys}, train=train)
    found = run.dry_run(planned, reporter=listener)
    width = 64  # of gist_vit_nano
    assert found["parameters"]["head"] == 4 * (width + 1)
    assert found["parameters"]["trainable"] == found["parameters"]["method"] + 4 * (width + 1)
    assert (found["steps"], found["examples"], found["classes"]) == (steps, examples, None)
    (warning,) = [line for line in listener.lines if line.startswith("warning")]
    assert "not looked at: data (The set " in warning
    assert "\n" not in warning


def test_without_classes_the_head_is_left_out(recipe: Make) -> None:
    found = run.dry_run(recipe(data=KITTI, train={"epochs": 2, "batch_size": 100}))
    assert found["parameters"]["head"] is None
    assert found["steps"] == 16


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"subset": "kity"}, UnknownName, "no set 'kity'"),
        ({"source": "vtab1k"}, UnknownName, "'vtab1k' is not among the sources"),
        ({"source": "fewshot", "subset": "pets"}, RecipeError, "shots is missing"),
    ],
)
def test_what_is_asked_wrongly_is_an_error_of_a_dry_run(
    keys: dict[str, Any], error: type[Exception], message: str, recipe: Make
) -> None:
    with pytest.raises(error, match=message):
        run.dry_run(recipe(data={**KITTI, **keys}))


def test_data_that_are_there_are_counted_and_compared(recipe: Make, tmp_path: Path) -> None:
    write_lists(tmp_path / "kitti", vtab_lists([0, 1, 2, 3] * 3, [0, 1], [2, 3]))
    data = {**KITTI, "path": str(tmp_path), "classes": 4}
    found = run.dry_run(recipe(data=data))
    assert found["examples"] == {"train": 12, "val": 2, "test": 2}
    assert found["classes"] == ["0", "1", "2", "3"]
    with pytest.raises(DataError, match=r"has 4 classes, but data\.classes is 5"):
        run.dry_run(recipe(data={**data, "classes": 5}))


def test_a_task_of_vtab_goes_through_a_run_and_an_evaluation(recipe: Make, tmp_path: Path) -> None:
    write_lists(tmp_path / "vtab-1k/kitti", vtab_lists([0, 1, 2, 3] * 4, [0, 1], [2, 3, 0, 1]))
    data = {**KITTI, "path": str(tmp_path / "vtab-1k"), "classes": 4, "include_val": True}
    result = run.finetune(recipe(data=data, train__max_steps=2), output=tmp_path / "run")
    assert result["examples"] == {"train": 18, "test": 4}
    assert set(result["intervals"]) == {"test/accuracy"}
    (tmp_path / "vtab-1k").rename(tmp_path / "moved")
    again = run.evaluate(tmp_path / "run", data=str(tmp_path / "moved"))
    assert again["metrics"]["test/accuracy"] == result["metrics"]["test/accuracy"]


def test_sources_are_listed_with_their_sets() -> None:
    found = {entry["name"]: entry for entry in run.listing("sources")}
    assert {"digits", "folder", "list", "hf", "webdataset"} < {*found}
    assert all(entry["summary"] and "\n" not in entry["summary"] for entry in found.values())
    assert [len(found[name]["sets"]) for name in ("vtab", "fgvc", "fewshot", "hf")] == [19, 5, 5, 0]
    assert found["vtab"]["sets"][0] == {
        "name": "cifar",
        "group": "natural",
        "classes": 100,
        "examples": {"train": 800, "val": 200, "test": 10_000},
    }
