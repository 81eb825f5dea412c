"""Rows of text data with the place they come from: files, folders of files, `datasets` names."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistcli.data.base import SPLITS, some
from gistcli.data.fetch import FILES, holds_tables, load_tables, names_files
from gistcli.data.splits import ALIASES, PAIRED, name_splits, split_name
from gistcli.data.tables import ENDINGS as LISTS
from gistcli.data.tables import readable
from gistcli.data.text.unnamed import column_names
from gistcli.errors import DataError, NotFound, RecipeError, did_you_mean

if TYPE_CHECKING:
    from datasets import Dataset

ENDINGS = (*LISTS, ".txt", *FILES)
SHOWN = 5
"""How many problems of a kind a message names."""
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
) -> tuple[dict[str, list[Row]], list[str]]:
    """Rows by split (one without a name is `train`), and warnings on what was left out.

    Args:
        place: a file; a folder with one file a split (`train.jsonl`, `dev.tsv`, ...), or of parquet
            files, or saved by `datasets`; or the name of a data set on the hub.
        splits: `data.splits`: split -> file, or name of a split as it is usually called.
        header: whether the first line of CSV and TSV files names the columns.
        skip: leave damaged lines out, with a warning that counts them.

    Raises:
        NotFound: a file is not there, or a name neither on disk nor on the hub.
        DataError: damaged or empty files; all bad lines of a file in one message.
        RecipeError: splits that are not there, or two files for one.
    """
    if isinstance(place, str) or (place.is_dir() and _is_tables(place, splits)):
        return _from_tables(place, splits)
    files, warnings = _files(place, splits)
    rows: dict[str, list[Row]] = {}
    for split in (s for s in SPLITS if s in files):
        skipped: list[str] | None = [] if skip else None
        rows[split] = read_rows(files[split], header=header, skipped=skipped)
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
    place: Path | str, splits: str | Mapping[str, str]
) -> tuple[dict[str, list[Row]], list[str]]:
    tables = load_tables(place, splits)
    by_name = "auto" if names_files(splits) else splits
    chosen, warnings = name_splits(list(tables), by_name, str(place))
    ordered = [(split, chosen[split]) for split in SPLITS if split in chosen]
    return {split: _table_rows(tables[name], name) for split, name in ordered}, warnings


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


def read_rows(path: Path, *, header: bool = True, skipped: list[str] | None = None) -> list[Row]:
    """The rows of one file.

    JSON is a list of objects, an object with one such list in it, or in truth JSON lines. A text
    file has a row {text: ...} for each line that is not empty. TSV files may be quoted or not, and
    may lack the line of names where `column_names` knows them.

    Args:
        path: of the file.
        header: whether the first line of CSV and TSV files names the columns.
        skipped: gets the lines of JSON lines and tables that are damaged; without, they are an
            error.

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
        rows = _table_rows(load_tables(path, "auto")["train"], path.name)
    else:
        with readable(path):
            text = path.read_text(encoding="utf-8-sig")
            rows, bad = _text_rows(path, text, ending, header)
        if bad and skipped is None:
            what = "JSON objects" if "json" in ending else "of as many fields as the first"
            raise DataError(
                f"{path}: {some(bad, 'line', shown=SHOWN)} {_are(bad)} not {what}.",
                "Repair or remove them, or leave them out: data.on_error=skip.",
            )
        if skipped is not None:
            skipped += bad
    if not rows:
        raise DataError(f"{path} is empty.", "Give a file with at least one example.")
    return rows


def _are(listed: Sequence[object]) -> str:
    return "is" if len(listed) == 1 else "are"


def _text_rows(path: Path, text: str, ending: str, header: bool) -> tuple[list[Row], list[str]]:
    """The rows, and what is wrong with which line."""
    if ending == ".txt":
        lines = enumerate(text.split("\n"), 1)
        return [Row({"text": line}, f"{path.name}:{n}") for n, line in lines if line.strip()], []
    if ending in (".csv", ".tsv"):
        return _separated(path, text, "," if ending == ".csv" else "\t", header)
    if ending == ".json" and text.strip() and not _is_lines(text):
        return _json_rows(path, json.loads(text)), []
    return _json_lines(path, text)


def _is_lines(text: str) -> bool:
    """Whether a .json file holds one object a line, as many programs write it."""
    first, _, rest = text.strip().partition("\n")
    if not first.startswith("{") or not rest:
        return False
    try:
        return isinstance(json.loads(first), dict)
    except json.JSONDecodeError:
        return False


def _json_rows(path: Path, value: Any) -> list[Row]:
    if isinstance(value, dict):
        lists = [v for v in value.values() if isinstance(v, list)]
        value = lists[0] if len(lists) == 1 else value
    if not isinstance(value, list):
        raise DataError(
            f"{path} is no list of objects, nor an object with one such list in it.",
            "Give an object for every example: [{...}, {...}], or one a line.",
        )
    bad = [f"{path.name}[{i}]" for i, row in enumerate(value) if not isinstance(row, dict)]
    if bad:
        raise DataError(
            f"{path}: {some(bad, 'row', shown=SHOWN)} {_are(bad)} no objects.",
            "Give an object for every example.",
        )
    return [Row(row, f"{path.name}[{i}]") for i, row in enumerate(value)]


def _json_lines(path: Path, text: str) -> tuple[list[Row], list[str]]:
    rows: list[Row] = []
    bad: list[str] = []
    # not splitlines: JSON text may hold other line separators
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            bad.append(f"line {number}: {error.msg} (column {error.colno})")
            continue
        if isinstance(value, dict):
            rows.append(Row(value, f"{path.name}:{number}"))
        else:
            bad.append(f"line {number}: no object")
    return rows, bad


def _separated(path: Path, text: str, delimiter: str, header: bool) -> tuple[list[Row], list[str]]:
    plain = delimiter == "\t" and _is_unquoted(text)
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL,
        strict=True,
    )
    records = list(_numbered(reader))
    if not records:
        return [], []
    names = [str(i) for i in range(len(records[0][1]))]
    if header:
        found = column_names([cells for _, cells in records])
        names = found or [name.strip() for name in records.pop(0)[1]]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{path} has two columns of the same name: {', '.join(twice)}.",
            "Rename one of them in the first line.",
        )
    good = [(n, cells) for n, cells in records if len(cells) == len(names)]
    bad = [
        f"line {n}: {len(cells)} fields, not {len(names)}"
        for n, cells in records
        if len(cells) != len(names)
    ]
    rows = [Row(dict(zip(names, cells, strict=True)), f"{path.name}:{n}") for n, cells in good]
    return rows, bad


def _numbered(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Each record with the number of its first line; empty lines are passed over."""
    start = 1
    for cells in reader:
        if cells:
            yield start, cells
        start = reader.line_num + 1


def _is_unquoted(text: str) -> bool:
    """Whether quotes in a TSV file are part of the text, as in GLUE's files.

    So it is where every line has the same number of fields, and some field that begins with a quote
    is not quoted in the manner of CSV.
    """
    lines = [line.rstrip("\r").split("\t") for line in text.split("\n") if line.strip()]
    if len({len(fields) for fields in lines}) > 1:
        return False
    fields = (field for line in lines for field in line if field.startswith('"'))
    return not all(_is_quoted(field) for field in fields)


def _is_quoted(field: str) -> bool:
    inner = field[1:-1]
    return len(field) > 1 and field.endswith('"') and '"' not in inner.replace('""', "")


def _table_rows(table: Dataset, name: str) -> list[Row]:
    """Rows of a table; class ids become class names, -1 becomes None."""
    import datasets

    classes = {
        column: feature.names
        for column, feature in table.features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    rows = []
    for i, row in enumerate(table):
        values = dict(row)
        for column, names in classes.items():
            values[column] = _class_name(values[column], names)
        rows.append(Row(values, f"{name}[{i}]"))
    return rows


def _class_name(value: int | None, names: Sequence[str]) -> str | None:
    return None if value is None or value < 0 else names[value]
