"""The commands one after the other on real digits, as a script would call them."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest

from gistcli.cli import invoke

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
SMOKE = [RECIPES / "smoke" / f"{name}_digits.yaml" for name in ("gift", "sgd")]
"""Those of the other methods are run, a step at a time, by tests/run/test_methods.py."""


def call(*arguments: str | Path, code: int = 0) -> Any:
    """The JSON value of a command that ends with `code`."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        ended = invoke([*map(str, arguments), "--json"])
    assert ended == code, err.getvalue() + out.getvalue()
    return json.loads(out.getvalue())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "gift"
    result = call("finetune", RECIPES / "smoke" / "gift_digits.yaml", "-o", path)
    assert result["run"] == str(path)
    assert result["parameters"]["method"] == 2 * 64 * 16
    return path


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image
    from sklearn.datasets import load_digits

    path = tmp_path_factory.mktemp("pictures") / "three.png"
    Image.fromarray((load_digits().images[3] * 15).astype("uint8")).save(path)
    return path


def test_the_same_command_again_repeats_the_result(run: Path) -> None:
    first = json.loads((run / "result.json").read_text())
    again = call("finetune", RECIPES / "smoke" / "gift_digits.yaml", "-o", run)
    assert again["metrics"] == first["metrics"]


def test_another_recipe_in_the_same_place_is_refused_with_the_difference(run: Path) -> None:
    recipe = RECIPES / "smoke" / "gift_digits.yaml"
    error = call("finetune", recipe, "--rank", "2", "-o", run, code=2)["error"]
    assert "method.rank: 16 there, 2 here" in error["message"]


def test_eval_repeats_the_figure_of_the_run(run: Path) -> None:
    result = json.loads((run / "result.json").read_text())
    metrics = call("eval", run)["metrics"]
    assert metrics["test/accuracy"] == result["metrics"]["test/accuracy"]


def test_a_merged_folder_predicts_what_the_run_predicts(
    run: Path, picture: Path, tmp_path: Path
) -> None:
    merged = tmp_path / "merged"
    receipt = call("merge", run, "-o", merged)
    assert receipt["verified"] is True
    assert receipt["output"] == str(merged)
    ours = call("predict", run, picture)["predictions"]
    plain = call("predict", merged, picture, "-o", tmp_path / "p.csv")["predictions"]
    assert ours[0]["class"] == plain[0]["class"]
    assert ours[0]["probability"] == pytest.approx(plain[0]["probability"], abs=1e-4)
    assert (tmp_path / "p.csv").read_text().count("\n") == 2


def test_visualize_draws_a_sheet_and_keeps_the_maps(
    run: Path, picture: Path, tmp_path: Path
) -> None:
    found = call("visualize", run, picture, "-o", tmp_path / "maps", "--layers", "1-2")
    assert found["layers"] == [1, 2]
    assert Path(found["maps"]).is_file()
    assert list((tmp_path / "maps").glob("*.png"))


def test_inspect_knows_a_run_and_a_model(run: Path) -> None:
    assert call("inspect", run)["recipe"]["method"]["name"] == "gift"
    sites = call("inspect", "gist_vit_nano")["sites"]
    assert {"name", "role", "d_in", "d_out"} <= set(sites[0])


def test_list_reads_methods_and_models_from_the_code() -> None:
    methods = {entry["name"]: entry for entry in call("list", "methods")}
    assert {"gift", "linear", "full"} <= set(methods)
    assert "rank" in methods["gift"]["options"]
    models = call("list", "models")
    assert models[0]["name"] == "gist_vit_nano"


def test_list_knows_the_recipes_of_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(RECIPES.parent)
    found = {entry["name"]: entry["summary"] for entry in call("list", "recipes")}
    assert "digits" in found["recipes/quickstart.yaml"]
    assert len(found) == len(list(RECIPES.rglob("*.yaml")))
    assert isinstance(call("list", "tasks"), list)


def test_a_dry_run_counts_and_writes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    found = call("finetune", RECIPES / "quickstart.yaml", "--dry-run")
    assert found["parameters"]["method"] == 2 * 64 * 8
    assert found["steps"] == 200
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("recipe", SMOKE, ids=lambda p: p.stem)
def test_a_smoke_recipe_runs_whole(recipe: Path, tmp_path: Path) -> None:
    result = call("finetune", recipe, "-o", tmp_path / "run")
    assert 0 <= result["metrics"]["test/accuracy"] <= 1
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if json.loads(line)["kind"] == "train"]
    assert steps == [1, 2, 3, 4]


def test_smoke_does_two_steps_of_everything_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    found = call("finetune", RECIPES / "quickstart.yaml", "--smoke")
    assert found["smoke"] == "passed"
    assert list(tmp_path.iterdir()) == []
