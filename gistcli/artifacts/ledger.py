"""The ledger of a sweep: what was planned, and what became of each run.

```
SWEEP/sweep.json          what was asked and the runs that follow from it; written once
SWEEP/runs/ID/            a run directory; of a candidate only what a comparison reads stays
SWEEP/failures/ID.json    why a run failed
SWEEP/locks/ID.lock       held while a process works on the run
SWEEP/chosen.json         the chosen configurations, derived from the candidates' results
```
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from gistcli import atomic
from gistcli.artifacts.rundir import RunDirectory, read_json
from gistcli.errors import GistError, NotFound, Refused, StorageError, WeightsError

Role = Literal["final", "candidate"]
FORMAT = 1
PLAN = "sweep.json"
CHOSEN = "chosen.json"
PARTS = (PLAN, CHOSEN, "runs", "failures", "locks", "comparison")
KEPT = ("recipe.yaml", "result.json", "metrics.jsonl", "environment.json", "predictions/val.csv")
"""What stays of a candidate; the rest is large, and no comparison reads it."""
MEND = "Copy the folder again, or start the sweep anew in another one (-o)."


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        id: its folder: `TASK.METHOD.sSEED`, for a candidate `TASK.METHOD.cHASH.sSEED[.fFOLD]`;
            the recipe's name stands in front where there are several.
        recipe: path of the recipe, as it was given.
        task: of a family file; None for a recipe of one task.
        method: its name.
        seed: of the run.
        role: a final run reads test once, at its end; a candidate never does.
        point: grid key -> value of a candidate; empty for a final run, whose values (those of
            `chosen.json`, where there is a grid) stand in its recipe.
        fold: which part of train is its validation; None without folds.
    """

    id: str
    recipe: str
    task: str | None
    method: str
    seed: int
    role: Role = "final"
    point: dict[str, Any] = field(default_factory=dict)
    fold: int | None = None

    @property
    def cell(self) -> tuple[str, str | None, str]:
        """What configurations are compared within: recipe, task, method."""
        return self.recipe, self.task, self.method


class Ledger:
    """One sweep's folder. Several processes may work on it at once.

    Attributes:
        path: of the folder.
        request: what was asked, in plain values.
        runs: the plan, in order. With a grid it holds the final runs, too, whether or not a
            refit was asked for.
    """

    def __init__(self, path: Path, request: Mapping[str, Any], runs: Sequence[PlannedRun]) -> None:
        self.path = Path(path)
        self.request = dict(request)
        self.runs = list(runs)

    def __repr__(self) -> str:
        return f"Ledger({str(self.path)!r})"

    @classmethod
    def create(cls, path: Path, request: Mapping[str, Any], runs: Sequence[PlannedRun]) -> Ledger:
        """A new ledger; its folder is made.

        Raises:
            Refused: the folder holds something else, or a ledger already.
            StorageError: it cannot be made.
        """
        ledger = cls(path, request, runs)
        if ledger.path.is_file():
            raise Refused(f"{path} is a file.", "Choose another folder with -o.")
        found = sorted(p.name for p in ledger.path.iterdir()) if ledger.path.is_dir() else []
        if any(".tmp-" not in name for name in found):
            what = "a sweep already" if PLAN in found else f"no sweep: {', '.join(found[:5])}"
            raise Refused(f"{path} holds {what}.", "Choose another folder with -o.")
        plan = {"format": FORMAT, "request": ledger.request, "runs": [asdict(r) for r in runs]}
        atomic.write_json(ledger.path / PLAN, plan)
        return ledger

    @classmethod
    def open(cls, path: Path) -> Ledger:
        """The ledger in a folder.

        Raises:
            NotFound: there is none.
            WeightsError: it cannot be read, or a later version of gist wrote it.
        """
        file = Path(path) / PLAN
        if not file.is_file():
            raise NotFound(
                f"{path} is no sweep: it has no {PLAN}.", "Give a folder that `gist sweep` wrote."
            )
        content = read_json(file, MEND)
        if content.get("format") != FORMAT:
            raise WeightsError(
                f"{file} has the format {content.get('format')!r}; this version reads {FORMAT}.",
                "Install the version of gist that wrote it.",
            )
        request, runs = content.get("request"), content.get("runs")
        if not isinstance(request, dict) or not isinstance(runs, list):
            raise WeightsError(f"{file} is not as it was written: no request or no runs.", MEND)
        return cls(path, request, [_planned(file, entry) for entry in runs])

    # --- what became of a run ------------------------------------------------------------------

    def directory(self, run: PlannedRun) -> RunDirectory:
        """The run's folder, there or not."""
        return RunDirectory(self.path / "runs" / run.id)

    def done(self, run: PlannedRun) -> bool:
        """Whether it has a result."""
        return self.directory(run).result_path.is_file()

    def failure(self, run: PlannedRun) -> dict[str, Any] | None:
        """Type, message, hint and exit code of its failure; None where it has not failed.

        Raises:
            WeightsError: the record cannot be read.
        """
        file = self._failure_path(run)
        if not file.is_file() or self.done(run):
            return None
        try:
            return read_json(file, MEND)
        except WeightsError:
            if not file.is_file():  # another process tries the run again
                return None
            raise

    def record_failure(self, run: PlannedRun, error: GistError) -> None:
        """Keep why it failed; it is not tried again unless that is asked for.

        Raises:
            StorageError: the disk is full or may not be written.
        """
        atomic.write_json(
            self._failure_path(run), {**error.as_dict(), "exit_code": error.exit_code}
        )

    def forget_failure(self, run: PlannedRun) -> None:
        """Remove the record: the run succeeded after all."""
        self._failure_path(run).unlink(missing_ok=True)

    def tried(self, run: PlannedRun) -> int:
        """Configurations that were compared for its recipe, task and method; 1 without a grid."""
        points = {repr(r.point) for r in self.runs if r.role == "candidate" and r.cell == run.cell}
        return len(points) or 1

    def reduce(self, run: PlannedRun) -> None:
        """Remove what nobody reads of a complete candidate.

        It is complete before and after, so a kill in between loses nothing; done again, it goes
        on where it stopped.
        """
        if run.role == "final" or not self.done(run):
            return
        folder = self.directory(run).path
        kept = {folder / name for name in KEPT}
        around = {parent for path in kept for parent in path.parents}
        for entry in [*folder.iterdir(), *(folder / "predictions").glob("*")]:
            if entry not in kept and entry not in around:
                atomic.discard(entry)

    def _failure_path(self, run: PlannedRun) -> Path:
        return self.path / "failures" / f"{run.id}.json"

    # --- many processes ------------------------------------------------------------------------

    @contextmanager
    def claim(self, run: PlannedRun) -> Iterator[bool]:
        """Holds the run for this process; False where another one works on it.

        The system lets go of it when the process ends, however it ends.

        Raises:
            StorageError: locks cannot be written there.
        """
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(self._lock(run.id, blocking=False))
            except Timeout:
                yield False
                return
            yield True

    @contextmanager
    def _lock(self, name: str, *, blocking: bool) -> Iterator[None]:
        file = self.path / "locks" / f"{name}.lock"
        with contextlib.ExitStack() as held:
            try:
                with atomic.storage_errors(file):
                    file.parent.mkdir(parents=True, exist_ok=True)
                    held.enter_context(FileLock(file, blocking=blocking))
            except NotImplementedError as error:
                raise StorageError(
                    f"{file} cannot be locked: the file system knows no locks.",
                    "Choose an output folder on another one.",
                ) from error
            yield

    # --- what was chosen -----------------------------------------------------------------------

    def update_chosen(self, derive: Callable[[], Sequence[Mapping[str, Any]]]) -> None:
        """Keep the chosen configurations; they can be derived anew at any time.

        Args:
            derive: gives them; called while no other process does the same, so that what is
                kept never falls behind.

        Raises:
            StorageError: the disk is full or may not be written.
        """
        with self._lock("chosen", blocking=True):
            chosen = [dict(c) for c in derive()]
            if chosen != self.read_chosen():
                atomic.write_json(self.path / CHOSEN, {"chosen": chosen})

    def read_chosen(self) -> list[dict[str, Any]]:
        """What `update_chosen` kept; empty where nothing was chosen yet.

        Raises:
            WeightsError: it cannot be read.
        """
        file = self.path / CHOSEN
        return list(read_json(file, MEND).get("chosen") or ()) if file.is_file() else []


def find_ledger(path: Path) -> Ledger | None:
    """The ledger in a folder, or the one that a run directory belongs to.

    Raises:
        WeightsError: there is one and it cannot be read.
    """
    place = Path(path).absolute()
    for folder in (place, place.parent.parent):
        inside = folder == place or place.parent.name == "runs"
        if inside and (folder / PLAN).is_file():
            return Ledger.open(path if folder == place else folder)
    return None


def _planned(file: Path, entry: Any) -> PlannedRun:
    names = {f.name for f in fields(PlannedRun)}
    if not isinstance(entry, dict) or set(entry) != names:
        raise WeightsError(f"{file} is not as it was written: {entry!r} is no run.", MEND)
    return PlannedRun(**entry)
