"""Tiny trees in the layouts of the published benchmarks, and archives."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

Rows = Sequence[tuple[str, int | str]]


def encoded(seed: int, form: str = "PNG") -> bytes:
    """A picture unlike any other, 12 x 10 pixels."""
    values = np.random.default_rng(seed).integers(0, 256, (10, 12, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(values).save(file, form)
    return file.getvalue()


def write_lists(
    folder: Path,
    lists: Mapping[str, Rows],
    *,
    pictures: str = "",
    actual: Callable[[str], str] = str,
) -> Path:
    """`NAME -> rows` as files of lines `PATH ID`, and a picture for every path.

    Args:
        folder: of the set.
        lists: by file name.
        pictures: folder that the paths start from.
        actual: what a file is called on disk, of its path in the list.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in lists.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("".join(f"{file} {label}\n" for file, label in rows))
        write_pictures(folder / pictures, [actual(file) for file, _ in rows])
    return folder


def write_pictures(root: Path, files: Sequence[str]) -> None:
    """A PNG, whatever its name says, for every path that has none yet."""
    for file in files:
        path = root / file
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(zlib.crc32(bytes(path))))


def vtab_lists(
    train: Sequence[int], val: Sequence[int], test: Sequence[int], ending: str = ".png"
) -> dict[str, Rows]:
    """The four lists of a task with these class ids, the union under names of its own."""
    ids = {"train800": train, "val200": val, "test": test, "train800val200": [*train, *val]}
    return {
        f"{name}.txt": [(f"images/{name}/{i:06d}{ending}", c) for i, c in enumerate(classes)]
        for name, classes in ids.items()
    }


def write_json_splits(folder: Path, root: str, **splits: Mapping[str, int | str]) -> Path:
    """`train.json` and so on, and their pictures below `root`."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, table in splits.items():
        (folder / f"{split}.json").write_text(json.dumps(table))
        write_pictures(folder / root, [*table])
    return folder


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    """A plain archive of these files, in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def samples(labels: Sequence[int | str], start: int = 0, ending: str = "png") -> dict[str, bytes]:
    """Members of an archive: a picture and its class each."""
    members: dict[str, bytes] = {}
    for i, label in enumerate(labels, start):
        members[f"s{i:04d}.{ending}"] = encoded(i, "WEBP" if ending == "webp" else "PNG")
        members[f"s{i:04d}.cls"] = str(label).encode()
    return members
