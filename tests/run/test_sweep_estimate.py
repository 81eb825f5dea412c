"""Dry runs of sweeps: what is counted, what the hours rest on, and that nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gistcli import registry, run
from gistcli.artifacts.ledger import Ledger
from gistcli.errors import Refused
from gistcli.recipe import Recipe
from gistcli.run.settings import resolved
from gistcli.run.sweep_cost import Counter, Sizes, Work, operations, probe
from gistcli.run.sweep_request import SweepRequest
from gistcli.testing.cases import PLAIN, home
from tests.listening import Listener
from tests.run.sweeping import NANO, search, write

VIT_B = 2 * 17_563_828_224 / 1e9
"""GFLOP of a forward pass of ViT-B/16 on 224 x 224, head and embedding with it.

2 (197 (4 + 2 * 4) 768^2 + 2 * 197^2 768) 12 + 2 * 196 * 768^2, plus the head: two a product.
"""


def make(method: str = "linear", **train: object) -> Recipe:
    return resolved(
        Recipe.model_validate(
            {
                "model": {"name": "gist_vit_nano"},
                "data": {"path": "digits"},
                "method": {"name": method},
                "train": {"batch_size": 10, **train},
            }
        )
    )


def test_a_dry_run_counts_runs_and_hours_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = write(tmp_path)
    before = set(tmp_path.rglob("*"))
    found = run.sweep_dry_run(search(recipe))
    assert set(tmp_path.rglob("*")) == before
    assert (found["runs"], found["left"], found["methods"]) == (8, 8, ["gift", "linear"])
    assert found["hours"] == pytest.approx(sum(row["hours"] for row in found["plan"]))
    assert 0 < found["plan"][1]["hours"] < found["plan"][0]["hours"]
    assert "cpu fp32" in found["basis"]
    row = found["plan"][0]
    assert (row["configurations"], row["candidates"], row["seeds"], row["runs"]) == (
        2,
        2,
        [0, 1],
        4,
    )
    without = run.sweep_dry_run(search(recipe, refit=False))
    assert without["runs"] == 4
    json.dumps(found)


def test_what_is_left_of_a_begun_sweep_is_told_by_what_its_runs_took(tmp_path: Path) -> None:
    request = search(write(tmp_path), methods=["linear"])
    run.sweep(request, output=tmp_path / "s", shard=(1, 2))
    ledger = Ledger.open(tmp_path / "s")
    done = [r for r in ledger.runs if ledger.done(r)]
    seconds = [ledger.directory(r).read_result()["seconds"] for r in done]
    found = run.sweep_dry_run(request, output=tmp_path / "s")
    assert (found["runs"], found["left"]) == (4, 4 - len(done))
    assert found["hours"] == pytest.approx((4 - len(done)) * sum(seconds) / len(seconds) / 3600)
    assert found["basis"] == f"the seconds of {len(done)} finished runs"
    with pytest.raises(Refused, match="holds another sweep"):
        run.sweep_dry_run(search(request.recipes[0]), output=tmp_path / "s")


def test_neither_weights_nor_data_are_needed(tmp_path: Path) -> None:
    path = tmp_path / "family.yaml"
    path.write_text(
        "model: {name: vit_tiny_patch16_224}\n"
        "data: {path: ./absent, source: vtab, include_val: true}\n"
        "tasks:\n  cifar: {data: {subset: cifar, classes: 100}}\n"
        "  mine: {data: {source: auto, classes: 5}}\n"
    )
    listener = Listener()
    found = run.sweep_dry_run(SweepRequest([path]), reporter=listener)
    cifar, mine = found["plan"]
    assert cifar["hours"] > 0
    assert mine["hours"] is None
    assert found["hours"] == cifar["hours"]
    text = "\n".join(listener.lines)
    assert "not looked at: data of cifar, mine, whose size is not known either" in text
    assert "1 of 2 rows have no estimate" in text


def test_a_method_that_cannot_be_built_is_named_and_the_others_are_counted(tmp_path: Path) -> None:
    recipe = write(tmp_path, NANO.replace("rank: 2", "rank: 65"))
    listener = Listener()
    found = run.sweep_dry_run(SweepRequest([recipe], methods=["gift", "lora"]), reporter=listener)
    assert [row["hours"] is None for row in found["plan"]] == [True, False]
    assert any("cannot be trained: nano/gift" in line for line in listener.lines)


def test_multiplications_are_those_of_the_network() -> None:
    recipe = resolved(
        Recipe.model_validate(
            {
                "model": {"name": "vit_base_patch16_224"},
                "data": {"path": "digits"},
                "method": {"name": "full"},
            }
        )
    )
    work = Counter().work(recipe, 1000)
    assert work.forward / 1e9 == pytest.approx(VIT_B, rel=1e-3)
    # a training step with all gradients multiplies three times as much, but for the first layer
    assert work.step / work.forward == pytest.approx(3, rel=0.02)


OF_PICTURES = [name for name in registry.names("methods") if home(name) == PLAIN]


@pytest.mark.parametrize("method", OF_PICTURES)
def test_every_method_is_counted_and_multiplies_more_in_training(method: str) -> None:
    counter = Counter()
    work = counter.work(make(method), 10)
    floor = counter.work(make("linear"), 10)
    assert work.step >= work.forward >= floor.forward * (1 - 1e-3)
    assert work.once == (method == "linear")


def test_operations_of_a_run_are_its_steps_its_validations_and_the_last_look() -> None:
    work, sizes = Work(forward=1, step=3, once=False), Sizes(train=25, val=4, test=7)
    # 2 epochs of 3 steps: every picture twice, two validations, then val and test
    assert operations(make(epochs=2), work, sizes) == 50 * 3 + 2 * 4 + 11
    assert operations(make(max_steps=1), work, sizes) == pytest.approx(25 / 3 * 3 + 4 + 11, rel=0.1)
    kept = Work(forward=1, step=3, once=True)
    assert operations(make(epochs=2), kept, sizes) == 25 + 11


def test_the_probe_measures_a_rate_of_this_machine() -> None:
    assert 1e8 < probe(torch.device("cpu"), "fp32") < 1e14
