"""Source `webdataset`: pictures and their classes in shards (`.tar`), read where they lie."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gistcli.data.base import DataOptions, Found, Record, refuse_options, some
from gistcli.data.images import is_image_name, visible_folders
from gistcli.data.splits import ALIASES, name_splits
from gistcli.data.tables import USUAL, as_label
from gistcli.errors import DataError

_NUMBER = re.compile(r"[-_.]?\d*(-of-\d+)?$")
_BLOCK = 512
_HINT = "Copy the archive again, or write it again as plain tar with pictures and classes."


@dataclass(frozen=True)
class Member:
    """An encoded picture inside an archive, by its offset in bytes."""

    archive: Path
    offset: int
    nbytes: int

    def read(self) -> bytes:
        with self.archive.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.nbytes)


class WebDataset:
    """Shards `train-*.tar`, or `train/*.tar`, of samples that share a key.

    `KEY.jpg` (png, webp, ...) is the picture of a sample, `KEY.cls` or a label in `KEY.json` its
    class; the key is the path up to the first dot of the file's name. The archives are indexed
    once and nothing is extracted. The split is the name of the folder, or what stands before the
    shard's number; `data.splits` maps ours to others; shards of no name are all for training.
    """

    def __init__(self, data: DataOptions, place: Path | str) -> None:
        refuse_options(
            "Archives have neither columns nor groups", columns=data.columns, group_by=data.group_by
        )
        self.root = Path(place)
        self.splits = data.splits
        self.warnings: list[str] = []

    def find(self) -> Found:
        """Every sample as a record, in the order of the shards and of their members.

        Raises:
            DataError: archives that are damaged, hold links or devices, or samples without a
                picture or class.
            RecipeError: splits that are not there.
        """
        shards: dict[str, list[Path]] = {}
        for path in self._shards():
            shards.setdefault(self._split(path), []).append(path)
        if [*shards] == [""]:
            chosen = {"train": ""}
        else:
            chosen, self.warnings = name_splits([*shards], self.splits, str(self.root))
        found = {ours: self._records(shards[theirs]) for ours, theirs in chosen.items()}
        return Found({s: rs for s, rs in found.items() if rs}, warnings=self.warnings)

    def _shards(self) -> list[Path]:
        if self.root.is_file():
            return [self.root]
        paths = [p for pattern in ("*.tar", "*/*.tar") for p in self.root.glob(pattern)]
        if not paths:
            raise DataError(f"{self.root} holds no archives.", "Wanted: train-*.tar or train/*.tar")
        return sorted(paths, key=lambda p: _natural(str(p)))

    def _split(self, shard: Path) -> str:
        """What a shard calls its split; empty where it says nothing."""
        if self.root.is_dir() and shard.parent != self.root:
            return shard.parent.name
        if self.root.is_file():
            return ""
        words = [w for w in re.split(r"[-_.]", shard.stem) if w.lower() in ALIASES]
        return words[0] if words else _NUMBER.sub("", shard.stem)

    def _records(self, shards: list[Path]) -> list[Record]:
        records, bare = [], []
        problems: list[str] = []
        above = self.root.parent if self.root.is_file() else self.root
        for shard in shards:
            inside = shard.relative_to(above).as_posix()
            for key, sample in _samples(shard):
                name = f"{inside}/{key}"
                if sample.picture is None:
                    problems.append(f"{name}: no picture")
                elif sample.label is None:
                    bare.append(name)
                else:
                    records.append(Record(name, sample.label, sample.picture))
        if bare and not records and not problems:
            self.warnings.append(f"{some(shards, 'archive', shown=3)} without classes: left out")
            return []
        problems += [f"{name}: no class" for name in bare]
        if problems:
            raise DataError(
                f"{self.root} cannot be used: {some(problems, 'incomplete sample', shown=10)}.",
                "Wanted: KEY.jpg (png, webp) and KEY.cls, or KEY.json with a label.",
            )
        return records


@dataclass
class _Sample:
    picture: Member | None = None
    label: str | None = None


def _samples(shard: Path) -> Iterator[tuple[str, _Sample]]:
    """Key and sample, in order; members of one key may lie apart."""
    samples: dict[str, _Sample] = {}
    with shard.open("rb") as file:
        for member in _members(shard):
            folder, _, name = member.name.rpartition("/")
            stem, _, ending = name.partition(".")
            is_label = ending.lower() in ("cls", "json")
            if name.startswith(".") or not (is_label or is_image_name(name)):
                continue
            key = f"{folder}/{stem}".removeprefix("./").lstrip("/")
            sample = samples.setdefault(key, _Sample())
            where = f"{shard}: {member.name}"
            if is_image_name(name):
                if sample.picture is not None:
                    raise DataError(f"{where} is a second picture of its sample.", _HINT)
                sample.picture = Member(shard, member.offset_data, member.size)
            else:
                file.seek(member.offset_data)
                label = _label(file.read(member.size), ending.lower(), where)
                sample.label = sample.label if label is None else label
    yield from samples.items()


def _members(shard: Path) -> Iterator[tarfile.TarInfo]:
    """The plain files of an archive that is whole."""
    try:
        with tarfile.open(shard, "r:") as archive:
            end = 0
            for member in archive:
                end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
                if not (member.isdir() or member.isreg()) or member.issparse():
                    raise DataError(f"{shard}: {member.name} is a link or a device.", _HINT)
                if member.isreg():
                    yield member
    except tarfile.TarError as error:
        raise DataError(f"{shard} is damaged or no plain tar archive: {error}.", _HINT) from None
    with shard.open("rb") as file:
        file.seek(end)
        if file.read(_BLOCK) != bytes(_BLOCK):
            raise DataError(f"{shard} is damaged: it breaks off at byte {end:,}.", _HINT)


def _label(content: bytes, ending: str, where: str) -> str | None:
    try:
        text = content.decode("utf-8").strip()
        if ending == "cls":
            return as_label(text)
        value: Any = json.loads(text)
        if isinstance(value, dict):
            present = [k for k in (*USUAL["label"], "cls") if k in value]
            value = value[present[0]] if present else None
        return as_label(value)
    except ValueError as error:  # also JSONDecodeError and UnicodeDecodeError
        raise DataError(f"{where} is no class: {error}.", _HINT) from None


def _natural(text: str) -> list[Any]:
    """A key by which 2.tar comes before 10.tar."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", text)]


def holds_shards(folder: Path) -> bool:
    """Whether a folder is one of archives: in it, or in all of its visible folders."""
    folders = visible_folders(folder)
    if any(folder.glob("*.tar")):
        return not folders
    return bool(folders) and all(any(f.glob("*.tar")) for f in folders)
