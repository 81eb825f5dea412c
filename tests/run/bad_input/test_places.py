"""Outputs in the wrong place, on a full disk, or cut short by Ctrl-C: nothing earlier is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.forked import gist

Refuse = Callable[..., Any]
Call = Callable[..., str]
Train = Callable[..., list[str]]
PAGE = 4096


def test_the_folder_of_another_recipe(
    refuse: Refuse, train: Train, run: Path, pictures: Path, intact: Any
) -> None:
    with intact(run):
        said = refuse(2, *train(pictures, run, "--rank", "3", "--lr", "0.1"))
    said.names(run, "method.rank: 16 there, 3 here", "optim.lr:", "there, 0.1 here")
    said.advises("-o", "--overwrite")


@pytest.mark.parametrize("flags", [[], ["--overwrite"], ["--resume", "never"]])
def test_a_folder_that_is_no_run(
    refuse: Refuse, train: Train, data: Path, intact: Any, flags: list[str]
) -> None:
    with intact(data):
        said = refuse(2, *train(data, data, *flags))
    said.names(data, "no run")


def test_a_file_in_the_way(
    refuse: Refuse, train: Train, run: Path, data: Path, tmp_path: Path, intact: Any
) -> None:
    photo = data / "test" / "cat" / "0.jpg"
    with intact(tmp_path):
        refuse(2, *train(data, photo)).names(photo)
        refuse(2, *train(data, photo / "run")).names(photo, "is a file")
        for command in (["merge", run], ["visualize", run, photo]):
            refuse(2, *command, "-o", photo).names(photo, "is a file")
            refuse(2, *command, "-o", photo / "deep" / "er").names(photo, "is a file")
        refuse(2, "predict", run, photo, "-o", photo / "out.csv").names(photo, "is a file")
        refuse(2, "predict", run, photo, "-o", data).advises("predictions.csv")


def test_predictions_do_not_replace_a_photo(
    refuse: Refuse, run: Path, data: Path, intact: Any
) -> None:
    photos = sorted((data / "test" / "cat").iterdir())
    with intact(data):
        said = refuse(2, "predict", run, "-o", *photos)  # the shell expanded *.jpg
    said.names(photos[0], "CSV")


def test_merging_onto_what_merge_did_not_write(
    refuse: Refuse, call: Call, run: Path, data: Path, nano: Path, tmp_path: Path, intact: Any
) -> None:
    merged = tmp_path / "merged"
    call("merge", run, "-o", merged)
    (merged / "thesis.tex").write_text("years of work")
    base = Path(shutil.copytree(nano, tmp_path / "base"))
    with intact(tmp_path):
        for place, culprit in ((data, "test, train, val"), (run, "checkpoints"),
                               (merged, "thesis.tex"), (base, "config.json")):  # fmt: skip
            said = refuse(2, "merge", run, "-o", place)
            said.names(place, culprit)
            said.advises("another output folder")
    (merged / "thesis.tex").unlink()
    assert f"{merged} holds an earlier merge, which is replaced" in call("merge", run, "-o", merged)


# --- a full disk ---------------------------------------------------------------------------------


class Disk:
    """A file system of 4 MB whose free space can be set."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.ballast = root / "ballast"

    def leave(self, size: int) -> None:
        """Leaves so many free bytes."""
        self.free()
        state = os.statvfs(self.root)
        self.ballast.write_bytes(bytes(max(0, state.f_bavail * state.f_frsize - size)))

    def free(self) -> None:
        """Gives all space back."""
        self.ballast.unlink(missing_ok=True)

    def leftovers(self) -> list[str]:
        """What was written aside and not taken away."""
        return [str(p) for p in self.root.rglob("*.tmp-*")]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    root = tmp_path / "disk"
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(root)]
    try:
        made = subprocess.run(mount, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("there is no program `mount`")
    if made.returncode:
        pytest.skip(f"a small tmpfs cannot be mounted: {made.stderr.strip()}")
    try:
        yield Disk(root)
    finally:
        subprocess.run(["umount", "-l", str(root)], check=True)


def pages(*files: Path) -> int:
    """Bytes that files take on a tmpfs."""
    return sum(-(-f.stat().st_size // PAGE) * PAGE for f in files)


@pytest.mark.parametrize("stage", ["recipe.yaml", "checkpoints", "tuner.safetensors"])
def test_training_onto_a_full_disk_can_go_on_afterwards(
    refuse: Refuse, call: Call, train: Train, done: Path, pictures: Path, disk: Disk, stage: str,
    intact: Any,
) -> None:  # fmt: skip
    earlier, run = disk.root / "earlier", disk.root / "run"
    call(*train(pictures, earlier))
    files = [p for p in earlier.rglob("*") if p.is_file()]
    late = [earlier / n for n in ("tuner.safetensors", "tuner.json", "result.json")]
    early = [earlier / n for n in ("recipe.yaml", "environment.json", "splits.csv")]
    room = {
        "recipe.yaml": 0,
        "checkpoints": pages(*early) + 2 * PAGE,
        "tuner.safetensors": pages(*files) - pages(*late) + PAGE,
    }
    with intact(earlier):
        disk.leave(room[stage])
        said = refuse(1, *train(pictures, run))
        assert said.type == "StorageError"
        said.names(run, stage, "No space left")
        said.advises("Free some space")
    assert not disk.leftovers()
    disk.free()
    call(*train(pictures, run))
    for name in ("tuner.safetensors", "splits.csv", "predictions/test.csv"):
        assert (run / name).read_bytes() == (done / name).read_bytes()


def test_a_full_disk_costs_no_earlier_merge_and_no_earlier_predictions(
    refuse: Refuse, call: Call, run: Path, pictures: Path, disk: Disk, intact: Any
) -> None:
    merged, table, maps = (disk.root / n for n in ("merged", "out.csv", "maps"))
    call("merge", run, "-o", merged)
    table.write_text("the predictions of last week")
    picture = pictures / "test" / "cat" / "0.jpg"
    with intact(merged, table, run):
        disk.leave(10 * PAGE)
        for place in (merged, disk.root / "fresh"):
            said = refuse(1, "merge", run, "-o", place)
            said.names(place, "are free there")
        disk.leave(0)
        refuse(1, "predict", run, picture, "-o", table).names(table, "No space left")
        refuse(1, "visualize", run, picture, "-o", maps).names(maps, "No space left")
        call("eval", run)
    assert not disk.leftovers()
    assert not (disk.root / "fresh").exists()
    disk.free()
    call("predict", run, picture, "-o", table)
    assert table.read_text().startswith("file,class,probability")


# --- Ctrl-C --------------------------------------------------------------------------------------


def test_ctrl_c_saves_and_the_same_command_finishes(call: Call, tmp_path: Path) -> None:
    out = tmp_path / "run"
    wishes = ["data.shots=8", "train.save_steps=1", "eval.every=none"]
    command = ["finetune", "--model", "gist_vit_nano", "--data", "digits", "--batch-size", "16",
               "--max-steps", "120", "-o", str(out)]  # fmt: skip
    command += [part for wish in wishes for part in ("--set", wish)]
    process = gist(*command, "--json")
    deadline = time.monotonic() + 120
    while not list(out.glob("checkpoints/step-*")) and time.monotonic() < deadline:
        assert process.returncode is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    told, talk = process.communicate(timeout=60)
    assert process.returncode == 130, talk
    error = json.loads(told)["error"]
    assert error["type"] == "Interrupted"
    assert "SIGINT" in error["message"]
    assert str(out / "checkpoints") in error["message"]
    assert error["hint"] == f"Go on with `gist finetune {out}/recipe.yaml -o {out}`."
    assert "Traceback" not in talk
    assert not (out / "result.json").exists()
    assert "Going on from step" in call(*command)
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))
    assert steps[-1] == 120
