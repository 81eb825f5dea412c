"""The demo: what it leaves behind, and that what it shows is no accident of one seed."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

from gistcli import run
from gistcli.cli import invoke
from gistcli.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "recipes" / "quickstart.yaml"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that `make demo` leaves, and what it prints."""
    line = re.search(r"gist (demo .*) -o runs/demo", (ROOT / "Makefile").read_text())
    assert line is not None
    folder = tmp_path_factory.mktemp("made") / "demo"
    with contextlib.chdir(ROOT), contextlib.redirect_stdout(io.StringIO()) as out:
        assert invoke([*line[1].split(), "-o", str(folder)]) == 0
    return folder, out.getvalue()


def test_make_demo_ends_with_both_methods_in_one_table(made: tuple[Path, str]) -> None:
    _, text = made
    for word in ("gift", "linear", "test accuracy", "95 % interval", "index.html", "merged"):
        assert word in text


def test_the_demo_again_repeats_no_training_and_names_files_that_exist(
    made: tuple[Path, str],
) -> None:
    folder, _ = made
    written = {p: p.stat().st_mtime_ns for p in folder.glob("*/result.json")}
    found = run.demo(load_recipe(QUICKSTART), folder)
    assert set(found["runs"]) == {"gift", "linear"}
    assert {p: p.stat().st_mtime_ns for p in written} == written
    assert len(found["files"]) == 7
    assert all(Path(path).exists() for path in found["files"].values())
    gap = found["difference"]
    assert gap["points"] == pytest.approx((gap["only_first"] - gap["only_second"]) / 5)
    accuracy = found["runs"]["gift"]["metrics"]["test/accuracy"]
    assert found["evaluated"]["test/accuracy"] == accuracy


def test_gift_beats_the_linear_probe_by_half_a_point_over_three_seeds(
    made: tuple[Path, str], tmp_path: Path
) -> None:
    """At 300 images; seeds of the head, phi, the order and of which images are drawn."""
    accuracy: dict[str, list[float]] = {"gift": [], "linear": []}
    for method, points in accuracy.items():
        results = [json.loads((made[0] / method / "result.json").read_text())]  # of seed 0
        for seed in (1, 2):
            recipe = load_recipe(
                QUICKSTART,
                sets=[f"method.name={method}", f"seed={seed}", f"data.shot_seed={seed}",
                      "eval.every=none"],
            )  # fmt: skip
            results.append(run.finetune(recipe, output=tmp_path / f"{method}-{seed}"))
        assert [result["examples"]["train"] for result in results] == [300] * 3
        points += [100 * result["metrics"]["test/accuracy"] for result in results]
    assert np.mean(accuracy["gift"]) - np.mean(accuracy["linear"]) >= 0.5, accuracy
