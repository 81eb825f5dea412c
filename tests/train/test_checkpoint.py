"""Checkpoints are whole, checked, and pruned; damaged ones are passed over."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from gistcli import atomic
from gistcli.errors import StorageError, WeightsError
from gistcli.train.checkpoint import (
    Checkpoint,
    Progress,
    fault,
    newest_checkpoint,
    read_checkpoint,
    step_folders,
    write_checkpoint,
)


def checkpoint(step: int) -> Checkpoint:
    shared = torch.arange(4.0)
    return Checkpoint(
        progress=Progress(step=step, best_step=2, best_value=0.5, best_metrics={"accuracy": 0.5}),
        identity={"seed": 0, "optim.clip_norm": None},
        tuner={"phi": shared[:2], "psi": shared.view(2, 2).t()},  # shared storage, not contiguous
        optimiser={"step:phi": torch.tensor(3.0), "exp_avg:phi": torch.ones(2)},
        best={"phi": torch.full((2,), float(step))},
        history=[{"kind": "train", "step": 1, "train/loss": 0.1}],
    )


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    written = checkpoint(7)
    path = write_checkpoint(tmp_path, written)
    assert path == tmp_path / "step-7"
    read = read_checkpoint(path)
    assert (read.progress, read.identity, read.history) == (
        written.progress,
        written.identity,
        written.history,
    )
    for ours, theirs in (
        (written.tuner, read.tuner),
        (written.optimiser, read.optimiser),
        (written.best, read.best),
    ):
        assert ours is not None
        assert theirs is not None
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[n], theirs[n]) for n in ours)


def test_only_the_newest_are_kept_in_the_order_of_numbers(tmp_path: Path) -> None:
    for step in (9, 10, 100):
        write_checkpoint(tmp_path, checkpoint(step), keep=2)
    assert [p.name for p in step_folders(tmp_path)] == ["step-100", "step-10"]


@pytest.mark.parametrize("name", ["tuner.safetensors", "state.json", "history.jsonl"])
def test_a_changed_byte_is_found_and_the_one_before_is_used(tmp_path: Path, name: str) -> None:
    write_checkpoint(tmp_path, checkpoint(1), keep=5)
    newest = write_checkpoint(tmp_path, checkpoint(2), keep=5)
    data = bytearray((newest / name).read_bytes())
    data[-1] ^= 1
    (newest / name).write_bytes(bytes(data))
    warnings: list[str] = []
    assert newest_checkpoint(tmp_path, warnings.append) == tmp_path / "step-1"
    assert len(warnings) == 1
    assert f"{newest} is damaged ({name} is not what was written" in warnings[0]
    with pytest.raises(WeightsError, match=name):
        read_checkpoint(newest)


def test_truncated_missing_and_foreign_files_are_named(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path, checkpoint(1))
    assert fault(path) == ""
    with (path / "tuner.safetensors").open("r+b") as file:
        file.truncate(20)
    assert fault(path).startswith("tuner.safetensors has 20 bytes instead of")
    (path / "tuner.safetensors").unlink()
    assert fault(path) == "tuner.safetensors is missing"
    (path / "manifest.json").write_text("[]")
    assert "manifest.json cannot be read" in fault(path)
    (path / "manifest.json").write_text(json.dumps({"format": 99, "files": {}}))
    assert fault(path) == "format 99, this version reads 1"
    (path / "manifest.json").unlink()
    assert fault(path) == "manifest.json is missing"


def test_a_folder_left_by_a_kill_is_no_checkpoint(tmp_path: Path) -> None:
    atomic.aside(tmp_path / "step-8").mkdir()
    (tmp_path / "step-x").mkdir()
    assert newest_checkpoint(tmp_path, pytest.fail) is None
    assert newest_checkpoint(tmp_path / "nowhere", pytest.fail) is None


def test_a_full_disk_leaves_the_earlier_checkpoint_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path, checkpoint(1))
    before = Path.write_text

    def full(self: Path, data: str) -> int:
        if self.name == "history.jsonl":
            raise OSError(28, os.strerror(28))
        return before(self, data)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StorageError, match="No space left on device"):
        write_checkpoint(tmp_path, checkpoint(2))
    assert os.listdir(tmp_path) == ["step-1"]
    assert fault(tmp_path / "step-1") == ""
