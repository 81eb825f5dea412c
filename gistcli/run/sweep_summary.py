"""The state of a sweep as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from gistcli.artifacts.ledger import Ledger, PlannedRun
from gistcli.run.collecting import FIGURE
from gistcli.run.sweep_choice import Choice
from gistcli.run.sweep_plan import SweepPlan


def summary(plan: SweepPlan, ledger: Ledger, choices: Sequence[Choice]) -> dict[str, Any]:
    """What was done, what failed, what is left, what was chosen: the whole ledger.

    Final runs of a grid count where `--refit` is asked for, or was before.

    Raises:
        WeightsError: a result or a failure that cannot be read.
    """
    done = {run.id for run in plan.runs if ledger.done(run)}
    counted = [
        run
        for run in plan.runs
        if run.role == "candidate" or not plan.axes or plan.request.refit or run.id in done
    ]
    failures = {run.id: f for run in counted if (f := ledger.failure(run)) is not None}
    results = list(_results(plan, ledger, [run for run in counted if run.id in done]))
    compare = shlex.join(["gist", "compare", str(ledger.path)])
    return {
        "sweep": str(ledger.path),
        "runs": len(counted),
        "done": len(results),
        "failed": [{"id": name, **failure} for name, failure in failures.items()],
        "left": len(counted) - len(results) - len(failures),
        "chosen": [c.as_dict() for c in choices],
        "results": results,
        "next": [compare] if any(r["role"] == "final" for r in results) else [],
    }


def _results(
    plan: SweepPlan, ledger: Ledger, runs: Sequence[PlannedRun]
) -> Iterator[dict[str, Any]]:
    for run in runs:
        result = ledger.directory(run).read_result()
        yield {
            "id": run.id,
            "recipe": plan.cell_of[run.id].label,
            "task": run.task,
            "method": run.method,
            "seed": run.seed,
            "role": run.role,
            "point": run.point,
            "fold": run.fold,
            "figure": result.get("figure", FIGURE),
            "metrics": result["metrics"],
            "seconds": result["seconds"],
        }
