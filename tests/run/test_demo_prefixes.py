"""`gist demo` of a hypernetwork: what it trains, compares and leaves behind."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from gistcli import run
from gistcli.console.results import Result, show_result
from gistcli.errors import Refused
from tests.listening import Listener
from tests.run.task_files import task_recipe, write_tasks
from tests.run.text_models import save_model

STEPS = ["0", "5", "10", "20", "50"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    save_model(folder / "llama", "Llama", "causal_lm")
    write_tasks(folder / "tasks")
    return folder


@pytest.fixture(scope="module")
def made(place: Path) -> dict[str, Any]:
    recipe = task_recipe(place / "llama", place / "tasks")
    return run.demo(recipe, place / "out", reporter=Listener())


def test_every_start_has_a_row_and_every_claim_a_verdict(made: dict[str, Any]) -> None:
    rows = {row["key"]: row["scores"] for row in made["rows"]}
    assert [*rows] == [
        "nothing", "wrong_task", "random", "shared", "mean", "hyper", "adapted", "in_context",
    ]  # fmt: skip
    for key in ("random", "shared", "mean", "hyper", "adapted"):
        assert [*rows[key]] == STEPS
    assert made["tasks"] == 3
    assert made["metric"] == "score"  # some tasks have options, one is written
    for one in made["orderings"]:
        step = str(one["steps"])
        gap = rows[one["above"]][step] - rows[one["below"]][step]
        assert one["difference"] == pytest.approx(gap)
        low, high = one["interval"]
        assert one["verdict"] == ("holds" if low > 0 else "reversed" if high < 0 else "open")


def test_untuned_prefixes_score_what_the_run_itself_says(made: dict[str, Any], place: Path) -> None:
    told = json.loads((place / "out" / "hyper" / "result.json").read_text())["tasks"]
    told = [task for task in told if task["split"] == "test"]
    rows = {row["key"]: row["scores"]["0"] for row in made["rows"]}
    for key, name in (("hyper", "score"), ("nothing", "zero_shot"), ("in_context", "in_context")):
        assert rows[key] == pytest.approx(sum(t[name] for t in told) / len(told)), key


def test_its_files_are_there_and_the_demo_again_trains_nothing(
    made: dict[str, Any], place: Path
) -> None:
    assert all(Path(path).exists() for path in made["files"].values())
    assert load_file(made["files"]["their prefix"])["keys"].shape[-2] == 3
    written = {p: p.stat().st_mtime_ns for p in (place / "out").glob("*/tuner.safetensors")}
    assert len(written) == 3
    again = run.demo(task_recipe(place / "llama", place / "tasks"), place / "out")
    assert {p: p.stat().st_mtime_ns for p in written} == written
    assert again["rows"] == made["rows"]


def test_a_hyperpretrained_run_in_the_recipe_is_compared_with_none(
    made: dict[str, Any], place: Path, tmp_path: Path
) -> None:
    init = {"init": str(place / "out" / "hyper")}
    recipe = task_recipe(place / "llama", place / "tasks", hyper=init, train={"max_steps": 1})
    found = run.demo(recipe, tmp_path / "out")
    assert {"pretrained", "hyper"} <= {row["key"] for row in found["rows"]}
    claims = {(one["above"], one["below"]) for one in found["orderings"]}
    assert ("pretrained", "hyper") in claims


def test_a_recipe_without_prefixes_is_refused_before_anything_is_written(
    place: Path, tmp_path: Path
) -> None:
    recipe = task_recipe(place / "llama", place / "tasks", hyper={"context": "full"})
    with pytest.raises(Refused, match="makes prefixes"):
        run.demo(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_people_see_both_tables(made: dict[str, Any]) -> None:
    out = io.StringIO()
    show_result(Result("orderings", made), out)
    for word in ("prefix of the examples", "10 steps", "3 held-out tasks", "the paper's order"):
        assert word in out.getvalue()
