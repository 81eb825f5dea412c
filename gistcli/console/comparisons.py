"""A comparison, and the overview of a folder of runs, as people see them."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from gistcli.artifacts.comparison_sections import Section, percent, sections, source_lines, title_of
from gistcli.console.progress import duration
from gistcli.console.tables import make_table

TEXT = ("method", "over")
"""Columns that stand to the left."""
HEAD = 14
"""Characters after which the name of a column goes on in the next line."""


def show_comparison(console: Console, value: Mapping[str, Any], by_task: bool) -> None:
    """All tables (the best bold, what is published grey), then what has to be known of them."""
    console.print(escape(title_of(value)), soft_wrap=True)
    for section in sections(value, by_task):
        console.print(f"[italic]{escape(section.title)}[/]", soft_wrap=True)
        console.print(_table(section))
    for note in [*value["notes"], *source_lines(value)]:
        console.print(escape(f"- {note}"), soft_wrap=True)


def show_runs(console: Console, rows: Sequence[Mapping[str, Any]]) -> None:
    """One line a run or sweep."""
    cells = []
    for row in rows:
        figure, interval = "", row["interval"]
        if row["value"] is not None:
            low_high = [percent(row["metric"], bound) for bound in interval or ()]
            figure = percent(row["metric"], row["value"])
            figure += f" [{', '.join(low_high)}]" if low_high else ""
        seconds = "" if row["seconds"] is None else duration(row["seconds"])
        cells.append(
            [row["path"], row["method"], row["data"], row["metric"] or "", figure,
             row["parameters"], seconds, row["state"]]
        )  # fmt: skip
    names = ["run", "method", "data", "metric", "% [95 %]", "trained", "training", "state"]
    console.print(make_table("", names, cells))
    console.print("Compare some: gist compare RUN RUN ... [-o DIR]", soft_wrap=True, markup=False)


def _table(section: Section) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for name in section.columns:
        side: Any = "left" if name in TEXT else "right"
        head = "\n".join(textwrap.wrap(name, HEAD, break_long_words=False))
        table.add_column(escape(head), justify=side, overflow="fold")
    for line in section.lines:
        styles = ["bold" if i in line.best else "" for i in range(len(line.cells))]
        texts = [Text(cell, style) for cell, style in zip(line.cells, styles, strict=True)]
        table.add_row(*texts, style="bright_black" if line.published else None)
    return table
