"""What lies in a folder of runs: finished ones, unfinished ones, sweeps; nothing is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gistcli.artifacts.ledger import PLAN, Ledger
from gistcli.artifacts.rundir import RunDirectory
from gistcli.errors import GistError, NotFound
from gistcli.run.collecting import (
    listed,
    own_figure,
    runs_below,
    section,
    task_name,
    trained_parameters,
)

Row = dict[str, Any]


def overview(folder: Path = Path("runs")) -> list[Row]:
    """Runs and sweeps in a folder, the newest first.

    Returns:
        Objects with path, kind (run or sweep), state, method, data, metric, value, interval,
        parameters (trained ones without the head) and seconds; null where there is none. Of what
        cannot be read the state says why.

    Raises:
        NotFound: there is no such folder, or nothing in it.
    """
    if not folder.is_dir():
        raise NotFound(f"There is no folder {folder} here.", "`gist finetune` makes it.")
    places = list(runs_below(folder))
    if not places:
        raise NotFound(f"{folder} holds no runs.", "`gist finetune` makes some.")
    places.sort(key=lambda place: (-_changed(place), str(place)))
    return [_row(place) for place in places]


def _changed(place: Path) -> float:
    """When something was last written there, in seconds."""
    files = (PLAN, "runs", "recipe.yaml", "metrics.jsonl", "result.json")
    return max((place / name).stat().st_mtime for name in files if (place / name).exists())


def _row(place: Path) -> Row:
    sweep = (place / PLAN).is_file()
    empty = dict.fromkeys(("method", "data", "metric", "value", "interval", "parameters"))
    row = {"path": str(place), "kind": "sweep" if sweep else "run", "state": "", **empty}
    try:
        return {**row, "seconds": None, **(_sweep(place) if sweep else _run(place))}
    except GistError as error:
        return {**row, "seconds": None, "state": error.message}


def _run(place: Path) -> Row:
    run = RunDirectory(place)
    recipe = run.read_recipe()
    row: Row = {"method": section(recipe, "method").get("name"), "data": task_name(recipe)}
    if run.state != "complete":
        step = run.last_step()
        return {**row, "state": f"unfinished, step {step}" if step else "unfinished"}
    result = run.read_result()
    own = own_figure([result])
    metric = own if own in result["metrics"] else None
    return {
        "state": "complete",
        **row,
        "method": result.get("method") or row["method"],
        "metric": metric,
        "value": result["metrics"].get(metric),
        "interval": result["intervals"].get(metric),
        "parameters": trained_parameters(result),
        "seconds": result.get("seconds"),
    }


def _sweep(place: Path) -> Row:
    ledger = Ledger.open(place)
    done = [run for run in ledger.runs if ledger.done(run)]
    failed = [run for run in ledger.runs if ledger.failure(run) is not None]
    state = f"{len(done)} of {len(ledger.runs)} runs done"
    return {
        "state": f"{state}, {len(failed)} failed" if failed else state,
        "method": listed(list(dict.fromkeys(run.method for run in ledger.runs))),
        "data": listed(list(dict.fromkeys(run.task for run in ledger.runs if run.task))) or None,
    }
