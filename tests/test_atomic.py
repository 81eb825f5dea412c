"""Writing aside and renaming: old content or new content, never a mixture."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gistcli import atomic
from gistcli.errors import StorageError


def test_a_written_file_holds_the_bytes_and_leaves_nothing_aside(tmp_path: Path) -> None:
    atomic.write_bytes(tmp_path / "deep" / "file.bin", b"one")
    atomic.write_bytes(tmp_path / "deep" / "file.bin", b"two")
    assert (tmp_path / "deep" / "file.bin").read_bytes() == b"two"
    assert os.listdir(tmp_path / "deep") == ["file.bin"]


def test_a_failing_writer_keeps_the_old_file(tmp_path: Path) -> None:
    atomic.write_text(tmp_path / "kept", "old")

    def write_half() -> None:
        with atomic.atomic_file(tmp_path / "kept") as temporary:
            temporary.write_text("half of the n")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_half()
    assert (tmp_path / "kept").read_text() == "old"
    assert os.listdir(tmp_path) == ["kept"]


def test_json_refuses_not_a_number(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic.write_json(tmp_path / "a.json", {"loss": float("nan")})
    atomic.write_json(tmp_path / "a.json", {"loss": 1.5})
    assert json.loads((tmp_path / "a.json").read_text()) == {"loss": 1.5}


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    def write_half() -> None:
        with atomic.atomic_directory(tmp_path / "d") as folder:
            (folder / "a").write_text("a")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_half()
    assert os.listdir(tmp_path) == []
    with atomic.atomic_directory(tmp_path / "d") as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a").write_text("a")
        assert not (tmp_path / "d").exists()
    assert (tmp_path / "d" / "sub" / "a").read_text() == "a"
    assert os.listdir(tmp_path) == ["d"]


def test_an_older_folder_is_replaced_only_when_asked(tmp_path: Path) -> None:
    with atomic.atomic_directory(tmp_path / "d") as folder:
        (folder / "a").write_text("old")
    with (
        pytest.raises(StorageError, match="File exists"),
        atomic.atomic_directory(tmp_path / "d"),
    ):
        pass
    assert os.listdir(tmp_path / "d") == ["a"]
    with atomic.atomic_directory(tmp_path / "d", overwrite=True) as folder:
        (folder / "b").write_text("new")
    assert os.listdir(tmp_path / "d") == ["b"]
    assert os.listdir(tmp_path) == ["d"]


def test_a_full_disk_is_a_storage_error_that_names_the_file(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full on this system")
    with pytest.raises(StorageError, match="No space left") as caught:  # noqa: SIM117
        with atomic.storage_errors(tmp_path / "x"), full.open("wb", buffering=0) as file:
            file.write(b"x")
    assert str(tmp_path / "x") in caught.value.message
    assert caught.value.exit_code == 1


def test_safetensors_says_the_same_when_the_folder_is_gone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="Not a directory"):  # noqa: SIM117
        with atomic.storage_errors(tmp_path / "x"):
            save_file({"a": torch.zeros(3)}, tmp_path / "file" / "x.safetensors")


def test_an_unrelated_error_passes_through(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic.storage_errors(tmp_path / "x"):
        raise FileNotFoundError(errno.ENOENT, "no such file", "y")


def test_leftovers_of_a_killed_process_are_removed_and_nothing_else(tmp_path: Path) -> None:
    atomic.aside(tmp_path / "step-5").mkdir()
    atomic.aside(tmp_path / "a.json").write_text("{")
    (tmp_path / "step-4").mkdir()
    (tmp_path / ".hidden").write_text("")
    assert len(atomic.clear_leftovers(tmp_path)) == 2
    assert sorted(os.listdir(tmp_path)) == [".hidden", "step-4"]


def test_sha256_is_the_known_value_of_abc(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc")
    assert atomic.sha256(tmp_path / "f") == (
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
