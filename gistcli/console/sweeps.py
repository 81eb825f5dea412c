"""Sweeps as people see them: what was chosen, the figures by task and method, what failed."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape

from gistcli.console.progress import duration
from gistcli.console.tables import make_table, shown

_MANY = 40


def show_sweep(console: Console, value: Mapping[str, Any]) -> None:
    """The state of a ledger."""
    if value["chosen"]:
        columns = ["task", "method", "chosen", "validation", "tried", "failed"]
        rows = [[_task(c), c["method"], _point(c["point"]), c["value"], c["tried"], c["failed"]]
                for c in value["chosen"]]  # fmt: skip
        metric = value["chosen"][0]["metric"]
        _table(console, f"Chosen by {metric}; test was not looked at for it", columns, rows)
    rows = list(_figures([r for r in value["results"] if r["role"] == "final"]))
    if rows:
        named = {r.get("figure", "accuracy") for r in value["results"]}
        figure = named.pop() if len(named) == 1 else "figure"
        columns = ["task", "method", "seeds", figure, "deviation", "training"]
        _table(console, "Final runs: mean over seeds", columns, rows)
    for failed in value["failed"]:
        console.print(
            f"[bold red]failed:[/] {escape(failed['id'])}: {escape(failed['message'])}",
            soft_wrap=True,
        )
    parts = [f"{value['done']:,} of {value['runs']:,} runs done"]
    parts += [f"{value[key]:,} {key}" for key in ("left",) if value[key]]
    parts += [f"{len(value['failed']):,} failed"] if value["failed"] else []
    console.print(f"{', '.join(parts)}: {escape(value['sweep'])}", soft_wrap=True)
    if value["next"]:
        console.print("\n[bold]Next[/]")
    for command in value["next"]:
        console.print(f"  [green]{escape(command)}[/]", soft_wrap=True)


def show_plan(console: Console, value: Mapping[str, Any]) -> None:
    """What a sweep would do."""
    columns = ["task", "method", "configurations", "candidates", "seeds", "runs", "left", "time"]
    rows = [[_task(r), r["method"], r["configurations"], r["candidates"], len(r["seeds"]),
             r["runs"], r["left"], _time(r["hours"])] for r in value["plan"]]  # fmt: skip
    _table(console, "", columns, rows)
    total = f"{value['runs']:,} runs, {value['left']:,} of them left"
    if value["hours"] is not None:
        total += f", about {duration(3600 * value['hours'])}"
    console.print(total)
    if value["basis"]:
        console.print(f"An estimate from {escape(value['basis'])}.", soft_wrap=True)


def _table(
    console: Console, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]
) -> None:
    console.print(make_table(title, columns, rows[:_MANY]))
    if len(rows) > _MANY:
        console.print(f"and {len(rows) - _MANY} more: --json shows all")


def _task(row: Mapping[str, Any]) -> str:
    return str(row["task"] or row.get("recipe") or "")


def _point(point: Mapping[str, Any] | None) -> str:
    if point is None:
        return "nothing: all failed"
    return ", ".join(f"{key}={shown(value)}" for key, value in point.items()) or "the recipe's"


def _time(hours: float | None) -> str:
    return "unknown" if hours is None else duration(3600 * hours)


def _figures(results: Sequence[Mapping[str, Any]]) -> Iterator[list[object]]:
    """A row for each recipe, task and method: its figure on test, or val where there is no test."""
    cells: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for result in results:
        key = (result["recipe"], result["task"] or "", result["method"])
        cells.setdefault(key, []).append(result)
    for (recipe, task, method), runs in cells.items():
        name = runs[0].get("figure", "accuracy")
        names = [f"{split}/{name}" for split in ("test", "val")]
        found = [next((r["metrics"][n] for n in names if n in r["metrics"]), None) for r in runs]
        values = [v for v in found if v is not None]
        seconds = duration(statistics.fmean(r["seconds"] for r in runs))
        yield [
            task or recipe,
            method,
            len(runs),
            statistics.fmean(values) if values else None,
            statistics.stdev(values) if len(values) > 1 else None,
            seconds,
        ]
