"""`open_texts`: from `data.path` to examples in splits, whatever kind of file lies there."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gistcli.data.base import (
    Catalog,
    DataOptions,
    Found,
    Record,
    class_order,
    some,
)
from gistcli.data.fetch import hub_name
from gistcli.data.splits import settle_splits
from gistcli.data.text.enough import Enough
from gistcli.data.text.examples import Example, Labelled, as_bytes
from gistcli.data.text.formats import Schema, find_schema, has_header, holds_values
from gistcli.data.text.options import TextOptions
from gistcli.data.text.reading import Prompt, Reader
from gistcli.data.text.records import ENDINGS, SHOWN, Row, find_rows
from gistcli.data.twins import leaking_groups
from gistcli.errors import DataError, NotFound, RecipeError, did_you_mean


@dataclass(frozen=True)
class Stored:
    """An example in the place of an encoded picture."""

    example: Example

    @property
    def nbytes(self) -> int:
        """Length of its content."""
        return len(self.read())

    def read(self) -> bytes:
        """Its content, without its origin."""
        return as_bytes(self.example)


def examples_of(catalog: Catalog, split: str) -> list[Example]:
    """The examples of a split of a catalog that `open_texts` made."""
    stored = [record.source for record in catalog.splits[split]]
    return [source.example for source in stored if isinstance(source, Stored)]


def open_texts(
    data: DataOptions,
    options: TextOptions,
    *,
    base: Path,
    task: str | None = None,
    templated: bool = False,
    pinned: Path | None = None,
    whole: bool = False,
    enough: Enough | None = None,
) -> Catalog:
    """Finds the examples, their classes and their splits; nothing is encoded.

    Names of examples are their places in the data (`train.jsonl:12`). There are classes for
    classification only.

    Args:
        data: the recipe's section.
        options: its keys for text.
        base: what relative paths start from.
        task: classification, regression, causal_lm or seq2seq; None goes by the data.
        templated: whether there is a chat template, for `prompt: auto`.
        pinned: a `splits.csv` whose splits must be reproduced; rules and shots are not applied.
        whole: divide nothing, for evaluation: splits as found, a file alone is all `test`.
        enough: rows behind which nothing is read; None reads everything.

    Raises:
        NotFound: there is nothing of that path or name.
        DataError: what is there cannot be used; the first few bad rows are named.
        RecipeError: columns, formats or splits that are not there, or doubt among formats.
    """
    place = _place(data.path, base)
    name = place.replace("/", "-") if isinstance(place, str) else place.resolve().stem
    rows, warnings = find_rows(
        place,
        data.splits,
        header=has_header(options.columns),
        skip=options.skip,
        limit=None if enough is None else lambda present: enough.rows(present, data),
    )
    groups = None if data.group_by is None else _groups(rows, data.group_by, name)
    found = _examples(rows, options, name, task, templated, groups)
    found.warnings[:0] = warnings
    found.notes[:0] = [] if enough is None else enough.notes(rows, data)
    splits = settle_splits(found, data, found.warnings, pinned=pinned, whole=whole)
    labels = [record.label for records in splits.values() for record in records]
    classes = class_order(labels) if any(labels) else []
    found.warnings += _twins(splits)
    return Catalog(name, classes, splits, found.notes, found.warnings)


def read_unanswered(
    path: Path, options: TextOptions, *, task: str, templated: bool = False
) -> list[Example]:
    """Examples to predict on, whose answers may be missing; rows of all splits in a folder.

    Args:
        path: of a file or folder.
        options: of the recipe that the model was trained with.
        task: that the model was trained for.
        templated: whether there is a chat template, for `prompt: auto`.

    Raises:
        NotFound, DataError, RecipeError: as `open_texts`.
    """
    if not path.exists():
        raise NotFound(f"{path} does not exist.", "Give a file with prompts or texts.")
    rows, _ = find_rows(path, header=has_header(options.columns))
    found: list[Example] = []
    for split, members in rows.items():
        where = f"{path} {split}" if len(rows) > 1 else str(path)
        schema = find_schema(
            members, where, columns=options.columns, format=options.format, task=task,
            answered=False,
        )  # fmt: skip
        prompt, numeric = _prompt(options, schema, templated), task == "regression"
        reader = Reader(schema, prompt, numeric=numeric, answered=False)
        found += reader.read(members, where)[0]
    return found


def _prompt(options: TextOptions, schema: Schema, templated: bool) -> Prompt | None:
    """How Alpaca rows are put; None where nothing is said and nothing has to be."""
    if options.prompt != "auto":
        return options.prompt
    if schema.format != "alpaca":
        return None
    return "chat" if templated else "alpaca"


def _examples(
    rows: Mapping[str, Sequence[Row]],
    options: TextOptions,
    name: str,
    task: str | None,
    templated: bool,
    groups: Mapping[str, str] | None,
) -> Found:
    """Records by split, all in the format of the first.

    Args:
        rows: by split.
        options: for text.
        name: of the data.
        task: see `open_texts`.
        templated: see `open_texts`.
        groups: of the rows, by their origin.
    """
    found = Found({})
    first, *_ = rows
    schema = find_schema(
        rows[first], f"{name} {first}", columns=options.columns, format=options.format, task=task
    )
    prompt = _prompt(options, schema, templated)
    numeric = task == "regression"
    if task is None and holds_values(rows[first], schema):
        numeric = True
        found.notes.append(
            "labels are numbers, not all of them whole, so they are values: task.type regression "
            "(as classes: task.type=classification)"
        )
    for split, members in rows.items():
        where = f"{name} {split}" if len(rows) > 1 else name
        # a public test set may lack the column of labels
        answered = schema.format != "labelled" or split == first
        reader = Reader(
            schema, prompt, options.replace, numeric=numeric, answered=answered, skip=options.skip
        )
        examples, notes = reader.read(members, where)
        found.notes += notes
        records = _records(examples, where, found.warnings, groups or {})
        if records:
            found.splits[split] = records
    return found


def _place(asked: str, base: Path) -> Path | str:
    """An existing path, else a name on the hub."""
    path = base / os.path.expanduser(asked)
    if path.exists():
        return path
    looks_local = path.suffix.lower() in ENDINGS or asked.startswith((".", "/", "~"))
    name = None if looks_local else hub_name(asked)
    if name is None:
        raise _missing(asked, path)
    return name


def _missing(asked: str, path: Path) -> NotFound:
    near = os.listdir(path.parent) if path.parent.is_dir() else []
    hint = did_you_mean(path.name, near) if len(near) < 30 else ""
    if not near and asked.count("/") == 2 and not asked.startswith((".", "/", "~")):
        hint = f"A configuration of a data set of the hub is hf:{asked}."
    return NotFound(f"data.path: {asked} does not exist ({path}).", hint)


def _groups(rows: Mapping[str, Sequence[Row]], column: str, name: str) -> dict[str, str]:
    """Origin of a row -> what its column of groups holds."""
    members = [row for part in rows.values() for row in part]
    present = {key for row in members for key in row.values}
    if column not in present:
        raise RecipeError(
            f"{name} has no column {column!r} (data.group_by).", did_you_mean(column, present)
        )
    bare = [row.origin for row in members if row.values.get(column) in (None, "")]
    if bare:
        raise DataError(
            f"{name}: {some(bare, 'row', shown=SHOWN)} without a group ({column}).",
            "Give each its own where it belongs to none.",
        )
    return {row.origin: str(row.values[column]) for row in members}


def _records(
    examples: Sequence[Example], where: str, warnings: list[str], groups: Mapping[str, str]
) -> list[Record]:
    """Records of a split; one without any label, as public test sets are, is left out."""
    labelled = [e for e in examples if isinstance(e, Labelled)]
    bare = [e.origin for e in labelled if e.label is None]
    if bare and len(bare) == len(labelled):
        warnings.append(f"{where} has no labels: left out")
        return []
    if bare:
        raise DataError(
            f"{where}: {some(bare, 'row', shown=SHOWN)} without a label.",
            "Label or remove them; a split without any label is left out.",
        )
    return [Record(e.origin, _class(e), Stored(e), groups.get(e.origin)) for e in examples]


def _class(example: Example) -> str:
    label = example.label if isinstance(example, Labelled) else ""
    return label if isinstance(label, str) else ""


def _twins(splits: dict[str, list[Record]]) -> list[str]:
    """Warnings on examples, and on groups, that stand in two splits."""
    where: dict[bytes, dict[str, str]] = defaultdict(dict)
    for split, records in splits.items():
        for record in records:
            where[record.read()].setdefault(split, record.name)
    twins = [" = ".join(names.values()) for names in where.values() if len(names) > 1]
    groups = leaking_groups(splits)
    warnings = []
    if twins:
        warnings.append(
            f"{some(twins, 'example', shown=10)} in two splits with the same content: "
            f"figures on them are too good"
        )
    if groups:
        warnings.append(f"{some(groups, 'group', shown=10)} with members in two splits")
    return warnings
