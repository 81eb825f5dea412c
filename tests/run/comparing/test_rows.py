"""Which runs a comparison takes, and which of them are one row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gistcli.artifacts.ledger import Ledger, PlannedRun
from gistcli.errors import Diverged, NotFound, Refused, WeightsError
from gistcli.run.collecting import collect
from gistcli.run.rows import Row, build_rows, columns

Make = Callable[..., Path]


def rows_of(*paths: Path) -> tuple[list[Row], list[str]]:
    collected = collect(paths)
    return build_rows(collected.entries, collected.notes), collected.notes


def names(rows: list[Row]) -> list[str]:
    return [row.name for row in rows]


def planned(task: str, method: str, seed: int, role: str = "final", **more: Any) -> PlannedRun:
    tail = ".c1" if role == "candidate" else ""
    point = {"optim.lr": more.pop("lr")} if "lr" in more else {}
    recipe = str(more.pop("recipe", "recipes/family.yaml"))
    stem = f"{Path(recipe).stem}." if recipe != "recipes/family.yaml" else ""
    name = f"{stem}{task}.{method}{tail}{point.get('optim.lr', '')}.s{seed}"
    return PlannedRun(name, recipe, task, method, seed, role, point)  # type: ignore[arg-type]


def test_runs_that_differ_only_in_seeds_are_one_row(tmp_path: Path, make_run: Make) -> None:
    make_run(tmp_path / "a", seed=0)
    make_run(tmp_path / "b", seed=1)
    make_run(tmp_path / "c", seed=0, data__shot_seed=1, published={
        "value": 0.5, "metric": "test/accuracy"})  # fmt: skip
    make_run(tmp_path / "d", seed=0, task="pets", train__device="cpu", eval__best_test=True)
    make_run(tmp_path / "e", seed=0, method="lora")
    rows, notes = rows_of(tmp_path)
    assert names(rows) == ["gift", "lora"]
    assert {task: list(runs) for task, runs in rows[0].tasks.items()} == {
        "digits": [(0, 0, 0), (0, 1, 0), (1, 0, 0)],
        "pets": [(0, 0, 0)],
    }
    assert notes == []


def test_runs_of_other_configurations_are_rows_with_the_differing_keys_in_their_names(
    tmp_path: Path, make_run: Make
) -> None:
    for place, (task, lr, rank) in enumerate(
        [("a", 1e-3, 4), ("a", 3e-3, 4), ("b", 1e-3, 8), ("b", 3e-3, 8)]
    ):
        make_run(tmp_path / str(place), task=task, optim__lr=lr, method__rank=rank)
    rows, _ = rows_of(tmp_path)
    # the rank differs between tasks only, so it makes no row
    assert names(rows) == ["gift (optim.lr=0.001)", "gift (optim.lr=0.003)"]
    assert [list(row.tasks) for row in rows] == [["a", "b"], ["a", "b"]]


def test_a_run_that_was_made_twice_counts_once_and_is_named(tmp_path: Path, make_run: Make) -> None:
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", right=(0, 0, 1, 1))
    rows, notes = rows_of(tmp_path, tmp_path / "a")
    assert [entry.path for entry in rows[0].entries] == [str(tmp_path / "a")]
    assert len(notes) == 1
    assert f"left out: {tmp_path / 'b'} (as {tmp_path / 'a'})" in notes[0]


def test_in_a_sweep_a_row_is_a_method_whatever_was_chosen_for_each_task(
    tmp_path: Path, make_sweep: Make
) -> None:
    candidates = [planned("a", "gift", 0, "candidate", lr=lr) for lr in (1e-3, 3e-3, 1e-2)]
    finals = [planned(t, m, s) for t in "ab" for m in ("gift", "lora") for s in (0, 1)]
    chosen = {run.id: {"optim__lr": 1e-2} for run in finals if run.task == "a" and run.seed}
    sweep = make_sweep(tmp_path / "sweep", [*candidates, *finals], recipes=chosen)
    rows, _ = rows_of(sweep)
    assert names(rows) == ["gift", "lora"]
    assert [len(row.entries) for row in rows] == [4, 4]
    assert [entry.tried for entry in rows[0].entries] == [3, 3, 1, 1]
    assert names(rows_of(sweep / "runs")[0]) == ["gift", "lora"]


def test_several_recipes_and_sweeps_have_their_names_in_those_of_the_rows(
    tmp_path: Path, make_run: Make, make_sweep: Make
) -> None:
    plan = [planned("a", "gift", 0, recipe="r/one.yaml"), planned("a", "gift", 0, recipe="two.yml")]
    first = make_sweep(tmp_path / "first", plan)
    assert names(rows_of(first)[0]) == ["one gift", "two gift"]
    second = make_sweep(tmp_path / "second", plan[:1])
    found = names(rows_of(first, second)[0])
    assert found == ["first one gift", "two gift", "second one gift"]
    make_run(tmp_path / "bare", task="a")
    assert names(rows_of(tmp_path / "bare", second)[0]) == ["gift", "one gift"]


def test_what_a_sweep_has_not_finished_is_noted(tmp_path: Path, make_sweep: Make) -> None:
    plan = [planned("a", "gift", s) for s in (0, 1, 2)]
    sweep = make_sweep(tmp_path / "sweep", plan, skip=[plan[1].id, plan[2].id])
    Ledger.open(sweep).record_failure(plan[1], Diverged("the loss is not finite"))
    rows, notes = rows_of(sweep)
    assert len(rows[0].entries) == 1
    assert notes == [f"{sweep}: failed: a.gift.s1", f"{sweep}: not run yet: a.gift.s2"]


def test_a_sweep_without_a_finished_final_run_is_refused(tmp_path: Path, make_sweep: Make) -> None:
    plan = [planned("a", "gift", 0, "candidate", lr=1e-3), planned("a", "gift", 0)]
    sweep = make_sweep(tmp_path / "sweep", plan, skip=[plan[1].id])
    with pytest.raises(NotFound, match="no finished final run") as caught:
        collect([sweep])
    assert "--refit" in caught.value.hint


def test_a_candidate_is_not_compared(tmp_path: Path, make_sweep: Make) -> None:
    plan = [planned("a", "gift", 0, "candidate", lr=1e-3), planned("a", "gift", 0)]
    sweep = make_sweep(tmp_path / "sweep", plan)
    with pytest.raises(Refused, match="is a candidate of the sweep"):
        collect([sweep / "runs" / plan[0].id])
    assert collect([sweep / "runs" / plan[1].id]).entries[0].tried == 1


def test_what_is_no_finished_run_is_refused_and_says_what_to_do(
    tmp_path: Path, make_run: Make
) -> None:
    with pytest.raises(NotFound, match="does not exist"):
        collect([tmp_path / "nowhere"])
    (tmp_path / "empty" / "deep").mkdir(parents=True)
    with pytest.raises(NotFound, match="no run directory"):
        collect([tmp_path / "empty"])
    half = make_run(tmp_path / "runs" / "half", finished=False)
    with pytest.raises(NotFound, match="was not finished") as caught:
        collect([half])
    assert str(half / "recipe.yaml") in caught.value.hint
    whole = make_run(tmp_path / "runs" / "whole")
    collected = collect([tmp_path / "runs"])
    assert [entry.path for entry in collected.entries] == [str(whole)]
    assert collected.notes == [f"not finished and left out: {half}"]


def test_a_result_that_cannot_be_read_stops_the_comparison(tmp_path: Path, make_run: Make) -> None:
    run = make_run(tmp_path / "run")
    (run / "result.json").write_text('{"metrics": {')
    with pytest.raises(WeightsError, match=r"result\.json cannot be read"):
        collect([tmp_path])
    (run / "result.json").write_text('{"metrics": {}}')
    with pytest.raises(WeightsError, match="lacks intervals, examples"):
        collect([tmp_path])


def test_tasks_of_a_group_stand_side_by_side(tmp_path: Path, make_run: Make) -> None:
    for task, group in [("a", "one"), ("b", "two"), ("c", "one"), ("d", None)]:
        make_run(tmp_path / task, task=task, task__group=group)
    notes: list[str] = []
    tasks, groups = columns(build_rows(collect([tmp_path]).entries, notes), notes)
    assert tasks == ["a", "c", "b", "d"]
    assert groups == {"one": ["a", "c"], "two": ["b"]}
    assert notes == ["in no group, so in no mean of groups: d"]
