"""Which configuration is chosen: by validation alone, of those that could be trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gistcli.artifacts.ledger import Ledger, PlannedRun
from gistcli.errors import Refused, did_you_mean
from gistcli.figures import lower_is_better
from gistcli.recipe.points import Point, canonical
from gistcli.run.collecting import FIGURE
from gistcli.run.sweep_plan import Cell, SweepPlan


@dataclass(frozen=True)
class Choice:
    """The chosen configuration of one recipe, task and method.

    Attributes:
        cell: what it is of.
        point: its values; None where no configuration could be trained.
        metric: such as val/accuracy.
        value: mean of the metric over search seeds and folds; None without a point.
        loss: mean validation loss, which decides between equal values.
        runs: how many the means are over.
        tried: configurations that were compared, failed ones among them.
        failed: configurations of which a run failed; they are never chosen.
    """

    cell: Cell
    point: Point | None
    metric: str
    value: float | None
    loss: float | None
    runs: int
    tried: int
    failed: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "recipe": self.cell.label,
            "task": self.cell.task,
            "method": self.cell.method,
            "point": self.point,
            "metric": self.metric,
            "value": self.value,
            "val/loss": self.loss,
            "runs": self.runs,
            "tried": self.tried,
            "failed": self.failed,
        }


def open_candidates(plan: SweepPlan, ledger: Ledger, cell: Cell) -> list[PlannedRun]:
    """Those that have neither a result nor a failure yet."""
    runs = plan.candidates(cell)
    return [r for r in runs if not ledger.done(r) and ledger.failure(r) is None]


def choose(plan: SweepPlan, ledger: Ledger, cell: Cell) -> Choice | None:
    """The best configuration of a cell; None while candidates are missing.

    The best mean of `eval.metric` (where it is null, of the runs' own figure) on validation; of
    equal ones that with the lower validation loss, then the one that stands first in the grid.

    Raises:
        WeightsError: a result that cannot be read.
        Refused: the metric is none of those that were measured.
    """
    runs = plan.candidates(cell)
    groups: dict[str, list[PlannedRun]] = {}
    for run in runs:
        groups.setdefault(canonical(run.point), []).append(run)
    figures: dict[str, Mapping[str, float] | None] = {}
    metric = cell.recipe.eval.metric or FIGURE
    for run in runs:
        if ledger.done(run):
            result = ledger.directory(run).read_result()
            figures[run.id] = result["metrics"]
            metric = cell.recipe.eval.metric or result.get("figure", metric)
        elif ledger.failure(run) is not None:
            figures[run.id] = None
        else:
            return None
    sign = -1.0 if lower_is_better(metric) else 1.0
    whole = [
        (group[0].point, [f for r in group if (f := figures[r.id]) is not None])
        for group in groups.values()
        if all(figures[r.id] is not None for r in group)
    ]
    scored = [
        (sign * _mean(f, metric), -_mean(f, "loss"), -i, point, f)
        for i, (point, f) in enumerate(whole)
    ]
    failed = len(groups) - len(whole)
    if not scored:
        return Choice(cell, None, f"val/{metric}", None, None, 0, len(groups), failed)
    best, loss, _, point, found = max(scored, key=lambda s: s[:3])
    name = f"val/{metric}"
    return Choice(cell, point, name, sign * best, -loss, len(found), len(groups), failed)


def _mean(figures: Sequence[Mapping[str, float]], metric: str) -> float:
    """Over runs; the sum is exact, so that their order does not matter."""
    name = f"val/{metric}"
    if any(name not in f for f in figures):
        raise Refused(
            f"eval.metric: {metric!r} was not measured on validation, so nothing can be chosen.",
            did_you_mean(metric, [n.removeprefix("val/") for n in figures[0]]),
        )
    return math.fsum(f[name] for f in figures) / len(figures)
