"""Source `folder`: `CLASS/*.jpg`, or `train/CLASS/*.jpg` and so on, however deep."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from gistcli.data.base import SPLITS, DataOptions, Found, Record, refuse_options, some
from gistcli.data.groups import group_pattern
from gistcli.data.images import visible_folders, walk_images
from gistcli.data.splits import ALIASES, split_name
from gistcli.errors import DataError, NotFound, did_you_mean


class Folder:
    """Class folders, with or without split folders above them.

    Split folders are train/training, val/valid/validation, test/testing in any case, or what
    `data.splits` names. They count as such where there is a train one or nothing else. A class
    folder is searched whole; its name is the class. `data.group_by` is a regular expression whose
    first group, searched in the file's name, names the picture's group.
    """

    def __init__(self, data: DataOptions, place: Path | str) -> None:
        refuse_options("Class folders have no columns", columns=data.columns)
        self.root = Path(place)
        self.splits = data.splits
        self.group_by = group_pattern(data.group_by)
        self.problems: list[str] = []
        self.empty: list[str] = []
        self.notes: list[str] = []

    def find(self) -> Found:
        """Every picture with its class folder.

        Raises:
            DataError: class folders without a picture, no class folders, or file names without a
                group; all problems in one message.
            NotFound, RecipeError: `data.splits` names folders that are not there, or no splits.
        """
        folders = self._split_folders()
        splits = {split: self._records(folders[split]) for split in SPLITS if split in folders}
        if self.empty:
            self.problems.append(f"{some(self.empty, 'class folder')} without a picture")
        if self.problems:
            raise DataError(
                f"{self.root} cannot be used: {'; '.join(self.problems)}.",
                "Wanted: CLASS/PICTURE, or train/CLASS/PICTURE, with pictures in every class.",
            )
        return Found(splits, self.notes)

    def _split_folders(self) -> dict[str, Path]:
        if isinstance(self.splits, Mapping):
            return self._named_folders(self.splits)
        folders = visible_folders(self.root)
        named = [f for f in folders if f.name.lower() in ALIASES]
        if not any(ALIASES[f.name.lower()] == "train" for f in named) and named != folders:
            return {"train": self.root}
        if not named:
            return {"train": self.root}
        splits: dict[str, Path] = {}
        for folder in named:
            first = splits.setdefault(ALIASES[folder.name.lower()], folder)
            if first is not folder:
                self.problems.append(f"{first.name} and {folder.name} are the same split")
        others = [f.name for f in folders if f not in named]
        if others:
            self.notes.append(f"{some(others, 'folder')} beside the splits: ignored")
        return splits

    def _named_folders(self, splits: Mapping[str, str]) -> dict[str, Path]:
        folders = {split_name(s): self.root / os.path.expanduser(f) for s, f in splits.items()}
        missing = [str(f) for f in folders.values() if not f.is_dir()]
        if missing:
            here = [f.name for f in visible_folders(self.root)]
            raise NotFound(
                f"{some(missing, 'folder')} of data.splits not found.",
                did_you_mean(Path(missing[0]).name, here),
            )
        return folders

    def _records(self, folder: Path) -> list[Record]:
        classes = visible_folders(folder)
        loose = [p for p in folder.iterdir() if p.is_file()]
        if not classes:
            self.problems.append(f"no class folders in {folder} ({len(loose)} files)")
        if loose:
            self.notes.append(
                f"{some([p.name for p in loose], 'file', shown=5)} in {folder}: "
                f"in no class folder, ignored"
            )
        records, others = [], []
        for place in classes:
            images, rest = walk_images(place)
            others += [str(p.relative_to(folder)) for p in rest]
            records += [self._record(p, place.name) for p in images]
            if not images:
                self.empty.append(
                    str(place.relative_to(self.root) if self._below(place) else place)
                )
        if others:
            self.notes.append(
                f"{some(others, 'file', shown=5)} in {folder}: not named like a picture, ignored"
            )
        self._refuse_groupless(records)
        return records

    def _below(self, path: Path) -> bool:
        return path.is_relative_to(self.root)

    def _record(self, path: Path, label: str) -> Record:
        name = path.relative_to(self.root).as_posix() if self._below(path) else str(path)
        match = self.group_by.search(path.name) if self.group_by else None
        return Record(name, label, path, match.group(1) if match else None)

    def _refuse_groupless(self, records: list[Record]) -> None:
        without = [r.name for r in records if r.group is None] if self.group_by else []
        if without and self.group_by:
            self.problems.append(
                f"{some(without, 'file name', shown=5)} without a group by {self.group_by.pattern}"
            )
