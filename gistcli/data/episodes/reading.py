"""Task files to tasks: Super-NaturalInstructions, P3's JSON lines, and whatever `data.text` reads.

A task's file holds its pairs; a column `task` divides one that holds several tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from gistcli.data.base import some
from gistcli.data.episodes.natural import open_natural, read_natural
from gistcli.data.episodes.pairs import as_items, with_options
from gistcli.data.episodes.tasks import Item, Task, prefix
from gistcli.data.text.formats import find_schema, has_header
from gistcli.data.text.options import TextOptions
from gistcli.data.text.reading import Prompt, Reader
from gistcli.data.text.records import ENDINGS as TEXT_ENDINGS
from gistcli.data.text.records import SHOWN, Row, read_rows
from gistcli.errors import DataError, RecipeError, did_you_mean

ENDINGS = tuple(ending for ending in TEXT_ENDINGS if ending != ".txt")
"""What a task's file is called; text files are lists of names, or documents."""


def read_tasks(path: Path, options: TextOptions) -> tuple[list[Task], list[str]]:
    """The tasks of a file, and warnings.

    Labelled rows have the classes of their task as options; prompts with completions have the
    options of their own column, else the answers of the task where these are few
    (`MOST_OPTIONS`). Both sides are stripped of blanks, and answers of `<|endoftext|>`.

    Args:
        path: of the file; its stem is the name of a task without a column `task`.
        options: the recipe's for text: columns, format, replacements, and whether to skip what
            cannot be used.

    Raises:
        NotFound: there is no such file.
        DataError: damaged, empty, or rows that cannot be used; the first few are named.
        RecipeError: columns or formats that are not there, or doubt among formats.
    """
    natural = open_natural(path)
    if natural is not None:
        task, warnings = read_natural(path, natural, options)
        return [task], warnings
    skipped: list[str] | None = [] if options.skip else None
    rows = read_rows(path, header=has_header(options.columns), skipped=skipped)
    warnings = [f"{path.name}: {some(skipped, 'line', shown=SHOWN)} left out"] if skipped else []
    tasks = []
    for name, members in _by_task(path, rows, options.columns):
        where = str(path) if name == path.stem else f"{path} ({name})"
        items, notes = _read_rows(members, where, options)
        tasks.append(Task(name, prefix(name), with_options(items)))
        warnings += notes
    return tasks, warnings


def _by_task(
    path: Path, rows: Sequence[Row], columns: Mapping[str, str]
) -> Iterator[tuple[str, list[Row]]]:
    """Name of a task and its rows, by the column of tasks where there is one."""
    column = columns.get("task", "task")
    bare = [row.origin for row in rows if row.values.get(column) in (None, "")]
    if len(bare) == len(rows):
        if "task" in columns:
            present = {key for row in rows for key in row.values}
            raise RecipeError(
                f"{path} has no column {column!r} (task).", did_you_mean(column, present)
            )
        yield path.stem, [*rows]
        return
    if bare:
        raise DataError(
            f"{path}: {some(bare, 'row', shown=SHOWN)} without a task ({column}).",
            "Name the task of every row, or of none.",
        )

    def key(row: Row) -> str:
        return str(row.values[column])

    for name, members in groupby(sorted(rows, key=key), key):
        yield name, [*members]


def _read_rows(
    rows: Sequence[Row], where: str, options: TextOptions
) -> tuple[tuple[Item, ...], list[str]]:
    columns = {role: column for role, column in options.columns.items() if role != "task"}
    schema = find_schema(rows, where, columns=columns, format=options.format)
    # what is not asked for is Alpaca's rows without a template: the episode has one of its own
    shape: Prompt | None = "alpaca" if options.prompt == "alpaca" else None
    reader = Reader(schema, shape, options.replace, skip=options.skip)
    examples, notes = reader.read(rows, where)
    return as_items(examples, where, options.skip, notes), notes
