"""Pairs of rows with and without the gist token: which they are, and what is said of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gistcli import run
from gistcli.artifacts.comparison_sections import sections
from gistcli.artifacts.ledger import PlannedRun
from gistcli.evaluate.paired import Outcomes, paired

Make = Callable[..., Path]
N = 40


def right(rate: float, seed: int) -> list[int]:
    return (np.random.default_rng(seed).random(N) < rate).astype(int).tolist()


@pytest.fixture
def methods(tmp_path: Path, make_run: Make) -> Path:
    """lora and linear, with the token and without, two seeds each."""
    for place, (method, rate) in enumerate([("lora", 0.7), ("linear", 0.5)]):
        for seed in (0, 1):
            for gist in (None, {}):
                name = f"{method}-{'gist' if gist is not None else 'plain'}-{seed}"
                draw = 100 * place + 10 * seed + (gist is not None)
                make_run(
                    tmp_path / name, method=method, seed=seed, gist=gist,
                    right=right(rate + 0.1 * (gist is not None), draw),
                )  # fmt: skip
    return tmp_path


def pairs_of(value: dict[str, Any]) -> list[tuple[str, str]]:
    found = value["ablations"].get("gist", {"pairs": []})
    return [(one["row"], one["reference"]) for one in found["pairs"]]


def outcomes(folder: Path, names: Sequence[str]) -> Outcomes:
    read = [
        np.genfromtxt(folder / name / "predictions" / "test.csv", delimiter=",", names=True,
                      dtype=None, encoding="utf-8")["correct"]
        for name in names
    ]  # fmt: skip
    return Outcomes(np.stack(read), ((0, 0, 0), (1, 0, 0)))


def test_rows_that_differ_in_the_token_alone_are_pairs_with_their_difference(methods: Path) -> None:
    value = run.compare([methods])
    assert len(value["rows"]) == 4
    assert len(pairs_of(value)) == 2
    for one in value["ablations"]["gist"]["pairs"]:
        method = one["reference"].split(" ")[0]
        arms = [outcomes(methods, [f"{method}-{arm}-{s}" for s in (0, 1)])
                for arm in ("gist", "plain")]  # fmt: skip
        expected = paired(*arms, "digits")
        digits = one["tasks"]["digits"]
        assert digits["mean"] == pytest.approx(expected.mean)
        assert digits["interval_with_seeds"] == pytest.approx(expected.interval_with_seeds)
    mean = value["ablations"]["gist"]["mean"]["tasks"]["digits"]["mean"]
    each = [one["tasks"]["digits"]["mean"] for one in value["ablations"]["gist"]["pairs"]]
    assert mean == pytest.approx(np.mean(each))
    assert any("differ in gist alone" in note for note in value["notes"])


def test_rows_that_differ_in_more_are_no_pair(tmp_path: Path, make_run: Make) -> None:
    make_run(tmp_path / "a", method="lora")
    make_run(tmp_path / "b", method="lora", gist={}, optim__lr=0.5)
    make_run(tmp_path / "c", method="linear", gist={})
    value = run.compare([tmp_path])
    assert value["ablations"] == {}
    assert not any("with gist" in section.title for section in sections(value))
    make_run(tmp_path / "d", method="lora", gist={"alpha": 0.25})
    assert len(pairs_of(run.compare([tmp_path]))) == 1


def test_the_arms_of_a_sweep_are_a_pair_whatever_was_chosen_for_each(
    tmp_path: Path, make_sweep: Make
) -> None:
    runs = [
        PlannedRun(f"a.{arm}.s0", "recipes/family.yaml", "a", method, 0)
        for arm, method in (("lora", "lora"), ("lora-gist", "lora+gist"))
    ]
    chosen = {"a.lora-gist.s0": {"optim__lr": 0.5}}
    sweep = make_sweep(tmp_path / "sweep", runs, recipes=chosen)
    (pair,) = run.compare([sweep])["ablations"]["gist"]["pairs"]
    assert pair["tasks"]["a"]["mean"] == 0
    assert run.compare([sweep])["ablations"]["gist"]["mean"] is None


def test_without_differences_nothing_is_paired_and_only_common_tasks_are(
    methods: Path, make_run: Make
) -> None:
    make_run(methods / "more", method="lora", task="pets", gist={})
    value = run.compare([methods])
    assert len(pairs_of(value)) == 2
    assert set(value["ablations"]["gist"]["pairs"][0]["tasks"]) == {"digits"}
    assert run.compare([methods], paired=False)["ablations"] == {}


def test_all_forms_of_the_table_hold_the_pairs_and_their_mean(
    methods: Path, tmp_path: Path
) -> None:
    value = run.compare([methods], output=tmp_path / "out")
    (section,) = [s for s in sections(value) if s.title.startswith("with gist minus without")]
    assert section.columns == ("method", "digits")
    assert [line.cells[0] for line in section.lines][-1] == "mean of 2 pairs"
    mean = value["ablations"]["gist"]["mean"]["tasks"]["digits"]["mean"]
    assert section.lines[-1].cells[1].startswith(f"{100 * mean:+.1f} [")
    assert "with gist minus without" in (tmp_path / "out" / "table.md").read_text()
    lines = (tmp_path / "out" / "table.csv").read_text().splitlines()
    first = value["ablations"]["gist"]["pairs"][0]
    assert any(line.startswith(first["row"]) and first["reference"] in line for line in lines)
