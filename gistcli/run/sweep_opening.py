"""A sweep's ledger: the one that is there, if it is of this request, or a new one."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gistcli.artifacts.ledger import MEND, PLAN, Ledger
from gistcli.artifacts.rundir import free_path
from gistcli.atomic import require_writable
from gistcli.errors import GistError, Refused, WeightsError
from gistcli.recipe import Recipe, differences, yaml
from gistcli.run.kinds import open_workload
from gistcli.run.shelf import Shelf
from gistcli.run.sweep_plan import SweepPlan

_SHOWN = 10


def place_of(plan: SweepPlan, output: Path | None) -> Path:
    """The folder of a sweep: the one that is asked for, or a new `runs/sweep-NAME-N`."""
    if output is not None:
        return output
    names = "-".join(dict.fromkeys(c.label for c in plan.cells))
    return free_path(Path("runs"), f"sweep-{names}")


def find(plan: SweepPlan, path: Path) -> Ledger | None:
    """The ledger in a folder; None where there is none yet.

    Raises:
        Refused: it is of another request; the differences are named.
        WeightsError: it cannot be read.
    """
    if not (path / PLAN).is_file():
        return None
    ledger = Ledger.open(path)
    changed = list(_differences(ledger, plan))
    if changed:
        more = [f"and {len(changed) - _SHOWN} more"] if len(changed) > _SHOWN else []
        raise Refused(
            "\n  ".join([f"{path} holds another sweep:", *changed[:_SHOWN], *more]),
            "Choose another folder with -o, or ask for what that sweep was asked for.",
        )
    return ledger


def create(plan: SweepPlan, path: Path) -> Ledger:
    """A new ledger; where another process was faster, its one.

    Raises:
        Refused: the folder holds something else, or the other one's request differs.
        StorageError: it cannot be written.
    """
    try:
        Ledger.create(path, plan.as_dict(), plan.runs)
    except Refused:
        if not (path / PLAN).is_file():
            raise
    found = find(plan, path)
    assert found is not None, path
    return found


def check_start(plan: SweepPlan, path: Path, shelf: Shelf) -> None:
    """Whether a new sweep can begin: its folder, and the data of all its tasks.

    Raises:
        Refused: data that are not there, or that have no validation split to compare on.
        GistError: data that cannot be used; all of them in one message.
    """
    require_writable(path, folder=True)
    found: dict[str, GistError] = {}
    for task, recipe in _data(plan):
        try:
            workload = open_workload(recipe, shelf, None)
            if plan.axes and "val" not in workload.names:
                raise Refused(
                    f"{workload.name} has no validation split to compare configurations on.",
                    "Divide its training examples with --folds K or --set data.val_fraction=0.1.",
                )
        except GistError as error:
            found.setdefault(f"{task}: {error.message}", error)
    if found:
        first = next(iter(found.values()))
        head = [] if len(found) == 1 else [f"The data of {len(found)} tasks cannot be used:"]
        raise type(first)("\n  ".join([*head, *found]), first.hint)


def _data(plan: SweepPlan) -> Iterator[tuple[str, Recipe]]:
    """A recipe for all data that the runs read, with the task that names them in messages."""
    seen = set()
    for run in plan.runs:
        recipe = plan.recipe(run)
        key = recipe.data.model_dump_json(), recipe.model.name
        if key not in seen and (run.role == "candidate" or not plan.axes):
            seen.add(key)
            yield run.task or plan.cell_of[run.id].label, recipe


def _differences(ledger: Ledger, plan: SweepPlan) -> Iterator[str]:
    """One line for everything that would make it another sweep."""
    there, here = ledger.request, json.loads(json.dumps(plan.as_dict()))
    other = [key for key in here if key != "cells" and there.get(key) != here[key]]
    for key in other:
        yield f"{key}: {yaml.inline(there.get(key))} there, {yaml.inline(here[key])} here"
    both = [name for name in here["cells"] if name in there.get("cells", {})]
    lines: dict[str, list[str]] = {}
    for name in both:
        for line in differences(_recipe(ledger, name), Recipe.model_validate(here["cells"][name])):
            lines.setdefault(line, []).append(name)
    for line, names in lines.items():
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        where = "" if len(names) == len(both) else f" ({', '.join(names[:3])}{more})"
        yield f"{line}{where}"
    if not lines and not other and [_kept(r) for r in ledger.runs] != [_kept(r) for r in plan.runs]:
        yield "the runs are others"


def _recipe(ledger: Ledger, name: str) -> Recipe:
    cells: Mapping[str, Any] = ledger.request["cells"]
    try:
        return Recipe.model_validate(cells[name])
    except ValidationError as error:
        raise WeightsError(
            f"{ledger.path / PLAN} is not as it was written: {name} is no recipe.", MEND
        ) from error


def _kept(run: Any) -> tuple[Any, ...]:
    """All of a planned run but the path of its recipe."""
    return run.id, run.task, run.method, run.seed, run.role, run.point, run.fold
