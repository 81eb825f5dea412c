"""Tables and trees of plain values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.tree import Tree


def make_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """A table whose columns of numbers stand to the right."""
    table = Table(title=escape(title) or None, title_justify="left", box=box.SIMPLE_HEAD)
    for i, name in enumerate(columns):
        numbers = all(isinstance(row[i], int | float) or row[i] in ("", None) for row in rows)
        table.add_column(escape(name), justify="right" if numbers and rows else "left",
                         overflow="fold")  # fmt: skip
    for row in rows:
        table.add_row(*(escape(shown(cell)) for cell in row))
    return table


def make_tree(title: str, value: Mapping[str, object]) -> Tree:
    """A mapping of mappings and values as a tree, without what is null or empty."""
    tree = Tree(f"[bold]{escape(title)}[/]")
    _grow(tree, value)
    return tree


def _grow(tree: Tree, value: Mapping[str, object]) -> None:
    for key, inner in value.items():
        if inner is None or inner in ("", [], {}):
            continue
        if isinstance(inner, Mapping):
            _grow(tree.add(f"[bold]{escape(str(key))}[/]"), inner)
        elif isinstance(inner, list) and any(isinstance(i, Mapping) for i in inner):
            branch = tree.add(f"[bold]{escape(str(key))}[/]")
            for item in inner:
                branch.add(escape(_item(item)))
        else:
            tree.add(f"{escape(str(key))}  [cyan]{escape(shown(inner))}[/]")


def _item(value: object) -> str:
    if isinstance(value, Mapping):
        return "  ".join(f"{k} {shown(v)}" for k, v in value.items())
    return shown(value)


def shown(value: object) -> str:
    """A cell: thousands separated, four digits of a fraction, nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(shown(v) for v in value)
    return str(value)
