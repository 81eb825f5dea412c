"""Source `list`: pictures named in CSV, TSV, JSON or JSON-lines files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gistcli.data.base import DataOptions, Found, Record, some
from gistcli.data.splits import ALIASES, split_name
from gistcli.data.tables import ENDINGS, as_label, find_columns, read_rows
from gistcli.errors import DataError, NotFound, RecipeError, did_you_mean


class ImageList:
    """One list, or one for each split, with a column for the image's path and one for its class.

    `place` is a list, with a `split` column or without, or a folder that holds `train.csv`,
    `test.json` and so on; `data.splits` may name the files. Columns are found by their usual names
    or told by `data.columns`; `data.group_by` names the column of the group.

    Paths are relative to the folder of the list. A relative path may not lead out of that folder
    (`..`), so that a list from elsewhere reads nothing unexpected; an absolute one is taken as it
    is, since only who wrote it for this machine can have meant it.
    """

    def __init__(self, data: DataOptions, place: Path | str) -> None:
        self.place = Path(place)
        self.root = self.place if self.place.is_dir() else self.place.parent
        self.data = data
        self.problems: dict[str, list[str]] = {}
        self.warnings: list[str] = []

    def find(self) -> Found:
        """Every row as a record.

        Raises:
            DataError: files that do not exist, rows without a label, contradicting rows, paths
                that leave the folder; all of them in one message.
            NotFound, RecipeError: lists or columns that are not there.
        """
        splits: dict[str, list[Record]] = {}
        for split, path in self._files().items():
            for name, record in self._records(path, split):
                splits.setdefault(name, []).append(record)
        splits = {split: self._distinct(split, records) for split, records in splits.items()}
        if self.problems:
            told = [f"{some(names, 'row')} {what}" for what, names in self.problems.items()]
            raise DataError(
                f"{self.place} cannot be used: {'; '.join(told)}.", "Correct or remove these rows."
            )
        return Found(splits, warnings=self.warnings)

    def _files(self) -> dict[str, Path]:
        """Split -> list; one list for all is under `train`."""
        if isinstance(self.data.splits, Mapping):
            files = {
                split_name(s): self.root / os.path.expanduser(f)
                for s, f in self.data.splits.items()
            }
            missing = [str(f) for f in files.values() if not f.is_file()]
            if missing:
                here = [p.name for p in self.root.iterdir()]
                hint = did_you_mean(Path(missing[0]).name, here) if len(here) < 30 else ""
                raise NotFound(f"{some(missing, 'file')} of data.splits not found.", hint)
            return files
        if self.place.is_file():
            return {"train": self.place}
        return split_lists(self.place)

    def _records(self, path: Path, split: str) -> list[tuple[str, Record]]:
        rows = read_rows(path)
        present = list(dict.fromkeys(key for row in rows for key in row))
        columns = find_columns(present, self.data.columns, self.data.group_by, str(path))
        if isinstance(self.data.splits, Mapping):
            columns.pop("split", None)
        found = []
        for number, row in enumerate(rows, 1):
            where = f"{path.name} {number}"
            record = self._record(row, columns, path.parent, where)
            name = row.get(columns.get("split", ""), split)
            if record and str(name).lower() not in ALIASES:
                self._problem(f"with a split that is none ({name!r})", where)
            elif record:
                found.append((split_name(str(name)), record))
        return found

    def _record(
        self, row: Mapping[str, Any], columns: Mapping[str, str], folder: Path, where: str
    ) -> Record | None:
        file = row.get(columns["image"])
        try:
            label = as_label(row.get(columns["label"]))
        except ValueError as error:
            self._problem("whose label is no class", f"{where}: {error}")
            return None
        if not file or not isinstance(file, str) or label is None:
            self._problem("without an image or a label", where)
            return None
        path = folder / file
        if not Path(file).is_absolute() and ".." in Path(file).parts:
            self._problem("with a path that leaves the folder of the list", f"{where}: {file}")
        elif not path.is_file():
            self._problem("whose file does not exist", f"{where}: {file}")
        group = row.get(columns["group"]) if "group" in columns else None
        if "group" in columns and group in (None, ""):
            self._problem("without a group", where)
        below = path.is_relative_to(self.root)
        name = path.relative_to(self.root).as_posix() if below else str(path)
        return Record(name, label, path, None if group is None else str(group))

    def _distinct(self, split: str, records: list[Record]) -> list[Record]:
        """Each file once; a contradiction is a problem, a repetition only a warning."""
        known: dict[str, Record] = {}
        repeated = []
        for record in records:
            earlier = known.setdefault(record.name, record)
            if earlier.label != record.label:
                self._problem(
                    "that contradict another", f"{record.name}: {earlier.label}, {record.label}"
                )
            elif earlier is not record:
                repeated.append(record.name)
        if repeated:
            self.warnings.append(
                f"{some(repeated, 'row', shown=5)} of {split} repeated: each picture counts once"
            )
        return list(known.values())

    def _problem(self, what: str, where: str) -> None:
        self.problems.setdefault(what, []).append(where)


def split_lists(folder: Path) -> dict[str, Path]:
    """The lists in a folder whose names are those of splits (`train.csv`, `val.json`, ...).

    Raises:
        RecipeError: two lists for one split.
    """
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        split = ALIASES.get(path.stem.lower())
        if split and path.suffix.lower() in ENDINGS and path.is_file():
            if split in files:
                raise RecipeError(
                    f"{files[split]} and {path.name} are lists of the same split.",
                    f"Choose one: data.splits.{split}=FILE.",
                )
            files[split] = path
    return files
