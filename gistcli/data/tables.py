"""Rows of CSV, TSV, JSON and JSON-lines files, and which column is which."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gistcli.errors import DataError, RecipeError, did_you_mean

ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")

USUAL = {
    "image": ("image", "file", "filename", "file_name", "path", "filepath", "file_path", "img"),
    "label": ("label", "class", "target", "category", "labels", "class_name"),
    "split": ("split", "subset", "fold"),
    "group": ("group",),
}
"""Names under which a column is found without being told, the first match wins."""


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Inside, what keeps a list from being read becomes a DataError that says where."""
    try:
        yield
    except UnicodeDecodeError as error:
        hint = "Save it as UTF-8."
        raise DataError(f"{path} is not UTF-8 text (byte {error.start}).", hint) from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path} is not JSON: {error.msg} (line {error.lineno}, column {error.colno}).",
            "Repair it there, or copy it again.",
        ) from None
    except (csv.Error, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}.", "Repair it there.") from None
    except OSError as error:
        hint = "Check that it is a file that you may read."
        raise DataError(f"{path} cannot be read: {error.strerror}.", hint) from None


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a list as dictionaries.

    CSV and TSV have a header line. JSON is a list of objects, or one object {image: label}. JSON
    lines hold an object each.

    Raises:
        DataError: the file is damaged, empty, or of another form; says where.
    """
    ending = path.suffix.lower()
    with readable(path):
        text = path.read_text(encoding="utf-8-sig")
        if ending in (".csv", ".tsv"):
            rows = _csv_rows(text, "," if ending == ".csv" else "\t")
        elif ending == ".json":
            rows = _json_rows(json.loads(text))
        else:
            rows = _line_rows(text)
    if not rows or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{path} holds no rows of named columns.", "See `data.columns`.")
    return rows


def _csv_rows(text: str, delimiter: str) -> list[dict[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows = []
    for row in reader:
        if None in row or None in row.values():
            raise ValueError(f"line {reader.line_num} has another number of fields than the header")
        rows.append({str(key).strip(): value.strip() for key, value in row.items()})
    return rows


def _line_rows(text: str) -> list[Any]:
    rows = []
    # not splitlines: JSON text may hold other line separators
    for number, line in enumerate(text.split("\n"), 1):
        try:
            rows += [json.loads(line)] if line.strip() else []
        except json.JSONDecodeError as error:
            raise ValueError(f"line {number} is not JSON: {error.msg}") from None
    return rows


def _json_rows(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, dict) and not any(isinstance(v, dict | list) for v in value.values()):
        return [{"image": image, "label": label} for image, label in value.items()]
    if isinstance(value, list):
        return value
    raise ValueError("wanted a list of objects, or one object {image: label}")


def find_columns(
    present: Sequence[str], chosen: Mapping[str, str] | None, group_by: str | None, where: str
) -> dict[str, str]:
    """Role (image, label, split, group) -> column; split and group only where there are any.

    Raises:
        RecipeError: `data.columns` or `data.group_by` names what is not there, or no column is
            known to hold the image or the label.
    """
    asked = dict(chosen or {})
    if group_by:
        asked["group"] = group_by
    for role, column in asked.items():
        if role not in USUAL:
            raise RecipeError(f"data.columns: {role!r} is no role.", did_you_mean(role, USUAL))
        if column not in present:
            raise RecipeError(
                f"{where} has no column {column!r} ({role}).", did_you_mean(column, present)
            )
    lower = {column.lower(): column for column in reversed(present)}
    for role in ("image", "label", "split"):
        usual = next((lower[name] for name in USUAL[role] if name in lower), None)
        if role not in asked and usual is not None:
            asked[role] = usual
    lacking = [role for role in ("image", "label") if role not in asked]
    if lacking:
        raise RecipeError(
            f"{where}: which column holds the {' and the '.join(lacking)}? It has "
            f"{', '.join(present)}.",
            f"Say it: data.columns.{lacking[0]}=NAME.",
        )
    return asked


def as_label(value: Any) -> str | None:
    """A class name from a cell: text, a whole number or a truth value; None where it is empty.

    Raises:
        ValueError: a fraction, a list or the like, which is no class.
    """
    if value is None or value == "":
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, str | int):
        raise ValueError(f"{value!r} is no class")
    return str(value).strip() or None
