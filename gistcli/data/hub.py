"""Source `hf`: a Hugging Face data set by name, or parquet, arrow and saved data sets on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gistcli.data.base import DataOptions, Found, Record, some
from gistcli.data.fetch import load_tables, names_files
from gistcli.data.splits import name_splits, split_name
from gistcli.data.tables import as_label, find_columns
from gistcli.errors import DataError, RecipeError

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class Cell:
    """An encoded picture in a row of a table."""

    table: Dataset
    row: int
    column: str
    nbytes: int

    def read(self) -> bytes:
        value = self.table[self.row][self.column]
        if isinstance(value, bytes):
            return value
        if value.get("bytes") is not None:
            content: bytes = value["bytes"]
            return content
        return Path(value["path"]).read_bytes()


class HubDataset:
    """A table with an image column and a column of classes.

    `place` is an existing file or folder (parquet, arrow, or what `save_to_disk` wrote), or a name
    on the hub (`beans`, `owner/name`). `data.splits` maps our splits to those of the data set, or,
    for files, to files. A split without any label (as public test sets are) is left out with a
    warning.
    """

    def __init__(self, data: DataOptions, place: Path | str) -> None:
        self.data = data
        self.place = place
        self.warnings: list[str] = []

    def find(self) -> Found:
        """Every row as a record; its name is `SPLIT/ROW` in the data set's own words.

        Raises:
            NotFound: neither on disk nor, as far as it can be reached, on the hub.
            DataError: damaged files, rows without image or label.
            RecipeError: columns or splits that are not there.
        """
        tables = load_tables(self.place, self.data.splits)
        splits: dict[str, list[Record]] = {}
        for split, name in self._chosen(list(tables)).items():
            # a column of splits counts only where nothing else says what is in which
            by_column = len(tables) == 1 and self.data.splits == "auto"
            for own, record in self._records(name, tables[name], by_column):
                splits.setdefault(own or split, []).append(record)
        return Found(splits, warnings=self.warnings)

    def _chosen(self, names: list[str]) -> dict[str, str]:
        """Our split -> the data set's."""
        splits = "auto" if names_files(self.data.splits) else self.data.splits
        chosen, warnings = name_splits(names, splits, str(self.place))
        self.warnings += warnings
        return chosen

    def _records(
        self, name: str, table: Dataset, by_column: bool
    ) -> list[tuple[str | None, Record]]:
        """Each row with the split that a column gives it, if one does."""
        import datasets

        columns = self._columns(table)
        image = columns["image"]
        if isinstance(table.features[image], datasets.Image):
            table = table.cast_column(image, datasets.Image(decode=False))
        sizes = _sizes(table, image)
        labels = self._labels(table, columns["label"], name)
        if labels is None:
            self.warnings.append(f"split {name} of {self.place} has no labels: left out")
            return []
        nothing = [None] * len(labels)
        groups = table[columns["group"]] if "group" in columns else nothing
        splits = table[columns["split"]] if by_column and "split" in columns else nothing
        self._refuse(name, "a picture", [size < 0 for size in sizes])
        if "group" in columns:
            self._refuse(name, "a group", [group in (None, "") for group in groups])
        rows = zip(labels, groups, splits, strict=True)
        return [
            (
                None if split is None else split_name(str(split)),
                Record(
                    f"{name}/{row}",
                    label,
                    Cell(table, row, image, int(sizes[row])),
                    None if group is None else str(group),
                ),
            )
            for row, (label, group, split) in enumerate(rows)
        ]

    def _refuse(self, name: str, what: str, bad: list[bool]) -> None:
        rows = [f"{name}/{row}" for row, is_bad in enumerate(bad) if is_bad]
        if rows:
            raise DataError(f"{self.place}: {some(rows, 'row')} without {what}.")

    def _columns(self, table: Dataset) -> dict[str, str]:
        import datasets

        chosen = dict(self.data.columns or {})
        for role, kind in (("image", datasets.Image), ("label", datasets.ClassLabel)):
            typed = [c for c, feature in table.features.items() if isinstance(feature, kind)]
            if len(typed) == 1:
                chosen.setdefault(role, typed[0])
        return find_columns(table.column_names, chosen, self.data.group_by, str(self.place))

    def _labels(self, table: Dataset, column: str, name: str) -> list[str] | None:
        import datasets

        feature = table.features[column]
        values = list(table[column])
        if isinstance(feature, datasets.ClassLabel):
            values = [None if v is None or v < 0 else feature.names[v] for v in values]
        try:
            labels = [as_label(value) for value in values]
        except ValueError as error:
            raise DataError(f"{self.place}, column {column}: {error}.") from None
        if not any(labels):
            return None
        self._refuse(name, "a label", [label is None for label in labels])
        return [label for label in labels if label is not None]


def _sizes(table: Dataset, column: str) -> np.ndarray:
    """Length of every picture without reading it; 0 where only its path is known, -1 for none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    cells = table.with_format("arrow")[:][column]
    if pa.types.is_struct(cells.type):
        nothing = pc.and_(
            pc.is_null(pc.struct_field(cells, "bytes")), pc.is_null(pc.struct_field(cells, "path"))
        )
        lengths = pc.fill_null(pc.binary_length(pc.struct_field(cells, "bytes")), 0)
        lengths = pc.if_else(nothing, -1, lengths)
    elif pa.types.is_binary(cells.type) or pa.types.is_large_binary(cells.type):
        lengths = pc.fill_null(pc.binary_length(cells), -1)
    else:
        raise RecipeError(
            f"Column {column!r} holds {cells.type}, not pictures.", "Say data.columns.image=NAME."
        )
    return lengths.to_numpy()
