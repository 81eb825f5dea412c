"""Sweeps: what is trained, what is read, what is chosen, and what is left alone."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gistcli import run
from gistcli.artifacts.ledger import Ledger
from gistcli.artifacts.rundir import RunDirectory
from gistcli.errors import NotFound, Refused
from gistcli.recipe import load_recipe
from gistcli.run.sweep_request import SweepRequest
from tests.listening import Listener
from tests.run.sweeping import NANO, copy, results, search, state, table, write

Found = tuple[Path, Path, dict[str, Any]]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """A recipe, the folder of a finished search with refit, and its result; only to be read."""
    folder = tmp_path_factory.mktemp("searched")
    recipe = write(folder)
    return recipe, folder / "s", run.sweep(search(recipe), output=folder / "s")


def entry(found: dict[str, Any], **which: Any) -> list[dict[str, Any]]:
    return [r for r in found["results"] if all(r[k] == v for k, v in which.items())]


def test_a_search_reads_no_test_and_keeps_what_a_comparison_needs(searched: Found) -> None:
    _, path, found = searched
    candidates = entry(found, role="candidate")
    assert len(candidates) == 4
    for one in candidates:
        assert not [name for name in one["metrics"] if name.startswith("test")]
        folder = path / "runs" / one["id"]
        assert {p.name for p in folder.iterdir()} == {
            "recipe.yaml", "result.json", "metrics.jsonl", "environment.json", "predictions",
        }  # fmt: skip
        assert [p.name for p in (folder / "predictions").iterdir()] == ["val.csv"]
        assert "test" not in json.loads((folder / "result.json").read_text())["examples"]
        recipe = RunDirectory(folder).load_recipe()
        assert recipe.optim.head_lr == one["point"]["optim.head_lr"]
        assert (recipe.eval.test, recipe.data.include_val, recipe.seed) == (False, False, 0)


def test_what_was_chosen_is_the_best_on_validation(searched: Found) -> None:
    _, path, found = searched
    assert [c["method"] for c in found["chosen"]] == ["gift", "linear"]
    for choice in found["chosen"]:
        mine = entry(found, role="candidate", method=choice["method"])
        best = max(mine, key=lambda r: (r["metrics"]["val/accuracy"], -r["metrics"]["val/loss"]))
        assert choice["point"] == best["point"]
        assert choice["value"] == best["metrics"]["val/accuracy"]
        assert (choice["tried"], choice["failed"]) == (2, 0)
    assert Ledger.open(path).read_chosen() == found["chosen"]


def test_a_refit_trains_on_train_and_val_to_the_end_and_reads_test_once(searched: Found) -> None:
    _, path, found = searched
    finals = entry(found, role="final")
    assert [(r["method"], r["seed"]) for r in finals] == [
        ("gift", 0), ("gift", 1), ("linear", 0), ("linear", 1),
    ]  # fmt: skip
    chosen = {c["method"]: c["point"] for c in found["chosen"]}
    for one in finals:
        directory = RunDirectory(path / "runs" / one["id"])
        result = directory.read_result()
        assert set(result["examples"]) == {"train", "test"}
        assert {name.partition("/")[0] for name in result["metrics"]} == {"test"}
        recipe = directory.load_recipe()
        assert {"optim.head_lr": recipe.optim.head_lr} == chosen[one["method"]]
        assert (recipe.data.include_val, recipe.eval.select, recipe.seed) == (
            True, "last", one["seed"],
        )  # fmt: skip
        records = directory.log.read()
        assert not [name for record in records for name in record if name.startswith("test")]
        with directory.predictions_path("test").open() as file:
            assert len(list(csv.DictReader(file))) == result["examples"]["test"]


def test_the_runs_of_a_refit_are_those_that_finetune_makes(searched: Found, tmp_path: Path) -> None:
    _, path, found = searched
    one = entry(found, role="final")[1]
    recipe = RunDirectory(path / "runs" / one["id"]).load_recipe()
    assert run.finetune(recipe, output=tmp_path / "run")["metrics"] == one["metrics"]


def test_the_same_again_repeats_nothing(searched: Found) -> None:
    recipe, path, found = searched
    before = state(path)
    listener = Listener()
    again = run.sweep(search(recipe), output=path, reporter=listener)
    assert again == found
    written = {p for p, then in state(path).items() if before.get(p) != then}
    assert not [p for p in written if p.suffix != ".lock"]
    assert listener.lines[0] == f"{path}: 8 runs, 8 of them done before"


def test_another_request_is_refused_with_the_differences_and_nothing_is_lost(
    searched: Found, tmp_path: Path
) -> None:
    recipe, path, _ = searched
    before = state(path)
    changed = copy(recipe, tmp_path, "rank: 2", "rank: 3")
    others: list[tuple[SweepRequest, str]] = [
        (search(recipe, seeds=[0, 2]), r"seeds: \[0, 1\] there, \[0, 2\] here"),
        (search(recipe, methods=["gift"]), r"methods: \[gift, linear\] there, \[gift\] here"),
        (search(recipe, grid=["optim.head_lr=x1,x5"]), "grid: .*x4.* there, .*x5.* here"),
        (search(recipe, folds=2), "folds: null there, 2 here"),
        (search(recipe, search_seeds=[1]), r"search_seeds: \[0\] there, \[1\] here"),
        (search(recipe, sets=["train.max_steps=3"]), "train.max_steps: 2 there, 3 here"),
        (search(changed), r"method.rank: 2 there, 3 here \(nano/gift\)"),
    ]
    for request, words in others:
        with pytest.raises(Refused, match=f"holds another sweep:\n  {words}"):
            run.sweep(request, output=path)
    assert state(path) == before


def test_the_same_contents_from_another_file_on_another_device_are_the_same_request(
    searched: Found, tmp_path: Path
) -> None:
    recipe, path, found = searched
    again = run.sweep(
        search(copy(recipe, tmp_path), sets=["train.device=cpu"], grid=["optim.head_lr=x1.0, x4"]),
        output=path,
    )
    assert table(again) == table(found)


def test_refit_can_be_added_to_a_search_that_was_made_without(
    searched: Found, tmp_path: Path
) -> None:
    recipe, _, found = searched
    listener = Listener()
    request = search(recipe, methods=["linear"], seeds=[1], search_seeds=[0], refit=False)
    first = run.sweep(request, output=tmp_path / "s", reporter=listener)
    assert (first["runs"], first["done"], first["left"]) == (2, 2, 0)
    assert any("with --refit" in line for line in listener.lines)
    assert first["next"] == []  # nothing that could be compared
    kept = results(tmp_path / "s")
    both = run.sweep(search(recipe, methods=["linear"], seeds=[1], search_seeds=[0]),
                     output=tmp_path / "s")  # fmt: skip
    assert (both["runs"], both["done"]) == (3, 3)
    assert kept.items() <= results(tmp_path / "s").items()
    of_others = table(found)["results"]
    assert all(figures == of_others[name] for name, figures in table(both)["results"].items())
    without = run.sweep(request, output=tmp_path / "s")
    assert without["done"] == 3


def test_without_a_grid_every_run_reads_test_and_the_tasks_of_a_family_follow_each_other(
    tmp_path: Path,
) -> None:
    tasks = "tasks:\n  b: {eval: {test: false}}\n  a: {method: {name: linear}}\n"
    family = write(tmp_path, NANO + tasks)
    listener = Listener()
    found = run.sweep(SweepRequest([family]), output=tmp_path / "s", reporter=listener)
    assert [(r["id"], r["role"]) for r in found["results"]] == [
        ("b.gift.s0", "final"), ("a.linear.s0", "final"),
    ]  # fmt: skip
    assert all("test/accuracy" in r["metrics"] for r in found["results"])
    assert found["chosen"] == []
    assert [line.partition(":")[0] for line in listener.lines[1:]] == ["b.gift.s0", "a.linear.s0"]
    assert found["next"] == [f"gist compare {tmp_path / 's'}"]


DIVERGES = NANO + "optim: {name: sgd, clip_norm: 0}\n"


@pytest.fixture(scope="module")
def failing(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., SweepRequest]:
    recipe = write(tmp_path_factory.mktemp("failing"), DIVERGES)

    def make(*values: str, **changes: Any) -> SweepRequest:
        grid = [f"optim.head_lr={','.join(values)}"]
        return SweepRequest([recipe], methods=["linear"], grid=grid, **changes)

    return make


def test_a_failed_run_is_recorded_and_the_rest_goes_on(
    failing: Callable[..., SweepRequest], tmp_path: Path
) -> None:
    path, request = tmp_path / "s", failing("1e38", "0.1", refit=True)
    listener = Listener()
    found = run.sweep(request, output=path, reporter=listener)
    assert (found["runs"], found["done"], found["left"]) == (3, 2, 0)
    (failed,) = found["failed"]
    assert (failed["type"], failed["exit_code"]) == ("Diverged", 4)
    assert any(line.startswith(f"warning: {failed['id']} failed") for line in listener.lines)
    (choice,) = found["chosen"]
    assert (choice["point"], choice["tried"], choice["failed"]) == ({"optim.head_lr": 0.1}, 2, 1)
    record = path / "failures" / f"{failed['id']}.json"
    before = (record.stat().st_mtime_ns, results(path))
    assert run.sweep(request, output=path) == found
    assert (record.stat().st_mtime_ns, results(path)) == before
    # test was read with what was chosen without it: the choice stays
    listener = Listener()
    run.sweep(request, output=path, retry_failed=True, reporter=listener)
    assert record.stat().st_mtime_ns == before[0]
    assert any("1 failed candidates were not tried again" in line for line in listener.lines)


def test_weights_that_only_the_last_update_broke_are_a_failure_like_any_other(
    failing: Callable[..., SweepRequest], tmp_path: Path
) -> None:
    request = failing("1e38", "0.1", sets=["train.max_steps=1", "optim.warmup_ratio=0"])
    found = run.sweep(request, output=tmp_path / "s")
    (failed,) = found["failed"]
    assert failed["type"] == "Diverged"
    assert "The loss on val is" in failed["message"]
    assert found["chosen"][0]["point"] == {"optim.head_lr": 0.1}


def test_where_every_configuration_failed_nothing_is_chosen_and_all_can_be_tried_again(
    failing: Callable[..., SweepRequest], tmp_path: Path
) -> None:
    path, request = tmp_path / "s", failing("1e38", refit=True)
    found = run.sweep(request, output=path)
    assert [f["type"] for f in found["failed"]] == ["Diverged", "FoundBad"]
    assert "None of the 1 configurations could be trained" in found["failed"][1]["message"]
    assert found["chosen"][0]["point"] is None
    before = state(path / "failures")
    again = run.sweep(request, output=path, retry_failed=True)
    assert again["failed"] == found["failed"]
    after = state(path / "failures")
    assert all(after[p] > before[p] for p in before)


def test_folds_take_the_place_of_a_validation_split(tmp_path: Path) -> None:
    recipe = write(tmp_path)
    shutil.rmtree(tmp_path / "pictures" / "val")
    request = SweepRequest([recipe], grid=["optim.lr=x1"], folds=2, sets=["data.val_fraction=0"])
    found = run.sweep(request, output=tmp_path / "s")
    names = [r["id"] for r in found["results"]]
    assert [(n[-2:], r["fold"]) for n, r in zip(names, found["results"], strict=True)] == [
        ("f0", 0), ("f1", 1),
    ]  # fmt: skip
    (choice,) = found["chosen"]
    values = [r["metrics"]["val/accuracy"] for r in found["results"]]
    assert choice["value"] == pytest.approx(sum(values) / 2)
    assert choice["runs"] == 2


def test_a_search_without_validation_data_is_refused_before_anything_is_written(
    tmp_path: Path,
) -> None:
    family = write(tmp_path, NANO + "tasks: {a: {}, b: {data: {val_fraction: 0}}}\n")
    shutil.rmtree(tmp_path / "pictures" / "val")
    with pytest.raises(Refused, match=r"^b: pictures has no validation split") as caught:
        run.sweep(SweepRequest([family], grid=["optim.lr=x1,x2"]), output=tmp_path / "s")
    assert "--folds K" in caught.value.hint
    assert not (tmp_path / "s").exists()


def test_missing_data_of_several_tasks_are_one_message(tmp_path: Path) -> None:
    tasks = "tasks: {a: {data: {path: ./no/such}}, b: {}, c: {data: {path: ./nor}}}\n"
    family = write(tmp_path, NANO + tasks)
    with pytest.raises(NotFound, match=r"The data of 2 tasks cannot be used:\n  a: .*\n  c: "):
        run.sweep(SweepRequest([family]), output=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "thesis.tex").write_text("years of work")
    with pytest.raises(Refused, match=r"holds no sweep: thesis.tex"):
        run.sweep(SweepRequest([write(tmp_path)]), output=tmp_path / "s")
    assert [p.name for p in (tmp_path / "s").iterdir()] == ["thesis.tex"]


def test_automatic_folders_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    request = SweepRequest([write(tmp_path)], methods=["linear"], sets=["train.max_steps=1"])
    assert run.sweep(request)["sweep"] == "runs/sweep-nano-1"
    assert run.sweep(request)["sweep"] == "runs/sweep-nano-2"


def test_a_sweep_leaves_recipes_as_they_are(searched: Found) -> None:
    recipe, _, _ = searched
    assert recipe.read_text() == NANO
    assert load_recipe(recipe).method["rank"] == 2
