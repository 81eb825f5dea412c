"""Linear probing on kept features: the same run, with one forward pass of the network."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gistcli import run
from gistcli.backbones.images import ImageBackbone
from gistcli.data import ImageSplit
from gistcli.errors import Interrupted
from gistcli.evaluate.features import FeatureSplit
from gistcli.methods.base import Capabilities
from gistcli.methods.linear import Linear
from gistcli.recipe import Recipe
from gistcli.run.finetuning import Job, prepare
from gistcli.run.placing import settle
from gistcli.run.settings import resolved
from tests.listening import Listener

Make = Callable[..., Recipe]
LINEAR: dict[str, Any] = {"method": {"name": "linear"}, "train__max_steps": 12}


class Told(Listener):
    """Knows the line about features."""

    @property
    def about_features(self) -> str:
        """The one line about them."""
        (line,) = [line for line in self.lines if line.startswith("features are computed")]
        return line


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that went through the network."""
    sizes: list[int] = []
    forward = ImageBackbone.forward

    def counted(self: ImageBackbone, batch: Any) -> Any:
        sizes.append(len(batch["pixels"]))
        return forward(self, batch)

    monkeypatch.setattr(ImageBackbone, "forward", counted)
    return sizes


def decisions(folder: Path, split: str) -> list[tuple[str, str, str]]:
    with (folder / "predictions" / f"{split}.csv").open() as file:
        return [(r["name"], r["label"], r["predicted"]) for r in csv.DictReader(file)]


def prepared(recipe: Recipe, output: Path, listener: Told) -> Job:
    recipe = resolved(recipe)
    return prepare(recipe, settle(recipe, output, "auto", False), listener)


def test_a_run_on_kept_features_ends_like_one_on_pictures(
    tmp_path: Path, recipe: Make, monkeypatch: pytest.MonkeyPatch, seen: list[int]
) -> None:
    kept, anew = tmp_path / "kept", tmp_path / "anew"
    listener = Told()
    found = run.finetune(recipe(**LINEAR), output=kept, reporter=listener)
    assert sum(seen) == sum(found["examples"].values())
    assert "once for each split" in listener.about_features
    assert listener.phases.count("features") == 3

    seen.clear()
    monkeypatch.setattr(Linear, "capabilities", lambda self: Capabilities(merge=None))
    expected = run.finetune(recipe(**LINEAR), output=anew)
    assert sum(seen) > 2 * sum(expected["examples"].values())

    ours, theirs = load_file(kept / "tuner.safetensors"), load_file(anew / "tuner.safetensors")
    assert set(ours) == set(theirs)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-5)
    for split in ("val", "test"):
        assert decisions(kept, split) == decisions(anew, split)
    for name, value in found["metrics"].items():
        assert value == pytest.approx(expected["metrics"][name], abs=1e-5), name


def test_an_interrupted_run_goes_on_with_the_same_features(tmp_path: Path, recipe: Make) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run.finetune(recipe(**LINEAR), output=straight)
    with pytest.raises(Interrupted, match="max_time"):
        run.finetune(recipe(**LINEAR, train__max_time=1e-6), output=broken)
    listener = Told()
    run.finetune(recipe(**LINEAR), output=broken, reporter=listener)
    assert any("Going on from step" in line for line in listener.lines)
    assert (broken / "tuner.safetensors").read_bytes() == (
        straight / "tuner.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data__augment": "flip-crop"}, "data.augment is flip-crop"),
        ({"model__drop_path": 0.2}, "acts differently in training"),
        ({"train__max_steps": 2}, "no picture is trained on twice"),
    ],
)
def test_where_features_change_or_pay_nothing_the_pictures_are_used(
    tmp_path: Path, recipe: Make, changes: dict[str, Any], reason: str
) -> None:
    listener = Told()
    job = prepared(recipe(**{**LINEAR, **changes}), tmp_path / "run", listener)
    assert reason in listener.about_features
    assert {type(split) for split in job.splits.values()} == {ImageSplit}
    job = prepared(recipe(**LINEAR), tmp_path / "run", Told())
    assert {type(split) for split in job.splits.values()} == {FeatureSplit}


def test_other_methods_say_nothing_of_features(tmp_path: Path, recipe: Make) -> None:
    listener = Told()
    job = prepared(recipe(), tmp_path / "run", listener)
    assert not [line for line in listener.lines if line.startswith("features")]
    assert {type(split) for split in job.splits.values()} == {ImageSplit}


def test_the_time_of_the_forward_pass_is_in_the_result(tmp_path: Path, recipe: Make) -> None:
    class Slow(Listener):
        def start(self, phase: str, total: int, unit: str = "steps") -> None:
            super().start(phase, total, unit)
            if phase == "features":
                time.sleep(0.5)

    found = run.finetune(recipe(**LINEAR), output=tmp_path / "run", reporter=Slow())
    in_steps = 12 * 16 / found["samples_per_second"]  # the last batch of an epoch is smaller
    assert found["seconds"] - in_steps > 1  # of train and validation; test is read behind training
