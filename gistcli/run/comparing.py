"""`gist compare`: finished runs as one table, with paired differences and published figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gistcli.artifacts.comparison import write_comparison
from gistcli.atomic import require_writable
from gistcli.errors import NotFound, Refused, UnknownName, did_you_mean
from gistcli.reporting import SILENT, Reporter
from gistcli.run.ablating import GIST, ablation, gist_pairs
from gistcli.run.caveats import about_ablations, about_differences, about_rows
from gistcli.run.collecting import Entry, collect, listed, own_figure
from gistcli.run.pairing import Predictions, differences
from gistcli.run.rows import Row, build_rows, columns
from gistcli.run.tabulating import best_on_test, published_rows, row_figures

if TYPE_CHECKING:
    from gistcli.run.beside import Beside

PAIRED = "accuracy"
"""The metric that has paired differences: the mean of a 0 or 1 that the predictions hold."""


def compare(
    paths: Sequence[Path],
    *,
    metric: str | None = None,
    reference: str | None = None,
    published: bool = True,
    best_test: bool = False,
    paired: bool = True,
    beside: Beside | None = None,
    output: Path | None = None,
    reporter: Reporter = SILENT,
) -> dict[str, Any]:
    """One table of finished runs; nothing is trained, and no run measured again.

    Args:
        paths: run directories, folders that hold some, sweeps.
        metric: `SPLIT/NAME` of result.json; None for the runs' own figure, on test if all have it.
        reference: name of the row that the others are compared with; None for the first.
        published: show the figures that the runs' recipes stand for.
        best_test: show the best accuracy on test of all evaluations, too.
        paired: differences to the reference, which need the same examples in all runs.
        beside: the untuned network and a merged folder, measured where that was not done yet.
        output: folder for the tables and plots; None writes nothing.
        reporter: gets all talk.

    Returns:
        The JSON object of `gist compare`.

    Raises:
        GistError: what was asked is no run, lacks the metric or cannot be paired; then nothing was
            written.
    """
    if output is not None:
        require_writable(output, folder=True)
    collected = collect(paths)
    metric = metric or own_figure([entry.result for entry in collected.entries])
    _require_figures(collected.entries, paths, metric, best_test)
    split, _, name = metric.partition("/")
    notes, entries = list(collected.notes), collected.entries
    if beside is not None:
        from gistcli.run.beside import measured_beside  # loads the libraries of models

        entries = measured_beside(entries, beside, split, reporter)
    rows = build_rows(entries, notes)
    tasks, groups = columns(rows, notes)
    against = _reference(rows, reference)
    found, ablations = [], {}
    if paired and len(rows) > 1 and name == PAIRED:
        predictions = Predictions(rows, tasks, split, reporter)
        found = differences(rows, against, predictions, tasks, groups)
        if pairs := gist_pairs(rows):
            ablations = {GIST: ablation(pairs, predictions, tasks, groups)}
        predictions.finish()
    papers = published_rows(rows, metric, tasks, groups, notes) if published else []
    caveats = [
        *about_rows(rows, tasks, split),
        *about_differences(found, rows, metric),
        *about_ablations(ablations),
    ]
    value = {
        "metric": metric,
        "from": [str(path) for path in paths],
        "reference": against.name,
        "tasks": tasks,
        "groups": groups,
        "rows": [row_figures(row, metric, tasks, groups, best_test) for row in rows],
        "differences": found,
        "ablations": ablations,
        "published": papers,
        "files": {},
        "notes": list(dict.fromkeys([*notes, *caveats])),
    }
    if output is not None:
        value["files"] = write_comparison(output, value, _histories(rows, name))
    return value


def _require_figures(
    entries: Sequence[Entry], paths: Sequence[Path], metric: str, best_test: bool
) -> None:
    """Whether every run has what is to be shown."""
    if not entries:
        raise NotFound(
            f"No finished run in {listed([str(p) for p in paths])}.",
            "`gist compare` without an argument lists runs and what became of them.",
        )
    lacking = [e.path for e in entries if metric not in e.result["metrics"]]
    if lacking:
        known = set(entries[0].result["metrics"]).intersection(
            *(e.result["metrics"] for e in entries)
        )
        raise Refused(
            f"{metric!r} is not among the figures of {listed(lacking)}.",
            f"What all of these runs have: {did_you_mean(metric, known)}",
        )
    if best_test and not any(best_on_test(entry, metric) is not None for entry in entries):
        raise Refused(
            "None of these runs has looked for its best on test.",
            "Only runs with --set eval.best_test=true do.",
        )


def _reference(rows: Sequence[Row], name: str | None) -> Row:
    if name is None:
        return rows[0]
    by_name = {row.name: row for row in rows}
    if name not in by_name:
        raise UnknownName(f"There is no row {name!r}.", did_you_mean(name, by_name))
    return by_name[name]


def _histories(
    rows: Sequence[Row], name: str
) -> dict[str, dict[str, list[list[tuple[int, float]]]]]:
    """Task -> row -> for each run its (step, figure) on validation; what has none is left out."""
    curves: dict[str, dict[str, list[list[tuple[int, float]]]]] = {}
    for row in rows:
        for task, runs in row.tasks.items():
            series = [_series(entry, f"val/{name}") for entry in runs.values()]
            if any(series):
                curves.setdefault(task, {})[row.name] = [points for points in series if points]
    return curves


def _series(entry: Entry, key: str) -> list[tuple[int, float]]:
    records = entry.run.log.read()
    return [(int(r["step"]), float(r[key])) for r in records if r.get(key) is not None]
