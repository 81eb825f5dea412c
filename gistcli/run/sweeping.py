"""`gist sweep`: many runs in one ledger, each once, whoever works on it and however often."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from gistcli.errors import Interrupted
from gistcli.reporting import SILENT, Reporter
from gistcli.run import sweep_opening
from gistcli.run.shelf import Shelf
from gistcli.run.sweep_plan import plan_sweep
from gistcli.run.sweep_request import SweepRequest
from gistcli.run.sweep_summary import summary
from gistcli.run.sweep_work import Work


def sweep(
    request: SweepRequest,
    *,
    output: Path | None = None,
    shard: tuple[int, int] | None = None,
    retry_failed: bool = False,
    reporter: Reporter = SILENT,
) -> dict[str, Any]:
    """Do the runs of a sweep that nobody has done yet.

    Any number of processes may be at it at once, each with a shard of its own or all with the
    whole: a run is taken by one of them, and the results are those that one process has.

    Args:
        request: what is asked for.
        output: folder of the ledger, new or of the same request; None for `runs/sweep-NAME-N`.
        shard: (i, n): every n-th run from the i-th, which counts from 1.
        retry_failed: try again what failed before.
        reporter: gets all talk.

    Returns:
        The JSON object of `gist sweep`: the state of the whole ledger.

    Raises:
        Refused: the request is wrong, or the folder holds another sweep; nothing was written.
        Interrupted: stopped on request; the same call goes on.
        StorageError: the disk is full or may not be written.
    """
    plan = plan_sweep(request)
    path = sweep_opening.place_of(plan, output)
    shelf = Shelf()
    ledger = sweep_opening.find(plan, path)
    if ledger is None:
        sweep_opening.check_start(plan, path, shelf)
        ledger = sweep_opening.create(plan, path)
    work = Work(plan, ledger, shelf, reporter, retry_failed)
    mine = [r for i, r in enumerate(plan.runs) if shard is None or i % shard[1] == shard[0] - 1]
    asked = [r for r in mine if r.role == "candidate" or not plan.axes or request.refit]
    try:
        work.do(asked)
    except (Interrupted, KeyboardInterrupt) as error:
        done = sum(ledger.done(r) for r in asked)
        reason = error.message if isinstance(error, Interrupted) else "Interrupted."
        raise Interrupted(
            f"{reason} {done} of {len(asked)} runs of the sweep are done, and nothing is lost.",
            f"The same command goes on with -o {shlex.quote(str(path))}.",
        ) from error
    return summary(plan, ledger, work.choices())
