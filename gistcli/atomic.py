"""Writing that never leaves half a file: aside, fsync, rename.

A reader sees the old content or the new one, never a mixture, also after a kill or a full disk.
What a killed process left aside is named `.NAME.tmp-…`; `clear_leftovers` removes it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gistcli.errors import Refused, StorageError

_HINTS = {
    errno.ENOSPC: "Free some space or choose another output folder; nothing earlier was lost.",
    errno.EDQUOT: "Your quota is used up: free some space or choose another output folder.",
    errno.EACCES: "Choose an output folder that you may write to.",
    errno.EPERM: "Choose an output folder that you may write to.",
    errno.EROFS: "The file system is read-only: choose another output folder.",
    errno.ENOTDIR: "A part of the path is a file: choose another output folder.",
    errno.EEXIST: "Something else has that name: choose another output folder.",
    errno.EISDIR: "A folder has that name: choose another one.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.EFBIG: "The file system holds no file of that size: choose another output folder.",
    errno.EIO: "The disk failed: check it, or choose another output folder.",
}


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns a failure of the disk into a StorageError that names `path`.

    Also knows the exceptions of libraries that only quote the system's error (safetensors).
    Any other exception passes through unchanged.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _HINTS:
            raise
        raise StorageError(
            f"{_final(error.filename or path)} cannot be written: {os.strerror(error.errno)}.",
            _HINTS[error.errno],
        ) from error
    except Exception as error:
        code = next((c for c in _HINTS if f"os error {c})" in str(error)), None)
        if code is None:
            raise
        raise StorageError(
            f"{_final(path)} cannot be written: {os.strerror(code)}.", _HINTS[code]
        ) from error


def _final(path: str | Path) -> str:
    """A path as the user knows it: without the names that things have before they are finished."""
    return re.sub(r"(^|/)\.([^/]+)\.tmp-\d+-[0-9a-f]{8}(?=/|$)", r"\1\2", str(path))


def require_writable(path: Path, *, folder: bool) -> None:
    """Whether a file or folder can be written at `path`; call it before hours of work.

    Nothing is made, and how much room there is stays open.

    Raises:
        Refused: something of another kind is there, or a parent is a file.
        StorageError: the nearest folder that exists may not be written to.
    """
    if not folder and path.is_dir():
        raise Refused(f"{path} is a folder.", f"Name a file, such as {path / 'predictions.csv'}.")
    places = [path, *path.absolute().parents] if folder else list(path.absolute().parents)
    nearest = next(p for p in places if p.exists())
    if not nearest.is_dir():
        raise Refused(f"{nearest} is a file, not a folder.", "Choose another output.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise StorageError(f"{nearest} may not be written to.", _HINTS[errno.EACCES])


def aside(path: Path) -> Path:
    """A fresh name beside `path`, on the same file system, for what is not finished yet."""
    return path.with_name(f".{path.name}.tmp-{os.getpid()}-{uuid.uuid4().hex[:8]}")


def clear_leftovers(folder: Path) -> list[Path]:
    """Removes what killed processes left aside in `folder` (not below it).

    Call it only where no other process is writing. Returns what was removed.
    """
    found = sorted(folder.glob(".*.tmp-*")) if folder.is_dir() else []
    for path in found:
        discard(path)
    return found


def discard(path: Path) -> None:
    """Removes a file or a folder, whatever it is; nothing happens where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until a file, or the list of names of a folder, has reached the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a name to write to; on success the file takes the place of `path`.

    Parents are made. On any exception the old file stays and the new one is removed.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = aside(path)
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            discard(temporary)


@contextmanager
def atomic_directory(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields an empty folder to fill; on success it becomes `path`, all files synced.

    Parents are made. With `overwrite` an older folder of that name is moved aside first and
    removed last. On any exception the older folder stays and the new one is removed.

    Raises:
        StorageError: the disk is full or may not be written, or `path` holds something and
            `overwrite` is off.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = aside(path)
        try:
            temporary.mkdir()
            yield temporary
            for entry in sorted(temporary.rglob("*"), reverse=True):
                sync(entry)
            sync(temporary)
            _take_place(temporary, path, overwrite)
        finally:
            discard(temporary)


def _take_place(new: Path, path: Path, overwrite: bool) -> None:
    """Renames a finished folder to its name; the older one is removed only afterwards."""
    old = None
    if path.is_dir() and any(path.iterdir()):
        if not overwrite:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
        old = aside(path)
        os.rename(path, old)
    try:
        os.rename(new, path)
    except OSError:
        if old is not None:
            os.rename(old, path)
        raise
    sync(path.parent)
    if old is not None:
        discard(old)


def write_bytes(path: Path, data: bytes) -> None:
    """Puts `data` in the place of whatever `path` holds.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """`write_bytes` of UTF-8 text, with the newlines as they are."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """`write_text` of indented JSON; a figure that is not finite is refused, not written as NaN.

    Raises:
        StorageError: the disk is full or may not be written.
        ValueError: NaN or infinity in `value`.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
