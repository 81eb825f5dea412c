"""`gist sweep --dry-run`: what a sweep would do, and about how long it would take."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gistcli.artifacts.ledger import Ledger, PlannedRun
from gistcli.data import expected_counts
from gistcli.errors import GistError, NotFound
from gistcli.recipe import Recipe
from gistcli.reporting import SILENT, Reporter
from gistcli.run import sweep_opening
from gistcli.run.settings import modality_of, resolved
from gistcli.run.shelf import Shelf
from gistcli.run.sweep_cost import EFFICIENCY, Counter, Sizes, operations, probe
from gistcli.run.sweep_plan import Cell, SweepPlan, plan_sweep
from gistcli.run.sweep_request import SweepRequest
from gistcli.train.precision import choose_device, choose_precision


def sweep_dry_run(
    request: SweepRequest, *, output: Path | None = None, reporter: Reporter = SILENT
) -> dict[str, Any]:
    """The plan of a sweep with estimated hours; nothing is written.

    Neither weights nor data are needed; what could not be looked at is named, and its hours are
    null.

    Args:
        request: what is asked for.
        output: of a sweep that has begun already: what is left of it, by what its runs took.
        reporter: gets all talk.

    Returns:
        JSON: `runs`, `left`, `hours`, and `plan` with an object for every recipe, task and method.

    Raises:
        Refused: the request is wrong, or the folder holds another sweep.
    """
    plan = plan_sweep(request)
    ledger = sweep_opening.find(plan, output) if output is not None else None
    estimate = _Estimate(plan, ledger, reporter)
    rows = [estimate.row(cell) for cell in plan.cells]
    estimate.say_missing()
    hours = [row["hours"] for row in rows if row["hours"] is not None]
    unknown = sum(row["hours"] is None for row in rows)
    if unknown:
        reporter.warn(f"{unknown} of {len(rows)} rows have no estimate and are not in the sum.")
    return {
        "sweep": str(output) if output is not None else None,
        "runs": sum(row["runs"] for row in rows),
        "left": sum(row["left"] for row in rows),
        "methods": list(dict.fromkeys(row["method"] for row in rows)),
        "hours": sum(hours) if hours else None,
        "basis": estimate.basis(),
        "plan": rows,
    }


@dataclass
class _Estimate:
    """What is known of the cost of runs, gathered as far as it is needed."""

    plan: SweepPlan
    ledger: Ledger | None
    reporter: Reporter
    shelf: Shelf = field(default_factory=Shelf)
    counter: Counter = field(default_factory=Counter)
    sizes: dict[tuple[str, ...], tuple[Sizes, int] | None] = field(default_factory=dict)
    rates: dict[str, float] = field(default_factory=dict)
    measured: int = 0
    missing: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def row(self, cell: Cell) -> dict[str, Any]:
        """One recipe, task and method."""
        candidates, finals = self.plan.candidates(cell), self.plan.finals(cell)
        asked = [*candidates, *(finals if not self.plan.axes or self.plan.request.refit else ())]
        left = [run for run in asked if self.ledger is None or not self.ledger.done(run)]
        seconds = self._seconds(cell, left)
        return {
            "recipe": cell.label,
            "task": cell.task,
            "method": cell.method,
            "configurations": len(cell.points) or 1,
            "candidates": len(candidates),
            "seeds": list(cell.seeds),
            "runs": len(asked),
            "left": len(left),
            "hours": None if seconds is None else seconds / 3600,
        }

    def basis(self) -> str:
        """What the hours rest on."""
        parts = [f"the seconds of {self.measured} finished runs"] if self.measured else []
        if self.rates:
            rates = ", ".join(f"{r / 1e9:,.0f} GFLOP/s {name}" for name, r in self.rates.items())
            parts.append(
                f"the operations of the networks at {EFFICIENCY:g} of what this machine does in "
                f"one large product now ({rates}), without the time to read pictures"
            )
        return " and ".join(parts)

    def _seconds(self, cell: Cell, left: Sequence[PlannedRun]) -> float | None:
        """Of the runs that are left; None where that cannot be told."""
        if self.ledger is not None:
            done = [r for r in self.plan.runs_of[cell.name] if self.ledger.done(r)]
            if done:
                taken = [self.ledger.directory(r).read_result()["seconds"] for r in done]
                self.measured += len(taken)
                return len(left) * statistics.fmean(taken)
        try:
            each = [self._of_run(cell, run) for run in left]
        except GistError as error:
            self.refused[cell.name] = error.message
            return None
        return None if None in each else sum(s for s in each if s is not None)

    def _of_run(self, cell: Cell, run: PlannedRun) -> float | None:
        recipe = resolved(self.plan.recipe(run))
        if modality_of(recipe) == "text":  # nobody knows the lengths before all is encoded
            return None
        found = self._sizes(cell, run, recipe)
        if found is None:
            return None
        sizes, classes = found
        work = self.counter.work(recipe, classes)
        return operations(recipe, work, sizes) / (EFFICIENCY * self._rate(recipe))

    def _sizes(self, cell: Cell, run: PlannedRun, recipe: Recipe) -> tuple[Sizes, int] | None:
        """Examples and classes; every fold has about those of the first."""
        data = recipe.data.model_copy(update={"fold": 0})
        key = (data.model_dump_json(), run.role)
        if key in self.sizes:
            return self.sizes[key]
        try:
            catalog = self.shelf.catalog(data, None)
            counts: Mapping[str, int] | None = catalog.counts()
            classes = len(catalog.classes)
        except NotFound as error:  # data that are there and bad are an error
            counts, classes = expected_counts(data), data.classes or 1
            what = "" if counts else ", whose size is not known either"
            self.missing.setdefault(f"{cell.task or cell.label}{what}", error.message)
        self.sizes[key] = None
        if counts is not None:
            test = counts.get("test", 0) if run.role == "final" else 0
            self.sizes[key] = Sizes(counts["train"], counts.get("val", 0), test), classes
        return self.sizes[key]

    def _rate(self, recipe: Recipe) -> float:
        """Operations a second of this machine, for a recipe's device and precision."""
        device = choose_device(recipe.train.device)
        precision = choose_precision(recipe.train.precision, device)
        name = f"{device.type} {precision}"
        if name not in self.rates:
            self.rates[name] = probe(device, precision)
        return self.rates[name]

    def say_missing(self) -> None:
        """One line for data that are not there, one for each network that cannot be built."""
        if self.missing:
            names, message = list(self.missing), next(iter(self.missing.values()))
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            self.reporter.warn(f"not looked at: data of {', '.join(names[:3])}{more} ({message})")
        for name, message in self.refused.items():
            self.reporter.warn(f"cannot be trained: {name} ({message})")
