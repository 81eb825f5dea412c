"""The runs that follow from what a sweep is asked for, and the recipe of each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from gistcli import registry
from gistcli.artifacts.ledger import PlannedRun
from gistcli.errors import Refused
from gistcli.recipe import Override, Recipe, load_recipe, parse_set
from gistcli.recipe.grid import Axis, parse_grid
from gistcli.recipe.loading import task_names
from gistcli.recipe.points import Point, canonical, points, with_gist, with_method, with_values
from gistcli.run.settings import methods_for, modality_of, resolved
from gistcli.run.sweep_request import (
    ALL,
    REFIT_ON,
    SweepRequest,
    check_flags,
    check_names,
    chosen_tasks,
)


@dataclass(frozen=True)
class Cell:
    """One recipe, task and method, within which configurations are compared.

    Attributes:
        path: of the recipe, as it was given.
        label: of the recipe, as the names of runs have it.
        task: of a family file.
        recipe: with the method; nulls of `optim` are still its own recommendation.
        seeds: of final runs.
        points: configurations; without a grid none.
    """

    path: str
    label: str
    task: str | None
    recipe: Recipe
    seeds: Sequence[int]
    points: Sequence[Point]

    @property
    def method(self) -> str:
        """Name of the method, `NAME+gist` with a gist token."""
        name: str = self.recipe.method["name"]
        return name if self.recipe.gist is None else f"{name}+gist"

    @property
    def name(self) -> str:
        """Recipe, task and method in one word."""
        return "/".join(filter(None, (self.label, self.task, self.method)))


@dataclass(frozen=True)
class SweepPlan:
    """The runs of a sweep in their order, and the recipe of each.

    Attributes:
        request: what is asked for.
        axes: of the grid; none without one.
        cells: in the order of recipes, tasks, methods.
        runs: cell by cell, candidates first.
        cell_of: by the name of a run.
        runs_of: by the name of a cell.
    """

    request: SweepRequest
    axes: Sequence[Axis]
    cells: Sequence[Cell]
    runs: Sequence[PlannedRun]
    cell_of: Mapping[str, Cell]
    runs_of: Mapping[str, Sequence[PlannedRun]]

    def candidates(self, cell: Cell) -> list[PlannedRun]:
        """Of a cell, in the order of the grid; none without a grid."""
        return [r for r in self.runs_of[cell.name] if r.role == "candidate"]

    def finals(self, cell: Cell) -> list[PlannedRun]:
        """Of a cell, one a seed."""
        return [r for r in self.runs_of[cell.name] if r.role == "final"]

    def recipe(self, run: PlannedRun, chosen: Point | None = None) -> Recipe:
        """What a run trains.

        A candidate leaves test alone. A final run of a grid has the chosen values and trains to
        its last step, on train and val unless `refit_on` says otherwise; one without a grid is the
        recipe itself. Both read test once.

        Args:
            run: of this plan.
            chosen: the values of a final run of a grid.

        Raises:
            RecipeError: a value that its key does not take.
        """
        values: dict[str, Any] = {"seed": run.seed, "eval.test": run.role == "final"}
        if self.request.draw_shots:
            values["data.shot_seed"] = run.seed
        if run.role == "candidate":
            values |= {**run.point, "eval.best_test": False, "data.include_val": False}
            if run.fold is not None:
                values |= {"data.folds": self.request.folds, "data.fold": run.fold}
        elif self.axes:
            values |= {
                **(chosen or {}), "data.include_val": self.request.refit_on == REFIT_ON[0],
                "data.folds": None, "data.fold": 0,
                "eval.select": "last", "eval.best_test": False, "train.patience": None,
            }  # fmt: skip
        return with_values(self.cell_of[run.id].recipe, values, "--grid")

    def as_dict(self) -> dict[str, Any]:
        """What is kept as the request: contents, not paths."""
        return {
            "recipes": list(dict.fromkeys(c.label for c in self.cells)),
            "tasks": [t for t in dict.fromkeys(c.task for c in self.cells) if t is not None],
            "methods": list(dict.fromkeys(c.method for c in self.cells)),
            "seeds": list(dict.fromkeys(r.seed for r in self.runs if r.role == "final")),
            "search_seeds": list(dict.fromkeys(r.seed for r in self.runs if r.role != "final")),
            "grid": [axis.as_dict() for axis in self.axes],
            "random": self.request.random,
            "folds": self.request.folds,
            "draw_shots": self.request.draw_shots,
            "refit_on": self.request.refit_on,
            "ablate": list(self.request.ablate),
            "cells": {c.name: resolved(c.recipe).as_dict() for c in self.cells},
        }


def plan_sweep(request: SweepRequest) -> SweepPlan:
    """Read all recipes, check all names and values, and lay out the runs.

    Raises:
        UnknownName: methods or tasks that do not exist, all of them.
        RecipeError: recipes, or values of the grid, that are wrong.
        Refused: flags that do not go together.
    """
    check_flags(request)
    families = {str(path): task_names(path) for path in request.recipes}
    methods = check_names(request, families)
    bases = [
        (path, task, _load(request, path, task))
        for path, tasks in families.items()
        for task in chosen_tasks(request, tasks)
    ]
    own = [base.method["name"] for _, _, base in bases]
    axes = parse_grid(
        request.grid, methods or list(dict.fromkeys(own)), random=request.random is not None
    )
    labels = _labels(families)
    arms = (False, True) if "gist" in request.ablate else (None,)
    cells = [
        _cell(request, axes, path, labels[path], task, base, method, gist)
        for path, task, base in bases
        for method in _methods(request, methods, base)
        for gist in arms
    ]
    _check_axes(axes, cells)
    runs_of = {cell.name: list(_runs(request, cell, len(families) > 1)) for cell in cells}
    runs = [run for cell in cells for run in runs_of[cell.name]]
    cell_of = {run.id: cell for cell in cells for run in runs_of[cell.name]}
    plan = SweepPlan(request, axes, cells, runs, cell_of, runs_of)
    _check_runs(plan)
    return plan


def _methods(request: SweepRequest, chosen: Sequence[str], base: Recipe) -> Sequence[str]:
    """The methods of a recipe's cells; `all` are those that work on what its model reads."""
    if tuple(request.methods) == ALL:
        return methods_for(modality_of(base))
    return chosen or [base.method["name"]]


def _load(request: SweepRequest, path: str, task: str | None) -> Recipe:
    """The recipe of a task with all flags but those on the method, which not every one may have."""
    chosen = [] if task is None else [Override("task.name", task, "--tasks")]
    sets = [s for s in request.sets if not s.strip().startswith("method.")]
    return load_recipe(Path(path), overrides=[*request.overrides, *chosen], sets=sets)


def _labels(paths: Mapping[str, object]) -> dict[str, str]:
    """A word for every recipe: its file name, with the folder's where two are called alike."""
    stems = [Path(p).stem for p in paths]
    return {
        p: _word(Path(p).stem if stems.count(Path(p).stem) == 1 else "-".join(Path(p).parts))
        for p in paths
    }


def _word(text: str) -> str:
    """A name that every file system takes and that has no dot."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", text).strip("-")


def _cell(
    request: SweepRequest,
    axes: Sequence[Axis],
    path: str,
    label: str,
    task: str | None,
    base: Recipe,
    method: str,
    gist: bool | None,
) -> Cell:
    """Args as of `Cell`; `gist` says whether there is a token, None leaves that to the recipe."""
    given = [parse_set(s) for s in request.sets if s.strip().startswith("method.")]
    recipe = with_values(with_method(base, method), {o.key: o.value for o in given}, "--set")
    if gist is not None:
        recipe = with_gist(recipe, gist)
    found = points(axes, resolved(recipe), request.random) if axes else []
    return Cell(path, label, task, recipe, request.seeds or (recipe.seed,), found)


def _runs(request: SweepRequest, cell: Cell, several: bool) -> Iterator[PlannedRun]:
    """Candidates by configuration, seed and fold, then the final runs."""
    file = registry.split_file(cell.method)
    parts = [cell.label if several else "", cell.task or "", file[1] if file else cell.method]
    stem = ".".join(_word(p) for p in parts if p)
    common = (cell.path, cell.task, cell.method)
    folds = range(request.folds) if request.folds else (None,)
    for point in cell.points:
        digest = sha256(canonical(point).encode()).hexdigest()[:8]
        for seed in request.search_seeds or cell.seeds[:1]:
            for fold in folds:
                end = "" if fold is None else f".f{fold}"
                name = f"{stem}.c{digest}.s{seed}{end}"
                yield PlannedRun(name, *common, seed, "candidate", point, fold)
    for seed in cell.seeds:
        yield PlannedRun(f"{stem}.s{seed}", *common, seed)


def _check_axes(axes: Sequence[Axis], cells: Sequence[Cell]) -> None:
    """Options of the gist token need a recipe with one."""
    idle = [a.key for a in axes if a.of_gist and all(c.recipe.gist is None for c in cells)]
    if idle:
        raise Refused(
            f"--grid {', '.join(idle)}: no recipe of this sweep has a gist token.",
            "Add --gist, or --ablate gist for every method with and without it.",
        )


def _check_runs(plan: SweepPlan) -> None:
    """Every name once; every configuration is a valid recipe."""
    twice = [name for name, n in Counter(run.id for run in plan.runs).items() if n > 1]
    if twice:
        raise Refused(
            f"Several runs would be called {', '.join(twice[:5])}.",
            "Give every seed once, and rename tasks that differ by punctuation only.",
        )
    for run in plan.runs:
        plan.recipe(run)
