"""Runs that share backbone and pictures; what a run reads of test; how pictures are prepared."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import load_file

from gistcli import run
from gistcli.artifacts.rundir import RunDirectory
from gistcli.data import Preprocess, open_catalog
from gistcli.errors import DataError, Diverged
from gistcli.recipe import Recipe
from gistcli.run.shelf import Shelf

TASK = "classification"
Make = Callable[..., Recipe]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three splits of two classes: bright and dark squares with noise."""
    noise = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 4), ("test", 4)):
        for label, level in (("bright", 180), ("dark", 40)):
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = noise.integers(0, 60, (40, 60, 3)) + level
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "photos"


def test_runs_that_share_a_shelf_are_those_that_do_not(recipe: Make, tmp_path: Path) -> None:
    shelf = Shelf()
    methods = ["full", "vpt", "full"]
    for number, name in enumerate(methods):
        chosen = recipe(method={"name": name}, seed=number)
        alone, shared = tmp_path / f"alone-{number}", tmp_path / f"shared-{number}"
        first = run.finetune(chosen, output=alone)
        second = run.finetune(chosen, output=shared, shelf=shelf)
        assert first["metrics"] == second["metrics"]
        expected = load_file(alone / "tuner.safetensors")
        found = load_file(shared / "tuner.safetensors")
        assert set(expected) == set(found)
        assert all(torch.equal(expected[key], found[key]) for key in expected), name


def test_a_shelf_reads_model_and_pictures_once(recipe: Make) -> None:
    shelf = Shelf()
    section = recipe().model
    assert shelf.backbone(section, TASK) is shelf.backbone(recipe(seed=3).model, TASK)
    other = section.model_copy(update={"drop_path": 0.1})
    assert shelf.backbone(other, TASK) is not shelf.backbone(section, TASK)
    data = recipe().data
    assert shelf.catalog(data, None) is shelf.catalog(data, None)
    fewer = recipe(data={"path": "digits", "shots": 2}).data
    assert shelf.catalog(fewer, None).counts()["train"] == 20


def test_a_run_that_fails_leaves_the_shared_backbone_as_it_was(
    recipe: Make, tmp_path: Path
) -> None:
    shelf = Shelf()
    backbone = shelf.backbone(recipe().model, TASK)
    before = {name: id(p) for name, p in backbone.model.named_parameters() if "head" not in name}
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.modules())
    wild = recipe(method={"name": "full"}, optim={"lr": 1e30, "head_lr": 1e30, "warmup_ratio": 0.0})
    with pytest.raises(Diverged):
        run.finetune(wild, output=tmp_path / "wild", shelf=shelf)
    after = {name: id(p) for name, p in backbone.model.named_parameters() if "head" not in name}
    assert after == before
    left = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in backbone.modules())
    assert left == hooks


def test_a_candidate_never_looks_at_test(recipe: Make, photos: Path, tmp_path: Path) -> None:
    (photos / "test" / "dark" / "0.png").write_bytes(b"no picture")
    candidate = recipe(data={"path": str(photos)}, eval={"test": False})
    result = run.finetune(candidate, output=tmp_path / "run")
    assert "val/accuracy" in result["metrics"]
    assert not [key for key in result["metrics"] if key.startswith("test/")]
    assert not (tmp_path / "run" / "predictions" / "test.csv").exists()
    with pytest.raises(DataError, match=r"dark/0\.png"):
        run.finetune(recipe(data={"path": str(photos)}), output=tmp_path / "final")


def test_the_best_on_test_is_an_extra_beside_the_last(recipe: Make, tmp_path: Path) -> None:
    asked = recipe(eval={"best_test": True, "every": 1}, train={"max_steps": 6, "batch_size": 16})
    result = run.finetune(asked, output=tmp_path / "run")
    log = RunDirectory(tmp_path / "run").log.read()
    seen = [r["test/accuracy"] for r in log if r["kind"] == "eval"]
    assert len(seen) == 6
    assert result["extras"] == {"best_test/accuracy": max(seen)}
    assert result["metrics"]["test/accuracy"] == seen[-1]
    without = recipe(train={"max_steps": 6, "batch_size": 16})
    plain = run.finetune(without, output=tmp_path / "plain")
    assert plain["extras"] == {}
    assert plain["metrics"] == result["metrics"]  # reading test has changed nothing
    with pytest.raises(ValidationError, match="best_test needs test"):
        recipe(eval={"best_test": True, "test": False})


def test_every_split_has_a_fingerprint_of_its_own(recipe: Make, photos: Path) -> None:
    data = recipe(data={"path": str(photos)}).data
    catalog = open_catalog(data, base=Path.cwd())
    before = [catalog.fingerprint(*splits) for splits in (["train"], ["test"], [])]
    picture = photos / "train" / "dark" / "0.png"
    picture.write_bytes(picture.read_bytes() + b"\0")
    catalog = open_catalog(data, base=Path.cwd())
    after = [catalog.fingerprint(*splits) for splits in (["train"], ["test"], [])]
    assert [x == y for x, y in zip(before, after, strict=True)] == [False, True, False]


def test_a_recipe_replaces_parts_of_the_preparation(
    recipe: Make, photos: Path, tmp_path: Path
) -> None:
    plain = recipe(data={"path": str(photos)})
    given = {"mean": [0.2] * 3, "std": [0.7] * 3, "crop_mode": "squash", "crop_pct": 1.0}
    changed = recipe(data={"path": str(photos), "preprocess": given})
    run.finetune(plain, output=tmp_path / "plain")
    run.finetune(changed, output=tmp_path / "changed")
    default = RunDirectory(tmp_path / "plain").info.preprocessing
    found = RunDirectory(tmp_path / "changed").info.preprocessing
    assert found == {**default, **given}
    assert found != default
    merged = run.merge(tmp_path / "changed", tmp_path / "merged")
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert merged["verified"]
    assert config["pretrained_cfg"]["mean"] == [0.2] * 3
    assert config["pretrained_cfg"]["crop_mode"] == "squash"
    assert Preprocess.from_config(found).crop_mode == "squash"


def test_means_of_two_channels_are_refused(recipe: Make) -> None:
    with pytest.raises(ValidationError, match="expected one number or three, found 2"):
        recipe(data={"path": "digits", "preprocess": {"mean": [0.5, 0.5]}})
