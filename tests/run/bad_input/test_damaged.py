"""Runs and backbones that broke, moved or were swapped since they were written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

Refuse = Callable[..., Any]
Call = Callable[..., str]
Train = Callable[..., list[str]]


def uses(run: Path, pictures: Path, out: Path, *more: str | Path) -> list[list[str | Path]]:
    """Every command that needs a run with its backbone."""
    picture = pictures / "test" / "cat" / "0.jpg"
    return [
        ["eval", run, *more],
        ["predict", run, picture, "-o", out / "out.csv", *more],
        ["merge", run, "-o", out / "merged", *more],
        ["visualize", run, picture, "-o", out / "maps", *more],
    ]


def cut(path: Path) -> Path:
    """Leaves the first half of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


@pytest.mark.parametrize("name", ["tuner.safetensors", "tuner.json", "recipe.yaml"])
def test_a_cut_file_of_a_run_is_named_by_every_command(
    refuse: Refuse, run: Path, pictures: Path, tmp_path: Path, intact: Any, name: str
) -> None:
    cut(run / name)
    with intact(tmp_path):
        for command in uses(run, pictures, tmp_path):
            refuse(1, *command).names(run / name)


def test_a_run_that_was_changed_behind_its_back(refuse: Refuse, run: Path) -> None:
    state = load_file(run / "tuner.safetensors")
    save_file({k: v + 1 for k, v in state.items()}, run / "tuner.safetensors")
    said = refuse(1, "eval", run)
    said.names(run / "tuner.safetensors", "tuner.json")


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"method": {"name": "gift", "options": {"rank": -3}}}, "rank"),
        ({"method": {"name": "gift", "options": {"rank": 3}}}, "phi.attn_out has shape [64, 16]"),
        ({"classes": ["cat"]}, "head.bias has shape [2], expected [1]"),
        ({"classes": "cat"}, "classes"),
        ({"preprocessing": {}}, "tuner.json: the preprocessing has no input_size"),
        ({"preprocessing": {"input_size": [3, 0, 32], "mean": [0], "std": [1]}}, "[3, 0, 32]"),
        (
            {"preprocessing": {"input_size": [3, 32, 32], "mean": [0], "std": [1],
                               "interpolation": "magic"}},
            "'magic'",
        ),
    ],
)  # fmt: skip
def test_a_description_that_makes_no_sense(
    refuse: Refuse, run: Path, change: dict[str, Any], culprit: str
) -> None:
    info = json.loads((run / "tuner.json").read_text())
    (run / "tuner.json").write_text(json.dumps(info | change))
    refuse(1, "eval", run).names(culprit)


def test_a_method_that_is_not_installed(refuse: Refuse, run: Path) -> None:
    info = json.loads((run / "tuner.json").read_text())
    info["method"] = {"name": "magic", "distribution": "gist-magic", "version": "7"}
    (run / "tuner.json").write_text(json.dumps(info))
    said = refuse(2, "eval", run)
    said.names("'magic'")
    said.advises("pip install gist-magic==7")


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("model: [1\n b", "recipe.yaml:2"),
        ("seed: 0\nmodel: {name: gist_vit_nano}\n", "lacks data, method, optim"),
        ("just words", "holds no recipe"),
        ("", "holds no recipe"),
    ],
)
def test_a_damaged_recipe_in_a_run(
    refuse: Refuse, call: Call, train: Train, run: Path, pictures: Path, text: str, culprit: str
) -> None:
    (run / "recipe.yaml").write_text(text)
    refuse(1, "eval", run).names(run / "recipe.yaml", culprit)
    said = refuse(1, *train(pictures, run))
    said.names(run / "recipe.yaml", culprit)
    said.advises("--overwrite")


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"metrics": 3}'])
def test_a_damaged_result(
    refuse: Refuse, train: Train, run: Path, pictures: Path, tmp_path: Path, text: str
) -> None:
    (run / "result.json").write_text(text)
    for command in (["merge", run, "-o", tmp_path / "merged"], train(pictures, run)):
        said = refuse(1, *command)
        said.names(run / "result.json")
        said.advises("--overwrite")
    assert not (tmp_path / "merged").exists()


def test_overwrite_puts_a_damaged_run_right(
    call: Call, train: Train, run: Path, done: Path, pictures: Path
) -> None:
    for name in ("recipe.yaml", "result.json", "tuner.json", "splits.csv"):
        cut(run / name)
    call(*train(pictures, run, "--overwrite"))
    for name in ("tuner.safetensors", "splits.csv"):
        assert (run / name).read_bytes() == (done / name).read_bytes()


@pytest.mark.parametrize(
    "text", [None, "garbage\n1,2", "split,name,label\ntrian,test/cat/0.jpg,cat\n"]
)
def test_damaged_splits(
    refuse: Refuse, call: Call, run: Path, pictures: Path, text: str | None
) -> None:
    (run / "splits.csv").unlink()
    if text is not None:
        (run / "splits.csv").write_text(text)
    refuse(2 if text is None else 1, "eval", run).names(run / "splits.csv")
    call("eval", run, "--data", pictures)


def test_an_unfinished_run_is_neither_merged_nor_used(
    refuse: Refuse, call: Call, train: Train, run: Path, done: Path, pictures: Path, tmp_path: Path
) -> None:
    for name in ("result.json", "tuner.json", "tuner.safetensors"):
        (run / name).unlink()
    for command in uses(run, pictures, tmp_path):
        said = refuse(2, *command)
        said.names(run, "was not finished", "tuner.safetensors missing", "step 2")
        said.advises(f"gist finetune {run}/recipe.yaml -o {run}")
    # the advice holds: nothing is trained again
    call("finetune", run / "recipe.yaml", "-o", run)
    assert (run / "tuner.safetensors").read_bytes() == (done / "tuner.safetensors").read_bytes()


def test_inspect_names_what_is_damaged(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gistcli.cli import invoke

    cut(run / "tuner.safetensors")
    assert invoke(["inspect", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tuner"] is None
    assert "tuner.safetensors" in found["problem"]


@pytest.fixture
def other(nano: Path, tmp_path: Path) -> Path:
    """The same architecture with other weights."""
    folder = Path(shutil.copytree(nano, tmp_path / "other"))
    weights = load_file(folder / "model.safetensors")
    weights["norm.bias"] += 1e-3
    save_file(weights, folder / "model.safetensors")
    return folder


def test_a_run_is_not_put_on_other_weights(
    refuse: Refuse, run: Path, pictures: Path, other: Path, tmp_path: Path, intact: Any
) -> None:
    with intact(tmp_path):
        for command in uses(run, pictures, tmp_path, "--model", other):
            said = refuse(1, *command)
            assert said.type == "BaseMismatch"
            said.names(other, "gist_vit_nano")
            said.advises("--model")


def test_a_backbone_that_moved_is_found_with_model(
    refuse: Refuse, call: Call, train: Train, pictures: Path, nano: Path, tmp_path: Path
) -> None:
    old, new, run = tmp_path / "old", tmp_path / "new", tmp_path / "run"
    shutil.copytree(nano, old)
    call(*train(pictures, run, model=old))
    old.rename(new)
    for command in uses(run, pictures, tmp_path):
        said = refuse(2, *command)
        said.names(old, "not where it was")
        said.advises("--model PATH")
    for command in uses(run, pictures, tmp_path, "--model", new):
        call(*command)


def test_a_truncated_backbone(
    refuse: Refuse, train: Train, run: Path, pictures: Path, other: Path, tmp_path: Path
) -> None:
    weights = cut(other / "model.safetensors")
    refuse(1, *train(pictures, tmp_path / "new", model=other)).names(weights)
    refuse(1, "eval", run, "--model", other).names(weights)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("text", "culprit"),
    [
        ("{", "not readable JSON"),
        ("[]", "no JSON object"),
        ('{"architecture": "vit_tinny_patch16_224"}', "'vit_tinny_patch16_224'"),
        ('{"architecture": "vit_small_patch16_224"}', "does not fit"),
        ('{"architecture": "resnet18"}', "resnet18"),
        ('{"model_type": "clip"}', "'clip'"),
    ],
)
def test_a_backbone_with_a_wrong_configuration(
    refuse: Refuse, pictures: Path, train: Train, other: Path, tmp_path: Path,
    text: str, culprit: str,
) -> None:  # fmt: skip
    (other / "config.json").write_text(text)
    wrong = 1 if culprit in ("not readable JSON", "no JSON object", "does not fit") else 2
    refuse(wrong, *train(pictures, tmp_path / "new", model=other)).names(culprit)
    assert not (tmp_path / "new").exists()


def test_a_damaged_merged_folder(
    refuse: Refuse, call: Call, done: Path, pictures: Path, tmp_path: Path
) -> None:
    merged = tmp_path / "merged"
    call("merge", done, "-o", merged)
    picture = pictures / "test" / "cat" / "0.jpg"
    cut(merged / "model.safetensors")
    refuse(1, "predict", merged, picture).names(merged / "model.safetensors")
    cut(merged / "config.json")
    refuse(1, "predict", merged, picture).names(merged / "config.json")
