"""From paths to finished final runs: run directories, folders that hold some, and sweeps."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gistcli.artifacts.ledger import PLAN, Ledger, PlannedRun, find_ledger
from gistcli.artifacts.rundir import RunDirectory, no_run
from gistcli.errors import NotFound, Refused

Seeds = tuple[int, int, int]
SEED_KEYS = ("seed", "data.shot_seed", "data.split_seed")
"""Keys in which the runs of one row may differ."""
FIGURE = "accuracy"
"""What runs are measured by that do not say."""
_NAMED = 5


@dataclass(frozen=True)
class Entry:
    """A finished final run, as a table needs it.

    Attributes:
        run: its directory, as the user named it or the folder around it.
        recipe: resolved, as plain data.
        result: of result.json.
        ledger, planned: the sweep that it belongs to, and what was planned there.
        tried: configurations that were compared for it; None outside a sweep, where nobody knows.
    """

    run: RunDirectory
    recipe: dict[str, Any]
    result: dict[str, Any]
    ledger: Ledger | None = None
    planned: PlannedRun | None = None
    tried: int | None = None

    @property
    def path(self) -> str:
        """Of the run directory."""
        return str(self.run.path)

    @property
    def label(self) -> str:
        """How the method calls itself."""
        return str(self.result.get("method") or section(self.recipe, "method").get("name"))

    @property
    def task(self) -> str:
        """The task's name; that of the data where it has none."""
        return task_name(self.recipe)

    @property
    def group(self) -> str | None:
        """The task's group."""
        return section(self.recipe, "task").get("group")

    @property
    def seeds(self) -> Seeds:
        """Values of SEED_KEYS."""
        data = section(self.recipe, "data")
        return self.recipe.get("seed", 0), data.get("shot_seed", 0), data.get("split_seed", 0)

    def fingerprint(self, split: str) -> str | None:
        """The hash of a split's examples; None where the run has none."""
        return (self.result.get("data_fingerprints") or {}).get(split)


@dataclass
class Collected:
    """Runs in the order of the request, and what was left out."""

    entries: list[Entry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def section(recipe: dict[str, Any], name: str) -> dict[str, Any]:
    """A section of a recipe; empty where an older run has none."""
    return recipe.get(name) or {}


def task_name(recipe: dict[str, Any]) -> str:
    """`task.name`, else the subset or the last part of the path of the data."""
    data = section(recipe, "data")
    named = section(recipe, "task").get("name") or data.get("subset")
    return str(named or Path(str(data.get("path", "data"))).name)


def own_figure(results: Sequence[Mapping[str, Any]]) -> str:
    """`SPLIT/NAME` of what all runs are measured by: on test where all have that, else val.

    Accuracy where they name nothing else that all of them have.
    """
    named = {str(result.get("figure", FIGURE)) for result in results}
    for name in (named.pop() if len(named) == 1 else FIGURE, FIGURE):
        for split in ("test", "val"):
            if all(f"{split}/{name}" in result["metrics"] for result in results):
                return f"{split}/{name}"
    return f"test/{FIGURE}"


def trained_parameters(result: dict[str, Any]) -> int | None:
    """Those of method and gist token, without the head; None where a result does not say."""
    counts = result.get("parameters")
    return counts.get("method", 0) + counts.get("gist", 0) if counts else None


def collect(paths: Sequence[Path]) -> Collected:
    """All finished final runs below the paths, each once.

    A run that was named itself has to be finished; one in a folder or a sweep that is not is left
    out with a note. Candidates of a sweep are left out: they only count.

    Raises:
        NotFound: a path does not exist, holds no run, or is a run that was not finished.
        Refused: a candidate was named.
        WeightsError: a result or a recipe cannot be read.
    """
    collected, seen = Collected(), set()
    for path in paths:
        for entry in _below(Path(path), collected.notes):
            place = entry.run.path.resolve()
            if place not in seen:
                seen.add(place)
                collected.entries.append(entry)
    return collected


def runs_below(folder: Path) -> Iterator[Path]:
    """Folders of sweeps and of runs at any depth, by name; nothing inside them is looked at."""
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if PLAN in files or "recipe.yaml" in files:
            folders.clear()
            yield Path(place)


def _below(path: Path, notes: list[str]) -> Iterator[Entry]:
    if not path.is_dir():
        RunDirectory.open(path)  # says what is there instead
    if (path / "recipe.yaml").is_file():
        yield _named(path)
    elif (path / PLAN).is_file():
        yield from _finals(Ledger.open(path), notes)
    elif (ledger := find_ledger(path / "run")) is not None:  # the folder of its runs
        yield from _finals(ledger, notes)
    else:
        yield from _inside(path, notes)


def _named(path: Path) -> Entry:
    """A run that the user named."""
    run, ledger = RunDirectory(path), find_ledger(path)
    name = path.resolve().name
    planned = next((r for r in ledger.runs if r.id == name), None) if ledger else None
    if ledger is None or planned is None:
        return _entry(run)
    if planned.role == "candidate":
        raise Refused(
            f"{path} is a candidate of the sweep {ledger.path}: it never read test, and only "
            "counts as one of the configurations that were tried.",
            f"Compare the sweep: `gist compare {ledger.path}`.",
        )
    return _entry(run, ledger, planned, ledger.tried(planned))


def _inside(folder: Path, notes: list[str]) -> Iterator[Entry]:
    found, unfinished = False, []
    for place in runs_below(folder):
        found = True
        run = RunDirectory(place)
        if (place / PLAN).is_file():
            yield from _finals(Ledger.open(place), notes, several=True)
        elif run.state == "complete":
            yield _entry(run)
        else:
            unfinished.append(str(place))
    if not found:
        raise no_run(folder)
    if unfinished:
        notes.append(f"not finished and left out: {listed(unfinished)}")


def _finals(ledger: Ledger, notes: list[str], several: bool = False) -> Iterator[Entry]:
    """The finished final runs of a sweep; what is missing is noted."""
    finals = [run for run in ledger.runs if run.role == "final"]
    failed = [run.id for run in finals if ledger.failure(run) is not None]
    done = [run for run in finals if ledger.done(run)]
    if not done and not several:
        candidates = len(ledger.runs) - len(finals)
        refit = "go on with `gist sweep ... --refit`" if candidates else "go on with `gist sweep`"
        raise NotFound(
            f"The sweep {ledger.path} has no finished final run: {len(failed)} of {len(finals)} "
            "failed.",
            f"Its candidates are not compared with one another; {refit}.",
        )
    missing = [run.id for run in finals if not ledger.done(run) and run.id not in failed]
    if failed:
        notes.append(f"{ledger.path}: failed: {listed(failed)}")
    if missing:
        notes.append(f"{ledger.path}: not run yet: {listed(missing)}")
    tried: dict[tuple[str, str | None, str], int] = {}
    for run in done:
        if run.cell not in tried:
            tried[run.cell] = ledger.tried(run)
        yield _entry(ledger.directory(run), ledger, run, tried[run.cell])


def _entry(
    run: RunDirectory,
    ledger: Ledger | None = None,
    planned: PlannedRun | None = None,
    tried: int | None = None,
) -> Entry:
    return Entry(run, run.read_recipe(), run.read_result(), ledger, planned, tried)


def listed(names: Sequence[str]) -> str:
    """`a, b, c`, cut after five."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(names[:_NAMED])}{more}"
