"""Prefixes of held-out tasks as people see them: scores by start and step, and their order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from gistcli.console.progress import duration
from gistcli.console.tables import make_table

_VERDICTS = {"reversed": "the other way round"}


def show_orderings(console: Console, value: Mapping[str, Any]) -> None:
    """Both tables of `gist demo` on a hypernetwork."""
    rows = value["rows"]
    steps = max((list(row["scores"]) for row in rows), key=len)
    table = [[row["front"], *(_percent(row["scores"].get(step)) for step in steps)] for row in rows]
    title = f"{value['metric']} on {value['tasks']} held-out tasks, in %"
    columns = ["in front of a query", "as it is", *(f"{step} steps" for step in steps[1:])]
    console.print(make_table(title, columns, table))
    names = {row["key"]: row["front"] for row in rows}
    table = [
        [
            f"{names[one['above']]} > {names[one['below']]}",
            f"{one['steps']} steps" if one["steps"] else "as it is",
            f"{100 * one['difference']:+.1f}",
            "{:+.1f} to {:+.1f}".format(*(100 * bound for bound in one["interval"])),
            _VERDICTS.get(one["verdict"], one["verdict"]),
        ]
        for one in value["orderings"]
    ]
    columns = ["the paper's order", "tuned", "points", "95 % of tasks", ""]
    console.print(make_table("what is above what", columns, table))
    made = value["compressed"]
    console.print(
        f"one task: {made['source_tokens']:,} tokens of examples became {made['gists']} "
        f"({made['bytes']:,} bytes). One seed: a gap of some points can turn with another. "
        f"All of it took {duration(value['seconds'])}."
    )


def _percent(score: float | None) -> str:
    return "" if score is None else f"{100 * score:.1f}"
