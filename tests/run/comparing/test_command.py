"""`gist compare` as its users meet it: the overview, tables on the terminal, JSON, exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gistcli import run
from gistcli.artifacts.ledger import Ledger, PlannedRun
from gistcli.cli import invoke
from gistcli.errors import Diverged

Make = Callable[..., Path]
Captured = pytest.CaptureFixture[str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path("runs")


def ask(captured: Captured, *arguments: str) -> tuple[int, Any]:
    code = invoke(["compare", *arguments, "--json"])
    return code, json.loads(captured.readouterr().out)


def test_without_an_argument_runs_are_listed_the_newest_first(
    here: Path, make_run: Make, make_sweep: Make, capsys: Captured
) -> None:
    make_run(here / "old", right=[1] * 9 + [0])
    make_run(here / "val-only", split="val", method="lora")
    make_run(here / "deep" / "half", finished=False, task="pets")
    (make_run(here / "damaged") / "result.json").write_text("{")
    plan = [PlannedRun(f"digits.gift.s{s}", "r.yaml", "digits", "gift", s) for s in range(3)]
    sweep = make_sweep(here / "sweep", plan, skip=[plan[1].id, plan[2].id])
    Ledger.open(sweep).record_failure(plan[1], Diverged("no"))
    for age, name in enumerate(["sweep", "deep/half", "damaged", "val-only", "old"]):
        for file in ("sweep.json", "runs", "recipe.yaml", "result.json"):
            if (here / name / file).exists():
                os.utime(here / name / file, (10**9 - age, 10**9 - age))
    code, value = ask(capsys)
    assert code == 0
    found = {row["path"]: row for row in value["runs"]}
    assert list(found) == [
        "runs/sweep", "runs/deep/half", "runs/damaged", "runs/val-only", "runs/old"
    ]  # fmt: skip
    assert found["runs/sweep"]["state"] == "1 of 3 runs done, 1 failed"
    assert (found["runs/deep/half"]["state"], found["runs/deep/half"]["data"]) == (
        "unfinished", "pets",
    )  # fmt: skip
    assert "result.json cannot be read" in found["runs/damaged"]["state"]
    assert found["runs/val-only"]["metric"] == "val/accuracy"
    old = found["runs/old"]
    assert (old["method"], old["value"], old["parameters"], old["seconds"], old["state"]) == (
        "gift", 0.9, 520, 2.0, "complete",
    )  # fmt: skip
    assert invoke(["compare"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if "runs/old" in x)
    assert line.split() == [
        "runs/old", "gift", "digits", "test/accuracy", "90.0", "[59.6,", "98.2]", "520",
        "2.0", "s", "complete",
    ]  # fmt: skip


def test_where_nothing_was_run_that_is_said(here: Path, capsys: Captured) -> None:
    code, value = ask(capsys)
    assert (code, value["error"]["type"]) == (2, "NotFound")
    here.mkdir()
    assert ask(capsys)[0] == 2
    assert invoke(["compare", "-o", "out"]) == 2
    assert "needs runs" in capsys.readouterr().err
    assert not Path("out").exists()


def test_looking_at_runs_loads_no_library_of_models(here: Path, make_run: Make) -> None:
    for place in range(3):
        make_run(here / f"gift-{place}", seed=place)
    make_run(here / "lora", method="lora")
    script = """
import sys
from gistcli.cli import invoke
assert invoke(["compare"]) == 0
assert "matplotlib" not in sys.modules
assert invoke(["compare", "runs"]) == 0
heavy = {"timm", "transformers", "torchvision", "accelerate", "sklearn"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)


def test_the_terminal_shows_figures_differences_notes_and_files(
    here: Path, make_run: Make, capsys: Captured
) -> None:
    published = {"value": 0.85, "metric": "test/accuracy", "protocol": "last", "source": "A [1]"}
    for seed in (0, 1):
        make_run(here / f"g{seed}", seed=seed, right=[1] * 8 + [0] * 2, published=published,
                 curve=[0.5])  # fmt: skip
        make_run(here / f"l{seed}", method="lora", seed=seed, right=[1] * 7 + [0] * 3)
    assert invoke(["compare", "runs", "--reference", "lora", "-o", "out [1]"]) == 0
    text = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "gift 520 - 2 80.0 ± 0.0" in lines
    assert "published (last) - 85.0" in lines
    assert "gift digits +10.0 [+0.0, +30.0] [+0.0, +30.0] 0.0 10" in lines
    assert "- published beside gift: A [1]; protocol: last" in lines
    assert "out [1]/table.tex" in lines
    assert (here.parent / "out [1]" / "curves.png").is_file()
    assert invoke(["compare", "runs", "--no-published", "--no-differences", "--summary"]) == 0
    text = capsys.readouterr().out
    assert "published" not in text
    assert "difference" not in text


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["nowhere"], 2, "does not exist"),
        (["runs", "--reference", "lorra"], 2, "no row 'lorra'"),
        (["runs", "--metric", "test/f1"], 2, "'test/f1' is not among"),
        (["runs", "--best-test"], 2, "best on test"),
        (["runs/half"], 2, "was not finished"),
        (["runs", "other"], 2, "differ. digits"),
        (["broken"], 1, "result.json cannot be read"),
        (["runs", "-o", "file"], 2, "file is a file"),
    ],
)
def test_what_cannot_be_compared_is_one_line_with_its_exit_code(
    here: Path, make_run: Make, capsys: Captured, arguments: list[str], code: int, part: str
) -> None:
    make_run(here / "a")
    make_run(here / "half", finished=False)
    make_run(Path("other") / "b", method="lora", right=[1, 0])
    (make_run(Path("broken")) / "result.json").write_text("")
    Path("file").write_text("")
    before = sorted(p for p in Path().rglob("*") if p.is_file())
    found, value = ask(capsys, *arguments)
    assert (found, part in value["error"]["message"]) == (code, True), value
    assert "\n" not in value["error"]["message"]
    assert sorted(p for p in Path().rglob("*") if p.is_file()) == before


def test_two_real_runs_are_compared_and_their_differences_are_those_of_the_results(
    here: Path, capsys: Captured
) -> None:
    for method in ("linear", "gift"):
        asked = [
            "--model",
            "gist_vit_nano",
            "--data",
            "digits",
            "--max-steps",
            "12",
            "--set",
            "data.shots=4",
        ]
        assert invoke(["finetune", *asked, "--method", method, "-o", str(here / method)]) == 0
    capsys.readouterr()
    code, value = ask(capsys, "runs", "--reference", "linear", "-o", "out")
    assert code == 0
    assert [row["name"] for row in value["rows"]] == ["gift", "linear"]
    assert value["rows"][1]["parameters"]["mean"] == 0
    results = [json.loads((here / m / "result.json").read_text()) for m in ("gift", "linear")]
    gap = results[0]["metrics"]["test/accuracy"] - results[1]["metrics"]["test/accuracy"]
    (difference,) = value["differences"]
    cell = difference["tasks"]["digits"]
    assert cell["mean"] == pytest.approx(gap)
    assert cell["interval"][0] <= gap <= cell["interval"][1]
    assert cell["examples"] == results[0]["examples"]["test"]
    assert sorted(value["files"]) == sorted(p.name for p in Path("out").iterdir())
    assert len(value["files"]) == 6
    assert run.compare([here], reference="linear")["differences"] == value["differences"]
