"""Rows of text data with the place they come from: files, folders of files, `datasets` names."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistcli.data.base import SPLITS, some
from gistcli.data.fetch import (
    FILES,
    holds_tables,
    load_tables,
    names_files,
    reading_tables,
    stream_tables,
)
from gistcli.data.splits import ALIASES, PAIRED, name_splits, split_name
from gistcli.data.tables import ENDINGS as LISTS
from gistcli.data.tables import readable
from gistcli.data.text.parsing import SHOWN, parsed
from gistcli.errors import DataError, NotFound, RecipeError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

ENDINGS = (*LISTS, ".txt", *FILES)
Limit = Callable[[Collection[str]], Mapping[str, int]]
"""The splits that there are -> how many rows of each are enough."""
STEMS = {**PAIRED, **ALIASES, "dev": "val"}
"""Names of files -> the split that they are; None for one that is passed over."""


@dataclass(frozen=True)
class Row:
    """One row of a table: its columns, and where it stands (`FILE:LINE` or `FILE[ROW]`)."""

    values: Mapping[str, Any]
    origin: str


def find_rows(
    place: Path | str,
    splits: str | Mapping[str, str] = "auto",
    *,
    header: bool = True,
    skip: bool = False,
    limit: Limit | None = None,
) -> tuple[dict[str, list[Row]], list[str]]:
    """Rows by split (one without a name is `train`), and warnings on what was left out.

    Args:
        place: a file; a folder with one file a split (`train.jsonl`, `dev.tsv`, ...), or of parquet
            files, or saved by `datasets`; or the name of a data set on the hub.
        splits: `data.splits`: split -> file, or name of a split as it is usually called.
        header: whether the first line of CSV and TSV files names the columns.
        skip: leave damaged lines out, with a warning that counts them.
        limit: where reading stops; what is behind is not looked at. None reads everything.

    Raises:
        NotFound: a file is not there, or a name neither on disk nor on the hub.
        DataError: damaged or empty files; all bad lines of a file in one message.
        RecipeError: splits that are not there, or two files for one.
    """
    if isinstance(place, str) or (place.is_dir() and _is_tables(place, splits)):
        return _from_tables(place, splits, limit)
    files, warnings = _files(place, splits)
    most = limit(files) if limit else {}
    rows: dict[str, list[Row]] = {}
    for split in (s for s in SPLITS if s in files):
        skipped: list[str] | None = [] if skip else None
        rows[split] = read_rows(files[split], header=header, skipped=skipped, most=most.get(split))
        if skipped:
            warnings.append(f"{files[split].name}: {some(skipped, 'line', shown=SHOWN)} left out")
        if header and _is_unnamed(files[split], rows[split]):
            names = ", ".join(rows[split][0].values)
            warnings.append(f"{files[split].name} has no line of names: its columns are {names}")
    return rows, warnings


def _is_unnamed(path: Path, rows: Sequence[Row]) -> bool:
    """Whether a table's first line is data already."""
    return path.suffix.lower() in (".csv", ".tsv") and rows[0].origin.endswith(":1")


def _is_tables(folder: Path, splits: str | Mapping[str, str]) -> bool:
    asked = isinstance(splits, Mapping) and all(
        (folder / os.path.expanduser(name)).is_file() for name in splits.values()
    )
    return holds_tables(folder) and not asked


def _from_tables(
    place: Path | str, splits: str | Mapping[str, str], limit: Limit | None
) -> tuple[dict[str, list[Row]], list[str]]:
    tables = (load_tables if limit is None else stream_tables)(place, splits)
    by_name = "auto" if names_files(splits) else splits
    chosen, warnings = name_splits(list(tables), by_name, str(place))
    ordered = [(split, chosen[split]) for split in SPLITS if split in chosen]
    most = limit(chosen) if limit else {}
    with reading_tables(place):
        rows = {split: _table_rows(tables[name], name, most.get(split)) for split, name in ordered}
    return rows, warnings


def _files(place: Path, splits: str | Mapping[str, str]) -> tuple[dict[str, Path], list[str]]:
    """Split -> file, and a warning on files that belong to none."""
    if not place.exists():
        raise NotFound(f"{place} does not exist.", _near(place))
    if isinstance(splits, Mapping):
        root = place if place.is_dir() else place.parent
        usual = _by_split(root) if place.is_dir() else {}
        named = {
            split_name(s): usual.get(f.lower(), root / os.path.expanduser(f))
            for s, f in splits.items()
        }
        missing = [path for path in named.values() if not path.is_file()]
        if missing:
            raise NotFound(f"{some(missing, 'file')} of data.splits not found.", _near(missing[0]))
        return named, []
    if place.is_file():
        return {"train": place}, []
    return _files_of_folder(place)


def _by_split(folder: Path) -> dict[str, Path]:
    """Every usual name of a split (`val`, `dev`, `validation`) -> the one file that is it."""
    files: dict[str, list[Path]] = {}
    for path in _readable(folder):
        files.setdefault(STEMS.get(path.stem.lower()) or "", []).append(path)
    return {
        name: files[split][0]
        for name, split in STEMS.items()
        if split and len(files.get(split, ())) == 1
    }


def _readable(folder: Path) -> list[Path]:
    return [p for p in sorted(folder.iterdir()) if p.is_file() and p.suffix.lower() in ENDINGS]


def _near(path: Path) -> str:
    here = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    return did_you_mean(path.name, here) if 0 < len(here) < 30 else "Check the path."


def _files_of_folder(folder: Path) -> tuple[dict[str, Path], list[str]]:
    readable_ones = _readable(folder)
    files: dict[str, Path] = {}
    others: list[str] = []
    for path in readable_ones:
        split = STEMS.get(path.stem.lower())
        if split is None:
            others.append(path.name)
        elif split in files:
            raise RecipeError(
                f"{files[split]} and {path.name} are files of the same split.",
                f"Choose one: data.splits.{split}=FILE.",
            )
        else:
            files[split] = path
    if files:
        return files, [f"{some(others, 'file')} of {folder} ignored"] if others else []
    if len(readable_ones) == 1:
        return {"train": readable_ones[0]}, []
    raise RecipeError(
        f"{folder}: which file is which split? It holds {', '.join(others) or 'no text data'}.",
        "Name them train, val and test, or say it: data.splits.train=FILE.",
    )


def read_rows(
    path: Path,
    *,
    header: bool = True,
    skipped: list[str] | None = None,
    most: int | None = None,
) -> list[Row]:
    """The rows of one file.

    JSON is a list of objects, an object with one such list in it, or in truth JSON lines. A text
    file has a row {text: ...} for each line that is not empty. TSV files may be quoted or not, and
    may lack the line of names where `column_names` knows them.

    Args:
        path: of the file.
        header: whether the first line of CSV and TSV files names the columns.
        skipped: gets the lines of JSON lines and tables that are damaged; without, they are an
            error.
        most: rows after which reading stops; what is behind them is not looked at.

    Raises:
        NotFound: there is no such file.
        DataError: damaged, empty, or of another form; bad lines are collected.
    """
    if not path.is_file():
        raise NotFound(f"{path} does not exist.", _near(path))
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise DataError(
            f"{path}: an ending {path.suffix!r} is not known.", f"Give {' '.join(ENDINGS)}."
        )
    if ending in FILES:
        table = (load_tables if most is None else stream_tables)(path, "auto")["train"]
        with reading_tables(path):
            rows = _table_rows(table, path.name, most)
    else:
        bad: list[str] = []
        with readable(path), path.open("rb") as file:
            found = islice(parsed(file, path, bad, header=header, most=most), most)
            rows = [Row(values, f"{path.name}{place}") for place, values in found]
        if bad and skipped is None:
            what = "JSON objects" if "json" in ending else "of as many fields as the first"
            raise DataError(
                f"{path}: {some(bad, 'line', shown=SHOWN)} {'is' if len(bad) == 1 else 'are'} not "
                f"{what}.",
                "Repair or remove them, or leave them out: data.on_error=skip.",
            )
        if skipped is not None:
            skipped += bad
    if not rows:
        raise DataError(f"{path} is empty.", "Give a file with at least one example.")
    return rows


def _table_rows(table: Dataset | IterableDataset, name: str, most: int | None) -> list[Row]:
    """The first rows of a table; class ids become class names, -1 becomes None."""
    import datasets

    classes = {
        column: feature.names
        for column, feature in (table.features or {}).items()
        if isinstance(feature, datasets.ClassLabel)
    }
    rows = []
    for i, row in enumerate(islice(table, most)):
        values = dict(row)
        for column, names in classes.items():
            values[column] = _class_name(values[column], names)
        rows.append(Row(values, f"{name}[{i}]"))
    return rows


def _class_name(value: int | None, names: Sequence[str]) -> str | None:
    return None if value is None or value < 0 else names[value]
