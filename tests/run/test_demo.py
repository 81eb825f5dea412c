"""The demo: what it leaves behind, and that what it shows is no accident of one seed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from gistcli import run
from gistcli.cli import invoke
from gistcli.recipe import Recipe, load_recipe

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"
Make = Callable[..., Recipe]


def test_the_demo_names_files_that_exist(tmp_path: Path, recipe: Make) -> None:
    found = run.demo(recipe(), tmp_path / "demo")
    assert set(found["runs"]) == {"gift", "linear"}
    assert len(found["files"]) == 7
    assert all(Path(path).exists() for path in found["files"].values())
    gap = found["difference"]
    assert gap["points"] == pytest.approx((gap["only_first"] - gap["only_second"]) / 5)
    accuracy = found["runs"]["gift"]["metrics"]["test/accuracy"]
    assert found["evaluated"]["test/accuracy"] == accuracy


@pytest.mark.slow
def test_make_demo_ends_with_both_methods_in_one_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    line = re.search(r"gist (demo .*) -o runs/demo", (ROOT / "Makefile").read_text())
    assert line is not None
    assert invoke([*line[1].split(), "-o", str(tmp_path / "demo")]) == 0
    text = capsys.readouterr().out
    for word in ("gift", "linear", "test accuracy", "95 % interval", "index.html", "merged"):
        assert word in text


@pytest.mark.slow
def test_gift_beats_the_linear_probe_by_half_a_point_over_three_seeds(tmp_path: Path) -> None:
    """At 300 images; seeds of the head, phi, the order and of which images are drawn."""
    accuracy: dict[str, list[float]] = {"gift": [], "linear": []}
    for seed in range(3):
        for method, points in accuracy.items():
            recipe = load_recipe(
                QUICKSTART,
                sets=[f"method.name={method}", f"seed={seed}", f"data.shot_seed={seed}",
                      "eval.every=none"],
            )  # fmt: skip
            result = run.finetune(recipe, output=tmp_path / f"{method}-{seed}")
            assert result["examples"]["train"] == 300
            points.append(100 * result["metrics"]["test/accuracy"])
    assert np.mean(accuracy["gift"]) - np.mean(accuracy["linear"]) >= 0.5, accuracy
