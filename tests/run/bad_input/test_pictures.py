"""Data as they come from a camera, a crash or a careless script: exit code 1, and what to do."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Refuse = Callable[..., Any]
Call = Callable[..., str]
Train = Callable[..., list[str]]
Photo = Callable[..., Path]


def truncate(path: Path) -> Path:
    """Leaves the first half of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_truncated_photo_is_found_before_training(
    refuse: Refuse, train: Train, data: Path, tmp_path: Path, split: str
) -> None:
    truncate(data / split / "cat" / "2.jpg")
    said = refuse(1, *train(data, tmp_path / "run"))
    said.names(f"{split}/cat/2.jpg: truncated", f"{split} 1 of 8")
    said.advises("data.on_error=skip")
    assert not (tmp_path / "run").exists()


def test_broken_photos_of_all_splits_are_named_at_once(
    refuse: Refuse, train: Train, data: Path, tmp_path: Path
) -> None:
    for split in ("train", "val", "test"):
        truncate(data / split / "dog" / "1.jpg")
    (data / "test" / "dog" / "2.jpg").write_bytes(b"")
    said = refuse(1, *train(data, tmp_path / "run"))
    said.names("4 pictures", *(f"{s}/dog/1.jpg: truncated" for s in ("train", "val", "test")))
    said.names("test/dog/2.jpg: an empty file", "train 1 of 8, val 1 of 8, test 2 of 8")


def test_broken_photos_are_left_out_where_that_is_asked_for(
    call: Call, train: Train, data: Path, tmp_path: Path
) -> None:
    for split in ("train", "test"):
        truncate(data / split / "cat" / "2.jpg")
    told = call(*train(data, tmp_path / "run", "--set", "data.on_error=skip"))
    for split in ("train", "test"):
        assert f"{split}: 1 broken picture ({split}/cat/2.jpg: truncated) left out" in told
    assert "test: 7 images" in call("eval", tmp_path / "run")
    call("merge", tmp_path / "run", "-o", tmp_path / "merged")


def test_a_class_whose_photos_are_all_broken_is_not_learnt_in_silence(
    refuse: Refuse, train: Train, data: Path, tmp_path: Path
) -> None:
    for path in (data / "train" / "cat").iterdir():
        truncate(path)
    said = refuse(1, *train(data, tmp_path / "run", "--set", "data.on_error=skip"))
    said.names("pets train: nothing of 1 class (cat)")
    assert not (tmp_path / "run").exists()


def test_text_with_the_ending_of_a_picture(
    refuse: Refuse, train: Train, data: Path, tmp_path: Path
) -> None:
    (data / "train" / "dog" / "notes.png").write_text("buy milk")
    said = refuse(1, *train(data, tmp_path / "run"))
    said.names("train/dog/notes.png: not an image of a known kind", "train 1 of 9")


def test_an_empty_class_folder(refuse: Refuse, train: Train, data: Path, tmp_path: Path) -> None:
    (data / "train" / "emu").mkdir()
    (data / "val" / "auk").mkdir()
    said = refuse(1, *train(data, tmp_path / "run"))
    said.names(data, "train/emu", "val/auk", "without a picture")


def test_a_class_of_one_photo_cannot_be_divided(
    refuse: Refuse, train: Train, photo: Photo, pictures: Path, tmp_path: Path
) -> None:
    one = Path(shutil.copytree(pictures / "train", tmp_path / "one"))
    photo(one / "emu" / "only.jpg")
    said = refuse(1, *train(one, tmp_path / "run"))
    said.names("emu: 1", "at least 3 examples")
    said.advises("data.val_fraction")


def test_one_class_only(refuse: Refuse, train: Train, data: Path, tmp_path: Path) -> None:
    for split in ("train", "val", "test"):
        shutil.rmtree(data / split / "dog")
    refuse(1, *train(data, tmp_path / "run")).names("one class only (cat)")


def test_a_class_that_the_model_was_not_trained_on(
    refuse: Refuse, done: Path, data: Path, intact: Any
) -> None:
    (data / "test" / "dog").rename(data / "test" / "hound")
    with intact(done):
        said = refuse(1, "eval", done, "--data", data)
    said.names("hound", "not trained on")
    said.advises("cat, dog")


def test_a_class_folder_renamed_under_a_run(
    refuse: Refuse, call: Call, train: Train, data: Path, tmp_path: Path, intact: Any
) -> None:
    run = tmp_path / "run"
    call(*train(data, run))
    (data / "test" / "dog").rename(data / "test" / "hound")
    with intact(run):
        said = refuse(1, "eval", run)
        said.names(run / "splits.csv", "test/dog/0.jpg", "no longer there")
        shutil.rmtree(data)
        said = refuse(2, "eval", run)
        said.names(data, "not where they were")
        said.advises("--data PATH")
        # the weights are all there: merging falls back on other real pictures, and says so
        assert "verifying on digits" in call("merge", run, "-o", tmp_path / "merged")


def test_a_folder_without_pictures(refuse: Refuse, done: Path, tmp_path: Path, intact: Any) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("a")
    with intact(tmp_path):
        said = refuse(1, "predict", done, tmp_path / "notes", "-o", tmp_path / "out.csv")
        said.names(tmp_path / "notes")
        said.advises(".jpg")
        refuse(1, "visualize", done, tmp_path / "notes", "-o", tmp_path / "maps")


def test_broken_photos_among_good_ones(
    refuse: Refuse, done: Path, photo: Photo, tmp_path: Path, intact: Any
) -> None:
    for name in ("good.jpg", "cut.jpg", "fine.png"):
        photo(tmp_path / "mixed" / name)
    truncate(tmp_path / "mixed" / "cut.jpg")
    (tmp_path / "mixed" / "text.png").write_text("buy milk")
    (tmp_path / "out.csv").write_text("the predictions of last week")
    with intact(tmp_path):
        for command, name in (("predict", "out.csv"), ("visualize", "maps")):
            said = refuse(1, command, done, tmp_path / "mixed", "-o", tmp_path / name)
            said.names("2 pictures", "cut.jpg: truncated", "text.png: not an image")
            said.advises("Remove or repair")


def test_inputs_that_do_not_exist(refuse: Refuse, done: Path, data: Path) -> None:
    there = data / "test" / "cat" / "0.jpg"
    said = refuse(2, "predict", done, there, there.with_name("00.jpg"), there.with_name("no.jpg"))
    said.names("2 inputs", "00.jpg", "no.jpg")
    said.advises("0.jpg")
