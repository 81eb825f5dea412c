"""The files of a comparison: Markdown, CSV, LaTeX, JSON, and two plots."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from csv import writer
from pathlib import Path
from typing import Any

from gistcli import atomic
from gistcli.artifacts.comparison_sections import Value, is_rate, summary_name, title_of
from gistcli.artifacts.comparison_text import latex, markdown
from gistcli.evaluate.comparison_plots import (
    Curves,
    Dot,
    plot_learning_curves,
    plot_over_parameters,
)

CSV_COLUMNS = (
    "row", "published", "over", "name", "metric", "mean", "deviation", "interval_low",
    "interval_high", "seeds", "examples", "parameters", "head", "seconds", "peak_memory_bytes",
    "tried", "reference", "difference", "difference_low", "difference_high",
    "with_seeds_low", "with_seeds_high", "runs",
)  # fmt: skip
"""One line a row and task, group or mean; rates and differences as fractions."""


def write_comparison(
    folder: Path, value: Value, curves: Mapping[str, Mapping[str, Curves]]
) -> dict[str, str]:
    """Write all files of a comparison; each says from which runs it was made.

    The same runs give the same bytes. `curves.png` is left out where no run was validated during
    training, and the plot over parameters where no row has its mean or its counts.

    Args:
        folder: made where it is absent; other files in it are left alone.
        value: the JSON object of `gist compare`.
        curves: task -> row -> for each run the (step, figure) on validation.

    Returns:
        Name -> path of what was written.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    texts = {"table.md": markdown(value), "table.csv": tidy_csv(value), "table.tex": latex(value)}
    for name, text in texts.items():
        atomic.write_text(folder / name, text)
    atomic.write_json(folder / "table.json", {k: v for k, v in value.items() if k != "files"})
    written = [*texts, "table.json"]
    rate = is_rate(value["metric"])
    on_validation = f"val/{value['metric'].partition('/')[2]}"
    dots = list(_dots(value))
    if dots:
        written.append("accuracy-over-parameters.png")
        plot_over_parameters(
            dots,
            folder / written[-1],
            title=f"{title_of(value)}\n{_bars(value)}",
            metric=_summary_name(value),
            rate=rate,
        )
    if curves:
        written.append("curves.png")
        plot_learning_curves(
            curves,
            [row["name"] for row in value["rows"]],
            folder / written[-1],
            title=f"{title_of({**value, 'metric': on_validation})}; bands: range over seeds",
            metric=on_validation,
            rate=rate,
        )
    return {name: str(folder / name) for name in written}


# --- CSV --------------------------------------------------------------------------------------


def tidy_csv(value: Value) -> str:
    """One line a row and task, group or mean, every figure in full."""
    text = io.StringIO()
    out = writer(text, lineterminator="\n")
    out.writerow(CSV_COLUMNS)
    against = {one["row"]: one for one in value["differences"]}
    for row in value["rows"]:
        common = {
            "row": row["name"],
            "parameters": _middle(row["parameters"]),
            "head": _middle(row["head"]),
            "seconds": _middle(row["seconds"]),
            "peak_memory_bytes": _middle(row["peak_memory_bytes"]),
            "runs": "; ".join(row["runs"]),
        }
        for over, name, cell in _cells(row):
            difference = _difference(against.get(row["name"]), over, name)
            out.writerow(_record({**common, **_figure(cell), **difference}, over, name, value))
    for pair in (one for found in value["ablations"].values() for one in found["pairs"]):
        for over, name, _ in _cells(pair):
            difference = _difference(pair, over, name)
            out.writerow(_record({"row": pair["row"], **difference}, over, name, value))
    for one in value["published"]:
        common = {"row": one["row"], "published": 1, "parameters": _middle(one["parameters"])}
        for over, name, figure in _cells(one):
            out.writerow(_record({**common, "mean": figure}, over, name, value))
    return text.getvalue()


def _record(cells: Mapping[str, Any], over: str, name: str, value: Value) -> list[Any]:
    known = {"published": 0, **cells, "over": over, "name": name, "metric": value["metric"]}
    return [known.get(column) for column in CSV_COLUMNS]


def _cells(row: Value) -> Iterator[tuple[str, str, Any]]:
    """(over, name, figure) of everything that a row has."""
    yield from (("task", name, cell) for name, cell in row["tasks"].items())
    yield from (("group", name, cell) for name, cell in row["groups"].items())
    yield from ((key, "", row[key]) for key in ("mean_of_groups", "mean_of_tasks") if row[key])


def _figure(cell: Value) -> dict[str, Any]:
    low, high = cell.get("interval") or (None, None)
    return {
        "mean": cell["mean"],
        "deviation": cell["deviation"],
        "interval_low": low,
        "interval_high": high,
        "seeds": len(cell["values"]) if "values" in cell else None,
        "examples": cell.get("examples"),
        "tried": cell.get("tried"),
        **({"runs": "; ".join(cell["runs"])} if "runs" in cell else {}),
    }


def _difference(one: Value | None, over: str, name: str) -> dict[str, Any]:
    if one is None:
        return {}
    places = {"task": "tasks", "group": "groups"}
    cell = one[places[over]].get(name) if over in places else one[over]
    if not cell:
        return {}
    low, high = cell["interval_with_seeds"] or (None, None)
    return {
        "reference": one["reference"],
        "difference": cell["mean"],
        "difference_low": cell["interval"][0],
        "difference_high": cell["interval"][1],
        "with_seeds_low": low,
        "with_seeds_high": high,
    }


def _middle(span: Mapping[str, float] | None) -> float | None:
    return None if span is None else span["mean"]


# --- plots ------------------------------------------------------------------------------------


def _summary(row: Value, value: Value) -> Any:
    """The one figure of a row: of its only task, else the mean of groups, else that of tasks."""
    if len(value["tasks"]) == 1:
        return row["tasks"].get(value["tasks"][0])
    return row["mean_of_groups"] if value["groups"] else row["mean_of_tasks"]


def _summary_name(value: Value) -> str:
    if len(value["tasks"]) == 1:
        return f"{value['metric']} on {value['tasks'][0]}"
    key = "mean_of_groups" if value["groups"] else "mean_of_tasks"
    return f"{value['metric']}, {summary_name(value, key)}"


def _dots(value: Value) -> Iterator[Dot]:
    for row in value["rows"]:
        cell = _summary(row, value)
        if cell and row["parameters"]:
            yield Dot(row["name"], row["parameters"]["mean"], cell["mean"], _error(cell))
    for one in value["published"]:
        figure = _summary(one, value)
        if figure is not None and one["parameters"]:
            name = f"published: {one['row']}"
            yield Dot(name, one["parameters"]["mean"], figure, published=True)


def _error(cell: Value) -> float | None:
    """Half the height of a bar: the deviation over seeds, else half the interval of one run."""
    if cell["deviation"] is None and cell.get("interval"):
        low, high = cell["interval"]
        return float(high - low) / 2
    return cell["deviation"]


def _bars(value: Value) -> str:
    cells = [cell for row in value["rows"] if (cell := _summary(row, value))]
    if any(cell["deviation"] is not None for cell in cells):
        return "bars: standard deviation over seeds"
    if any(cell.get("interval") for cell in cells):
        return "bars: 95 % interval of one run"
    return "one seed, so no bars"
