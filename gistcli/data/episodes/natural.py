"""Super-NaturalInstructions: a task a file, with its definition and exemplary pairs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gistcli.data.episodes.pairs import as_items, with_options
from gistcli.data.episodes.tasks import Item, Task, prefix
from gistcli.data.tables import readable
from gistcli.data.text.formats import Schema
from gistcli.data.text.options import TextOptions
from gistcli.data.text.reading import Reader
from gistcli.data.text.records import Row
from gistcli.errors import DataError

_INSTANCES = "Instances"


def open_natural(path: Path) -> dict[str, Any] | None:
    """The object of a file of Super-NaturalInstructions; None for other files."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return None
    with readable(path):
        text = path.read_text(encoding="utf-8-sig")
        if f'"{_INSTANCES}"' not in text:
            return None
        value = json.loads(text)
    return value if isinstance(value, dict) and _INSTANCES in value else None


def read_natural(path: Path, value: dict[str, Any], options: TextOptions) -> tuple[Task, list[str]]:
    """The task of such a file, and warnings.

    Args:
        path: of the file.
        value: what it holds.
        options: the recipe's for text.

    Raises:
        DataError: no instances, or some that cannot be used.
    """
    instances, others = _rows(path, value, _INSTANCES)
    items, notes = _pairs(path, instances, options)
    exemplary, _ = _rows(path, value, "Positive Examples")
    positive, more = _pairs(path, exemplary, options) if exemplary else ((), [])
    items = tuple(replace(item, others=others.get(item.origin, ())) for item in items)
    task = Task(
        path.stem,
        _category(value) or prefix(path.stem),
        with_options(items),
        positive,
        " ".join(map(str, _listed(value.get("Definition", [])))).strip(),
    )
    return task, [*notes, *more]


def _pairs(
    path: Path, rows: Sequence[Row], options: TextOptions
) -> tuple[tuple[Item, ...], list[str]]:
    schema = Schema("completion", {"prompt": "input", "completion": "output"})
    examples, notes = Reader(schema, None, options.replace, skip=options.skip).read(rows, str(path))
    return as_items(examples, str(path), options.skip, notes), notes


def _rows(
    path: Path, value: dict[str, Any], key: str
) -> tuple[list[Row], dict[str, tuple[str, ...]]]:
    """Rows {input, output} with the first answer, and by their origin the further ones."""
    listed = value.get(key, [])
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise DataError(f"{path}: {key} is no list of objects.", "Give [{input, output}, ...].")
    if not listed and key == _INSTANCES:
        raise DataError(f"{path} has no {key}.", "Remove it, or give a file with some.")
    rows, others = [], {}
    for i, one in enumerate(listed):
        origin = f"{path.name}[{i}]" if key == _INSTANCES else f"{path.name} {key}[{i}]"
        answers = [*_listed(one.get("output", ""))] or [""]
        rows.append(Row({"input": one.get("input", ""), "output": answers[0]}, origin))
        others[origin] = tuple(str(answer).strip() for answer in answers[1:])
    return rows, others


def _category(value: dict[str, Any]) -> str:
    categories = _listed(value.get("Categories", []))
    return str(categories[0]).strip() if categories else ""


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
