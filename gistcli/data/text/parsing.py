"""The rows of a text file, read as they are asked for: JSON lines, JSON, CSV, TSV, plain lines.

Whoever asks for no more leaves the rest of the file unread, and whatever is wrong with it unsaid.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO

from gistcli.data.base import some
from gistcli.data.text.unnamed import column_names
from gistcli.errors import DataError

SHOWN = 5
"""How many problems of a kind a message names."""
Placed = tuple[str, Mapping[str, Any]]
"""Where a row stands in its file, `:LINE` or `[ROW]`, and its columns."""


def parsed(
    file: BinaryIO, path: Path, bad: list[str], *, header: bool = True, most: int | None = None
) -> Iterator[Placed]:
    """The rows of a file.

    Args:
        file: at its beginning.
        path: of it; the ending says what it holds.
        bad: gets what is wrong with each line that is damaged.
        header: whether the first line of CSV and TSV files names the columns.
        most: rows that will be asked for, by which quotes and names of tables are judged; None for
            all.

    Raises:
        DataError: of another form.
        UnicodeDecodeError, json.JSONDecodeError, csv.Error: damaged as a whole.
    """
    lines, ending = decoded(file), path.suffix.lower()
    if ending == ".txt":
        return _plain(lines)
    if ending in (".csv", ".tsv"):
        return _separated(path, lines, bad, "," if ending == ".csv" else "\t", header, most)
    return _json(path, lines, bad) if ending == ".json" else _json_lines(lines, bad)


def decoded(file: BinaryIO) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends, which are line feeds; none is read ahead.

    Raises:
        UnicodeDecodeError: with the place in the file.
    """
    start = 0
    for line in file:
        try:
            text = line.decode("utf-8" if start else "utf-8-sig")
        except UnicodeDecodeError as error:
            error.start += start
            raise
        start += len(line)
        # not splitlines: JSON text may hold other line separators
        yield from io.StringIO(text, newline=None)


def _plain(lines: Iterable[str]) -> Iterator[Placed]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield f":{number}", {"text": line.removesuffix("\n")}


# --- JSON -----------------------------------------------------------------------------------------


def _json(path: Path, lines: Iterator[str], bad: list[str]) -> Iterator[Placed]:
    """A list of objects, an object with one such list in it, or in truth JSON lines."""
    head: list[str] = []
    full = 0
    for line in lines:
        head.append(line)
        full += not line.isspace()
        if full == 2:
            break
    if _begins_with_objects(head):
        yield from _json_lines(chain(head, lines), bad)
        return
    text = "".join(chain(head, lines))
    yield from _listed(path, json.loads(text)) if text.strip() else ()


def _begins_with_objects(head: Iterable[str]) -> bool:
    """Whether the first of two lines is an object of its own, as many programs write it."""
    first, *more = [line.strip() for line in head if line.strip()] or [""]
    if not first.startswith("{") or not more:
        return False
    try:
        return isinstance(json.loads(first), dict)
    except json.JSONDecodeError:
        return False


def _listed(path: Path, value: Any) -> Iterator[Placed]:
    if isinstance(value, dict):
        lists = [v for v in value.values() if isinstance(v, list)]
        value = lists[0] if len(lists) == 1 else value
    if not isinstance(value, list):
        raise DataError(
            f"{path} is no list of objects, nor an object with one such list in it.",
            "Give an object for every example: [{...}, {...}], or one a line.",
        )
    wrong = [f"{path.name}[{i}]" for i, row in enumerate(value) if not isinstance(row, dict)]
    if wrong:
        raise DataError(
            f"{path}: {some(wrong, 'row', shown=SHOWN)} {'is' if len(wrong) == 1 else 'are'} no "
            f"objects.",
            "Give an object for every example.",
        )
    return ((f"[{i}]", row) for i, row in enumerate(value))


def _json_lines(lines: Iterable[str], bad: list[str]) -> Iterator[Placed]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line.removesuffix("\n"))
        except json.JSONDecodeError as error:
            bad.append(f"line {number}: {error.msg} (column {error.colno})")
            continue
        if isinstance(value, dict):
            yield f":{number}", value
        else:
            bad.append(f"line {number}: no object")


# --- tables ---------------------------------------------------------------------------------------


def _separated(
    path: Path, lines: Iterator[str], bad: list[str], delimiter: str, header: bool, most: int | None
) -> Iterator[Placed]:
    """CSV, or TSV that may be quoted or not; without names where `column_names` knows them."""
    enough, plain = None if most is None else most + 1, False
    if delimiter == "\t":
        seen = list(islice(lines, enough))
        lines = chain(seen, lines)
        plain = _is_unquoted(seen)
    reader = csv.reader(
        lines,
        delimiter=delimiter,
        quoting=csv.QUOTE_NONE if plain else csv.QUOTE_MINIMAL,
        strict=True,
    )
    records = _numbered(reader)
    first = list(islice(records, enough))
    if not first:
        return
    names = [str(i) for i in range(len(first[0][1]))]
    if header:
        found = column_names([cells for _, cells in first])
        names = found or [name.strip() for name in first.pop(0)[1]]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(
            f"{path} has two columns of the same name: {', '.join(twice)}.",
            "Rename one of them in the first line.",
        )
    for number, cells in chain(first, records):
        if len(cells) == len(names):
            yield f":{number}", dict(zip(names, cells, strict=True))
        else:
            bad.append(f"line {number}: {len(cells)} fields, not {len(names)}")


def _numbered(reader: Any) -> Iterator[tuple[int, list[str]]]:
    """Each record with the number of its first line; empty lines are passed over."""
    start = 1
    for cells in reader:
        if cells:
            yield start, cells
        start = reader.line_num + 1


def _is_unquoted(lines: Iterable[str]) -> bool:
    """Whether quotes in a TSV file are part of the text, as in GLUE's files.

    So it is where every line has the same number of fields, and some field that begins with a quote
    is not quoted in the manner of CSV.
    """
    divided = [line.rstrip("\n").split("\t") for line in lines if line.strip()]
    if len({len(fields) for fields in divided}) > 1:
        return False
    fields = (field for line in divided for field in line if field.startswith('"'))
    return not all(_is_quoted(field) for field in fields)


def _is_quoted(field: str) -> bool:
    inner = field[1:-1]
    return len(field) > 1 and field.endswith('"') and '"' not in inner.replace('""', "")
