"""`gist sweep` on the command line: flags, JSON, exit codes and what people see."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gistcli import run
from gistcli.cli import invoke
from gistcli.recipe import Override
from gistcli.run.sweep_request import SweepRequest
from tests.run.sweeping import NANO, write

Captured = pytest.CaptureFixture[str]
EMPTY = {"sweep": "s", "runs": 0, "done": 0, "left": 0, "failed": [], "chosen": [], "results": [],
         "next": []}  # fmt: skip


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `run.sweep` or `run.sweep_dry_run` was called with."""
    seen: dict[str, Any] = {}

    def keep(name: str) -> Any:
        def function(request: SweepRequest, **named: Any) -> dict[str, Any]:
            named.pop("reporter")
            seen.update(name=name, request=request, named=named)
            return EMPTY

        return function

    for name in ("sweep", "sweep_dry_run"):
        monkeypatch.setattr(run, name, keep(name))
    return seen


def test_every_flag_reaches_the_request(called: dict[str, Any]) -> None:
    line = ["sweep", "a.yaml", "b.yaml", "--methods", "gift, lora", "--tasks", "x,y", "--seeds",
            "0-2,5", "--draw-shots", "--gist", "--ablate", "gist", "--refit-on", "train",
            "--grid", "optim.lr=1,2", "--grid", "lora:method.rank=4", "--random", "3",
            "--folds", "4", "--search-seeds", "7", "--refit", "--model", "m", "--data", "d",
            "--img-size", "32", "--epochs", "2", "--max-steps", "9", "--batch-size", "5",
            "--device", "cpu", "--set", "optim.lr=3", "--set", "seed=1", "-o", "s", "--shard",
            "2/3", "--retry-failed", "--json"]  # fmt: skip
    assert invoke(line) == 0
    assert called["name"] == "sweep"
    assert called["named"] == {"output": Path("s"), "shard": (2, 3), "retry_failed": True}
    assert called["request"] == SweepRequest(
        recipes=[Path("a.yaml"), Path("b.yaml")],
        methods=["gift", "lora"],
        tasks=["x", "y"],
        seeds=[0, 1, 2, 5],
        grid=["optim.lr=1,2", "lora:method.rank=4"],
        random=3,
        folds=4,
        search_seeds=[7],
        refit=True,
        refit_on="train",
        draw_shots=True,
        ablate=["gist"],
        overrides=[
            Override("model.name", "m", "--model"),
            Override("data.path", "d", "--data"),
            Override("model.img_size", 32, "--img-size"),
            Override("train.epochs", 2, "--epochs"),
            Override("train.max_steps", 9, "--max-steps"),
            Override("train.batch_size", 5, "--batch-size"),
            Override("train.device", "cpu", "--device"),
            Override("gist", {}, "--gist"),
        ],
        sets=["optim.lr=3", "seed=1"],
    )


def test_a_dry_run_goes_to_its_own_function(called: dict[str, Any]) -> None:
    assert invoke(["sweep", "a.yaml", "--dry-run", "--shard", "1/2", "--json"]) == 0
    assert (called["name"], called["named"]) == ("sweep_dry_run", {"output": None})


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "RECIPE"),
        (["a.yaml", "--shard", "1/2"], "--shard needs -o"),
        (["a.yaml", "-o", "s", "--shard", "0/2"], "expected i/n with i from 1 to n"),
        (["a.yaml", "-o", "s", "--shard", "3/2"], "expected i/n"),
        (["a.yaml", "-o", "s", "--shard", "half"], "expected i/n"),
        (["a.yaml", "--seeds", "a"], "numbers such as 3,5-8"),
        (["a.yaml", "--seeds", "3-1"], "--seeds: 3-1 names nothing"),
        (["a.yaml", "--methods", ","], "--methods names nothing"),
        (["a.yaml", "--random", "0"], "--random"),
        (["a.yaml", "--folds", "1"], "--folds"),
        (["a.yaml", "--methds", "gift"], "--methods"),
    ],
)
def test_a_wrong_command_line_is_exit_2(
    arguments: list[str], part: str, called: dict[str, Any], capsys: Captured
) -> None:
    assert invoke(["sweep", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert part in err
    assert not called


def test_the_help_has_three_examples(capsys: Captured) -> None:
    assert invoke(["sweep", "-h"]) == 0
    assert capsys.readouterr().out.partition("Examples")[2].count("gist sweep") >= 3


def test_unknown_names_write_nothing(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = write(tmp_path)
    assert invoke(["sweep", str(recipe), "--methods", "gitf,lroa", "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "UnknownName"
    assert error["message"].count("Did you mean") == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["nano.yaml", "pictures"]


@pytest.fixture(scope="module")
def partly(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder and the line of a search of which one configuration diverges."""
    folder = tmp_path_factory.mktemp("partly")
    recipe = write(folder, NANO + "optim: {name: sgd, clip_norm: 0}\n")
    return folder, ["sweep", str(recipe), "--methods", "linear", "--grid",
                    "optim.head_lr=0.1,1e38", "--refit", "-o", str(folder / "s")]  # fmt: skip


def test_json_is_the_state_of_the_ledger_and_failures_are_exit_1(
    partly: tuple[Path, list[str]], capsys: Captured
) -> None:
    folder, line = partly
    assert invoke([*line, "--json"]) == 1
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert set(found) == {
        "sweep", "runs", "done", "failed", "left", "chosen", "results", "next",
    }  # fmt: skip
    assert (found["runs"], found["done"], found["left"]) == (3, 2, 0)
    assert found["failed"][0]["type"] == "Diverged"
    assert set(found["results"][0]) >= {
        "id", "task", "method", "seed", "role", "metrics", "seconds",
    }  # fmt: skip
    assert found["next"] == [f"gist compare {folder / 's'}"]
    assert "linear.s0: test/accuracy" in err
    assert err.count("decode: 20 images") <= 1


def test_people_see_what_was_chosen_the_figures_and_what_failed(
    partly: tuple[Path, list[str]], capsys: Captured
) -> None:
    folder, line = partly
    assert invoke(line) == 1
    out = capsys.readouterr().out
    assert "Chosen by val/accuracy; test was not looked at for it" in out
    assert "optim.head_lr=0.1" in out
    assert "Final runs: mean over seeds" in out
    assert "failed: linear.c" in out
    assert f"2 of 3 runs done, 1 failed: {folder / 's'}" in out
    assert f"gist compare {folder / 's'}" in out


def test_people_see_the_plan_and_that_the_hours_are_an_estimate(
    tmp_path: Path, capsys: Captured
) -> None:
    recipe = write(tmp_path)
    assert invoke(["sweep", str(recipe), "--methods", "gift,lora", "--seeds", "0,1",
                   "--dry-run"]) == 0  # fmt: skip
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if line.strip().startswith("nano")]
    assert [row[:7] for row in rows] == [
        ["nano", "gift", "1", "0", "2", "2", "2"], ["nano", "lora", "1", "0", "2", "2", "2"],
    ]  # fmt: skip
    assert "4 runs, 4 of them left, about" in out
    assert "An estimate from the operations of the networks" in out
