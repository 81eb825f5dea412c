"""Source `list`: pictures named in CSV, TSV, JSON or JSON-lines files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gistcli.data.base import DataOptions, Found, Record, some
from gistcli.data.listed import Listed
from gistcli.data.splits import ALIASES, split_name
from gistcli.data.tables import ENDINGS, as_label, find_columns, read_rows
from gistcli.errors import NotFound, RecipeError, did_you_mean


class ImageList:
    """One list, or one for each split, with a column for the image's path and one for its class.

    `place` is a list, with a `split` column or without, or a folder that holds `train.csv`,
    `test.json` and so on; `data.splits` may name the files. Columns are found by their usual names
    or told by `data.columns`; `data.group_by` names the column of the group.

    Paths are relative to the folder of the list; `Listed` says which are refused.
    """

    def __init__(self, data: DataOptions, place: Path | str) -> None:
        self.place = Path(place)
        self.root = self.place if self.place.is_dir() else self.place.parent
        self.data = data
        self.listed = Listed(self.root)

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
        distinct = self.listed.distinct
        splits = {split: distinct(split, records) for split, records in splits.items()}
        self.listed.refuse(self.place)
        return Found(splits, warnings=self.listed.warnings)

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
                self.listed.problem(f"with a split that is none ({name!r})", where)
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
            self.listed.problem("whose label is no class", f"{where}: {error}")
            return None
        if not file or not isinstance(file, str) or label is None:
            self.listed.problem("without an image or a label", where)
            return None
        group = row.get(columns["group"]) if "group" in columns else None
        if "group" in columns and group in (None, ""):
            self.listed.problem("without a group", where)
        group = None if group is None else str(group)
        return self.listed.record(file, label, folder, where, group=group)


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
