"""What a sweep is asked for: its command line, and which names and flags are wrong in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gistcli import registry
from gistcli.errors import GistError, Refused, UnknownName, did_you_mean
from gistcli.recipe import Override
from gistcli.recipe.grid import method_name

ALL = ("all",)
ABLATED = ("gist",)
"""Sections that a sweep can leave out; without `hyper` there is another task."""
REFIT_ON = ("train+val", "train")
NOT_SET = {
    "method.name": "--methods",
    "task.name": "--tasks",
    "output.dir": "-o",
    "eval.test": "--grid, or nothing: without a grid every run reads test once",
}
"""Keys that `--set` may not write in a sweep, and the flags that say the same."""


@dataclass(frozen=True)
class SweepRequest:
    """The command line of a sweep, read but not checked.

    Attributes:
        recipes: files; of a family file the tasks are taken.
        methods: names, or `all`; empty for each recipe's own.
        tasks: names, or `all`; empty for all of a family.
        seeds: of final runs; empty for the recipe's own.
        draw_shots: whether a seed is that of `data.shots`, too.
        grid: texts of `--grid`; empty: every run is final.
        random: how many configurations to draw in place of the whole grid.
        folds: into how many parts train and val are divided anew, each being val once.
        search_seeds: of candidates; empty for the first of `seeds`.
        refit: whether the chosen configurations are trained to the end.
        refit_on: what they are trained on then, of REFIT_ON.
        ablate: optional sections of a recipe (`gist`): every method with and without.
        overrides, sets: what the command line writes into every recipe.
    """

    recipes: Sequence[Path]
    methods: Sequence[str] = ()
    tasks: Sequence[str] = ()
    seeds: Sequence[int] = ()
    draw_shots: bool = False
    grid: Sequence[str] = ()
    random: int | None = None
    folds: int | None = None
    search_seeds: Sequence[int] = ()
    refit: bool = False
    refit_on: str = REFIT_ON[0]
    ablate: Sequence[str] = ()
    overrides: Sequence[Override] = ()
    sets: Sequence[str] = ()


def check_flags(request: SweepRequest) -> None:
    """Refuse flags that do not go together.

    Raises:
        Refused: says which, and what to do.
    """
    if not request.grid:
        flags = {
            "--random": request.random is not None,
            "--folds": request.folds is not None,
            "--search-seeds": bool(request.search_seeds),
            "--refit": request.refit,
        }
        given = [name for name, there in flags.items() if there]
        if given:
            raise Refused(
                f"{', '.join(given)} without --grid: there is nothing to choose, every run is "
                "final.",
                "Give a grid such as --grid optim.lr=1e-3,3e-3, or leave that out.",
            )
    if request.refit_on not in REFIT_ON:
        raise UnknownName(
            f"--refit-on: {request.refit_on!r}.", did_you_mean(request.refit_on, REFIT_ON)
        )
    if request.refit_on != REFIT_ON[0] and not request.refit:
        raise Refused("--refit-on without --refit: nothing is trained again.", "Add --refit.")
    unknown = [name for name in request.ablate if name not in ABLATED]
    if unknown:
        raise UnknownName(
            f"--ablate: {', '.join(map(repr, unknown))} cannot be left out of a recipe.",
            did_you_mean(unknown[0], ABLATED),
        )
    for text in request.sets:
        key = text.partition("=")[0].strip()
        if key in NOT_SET:
            raise Refused(f"--set {key} cannot be used in a sweep.", f"Use {NOT_SET[key]}.")
    twice = [str(p) for i, p in enumerate(request.recipes) if p in request.recipes[:i]]
    if twice:
        raise Refused(f"{', '.join(twice)} given twice.", "Name every recipe once.")


def check_names(request: SweepRequest, families: Mapping[str, Sequence[str]]) -> list[str]:
    """The methods asked for, as recipes name them; empty for each recipe's own.

    Args:
        request: of the sweep.
        families: recipe -> its tasks; none for a recipe of one task.

    Raises:
        UnknownName: methods or tasks that do not exist, all of them.
    """
    asked = [method_name(m) for m in dict.fromkeys(request.methods)]
    methods = registry.names("methods") if tuple(request.methods) == ALL else asked
    lines = [f"--methods: {text}" for m in methods if (text := _unknown_method(m))]
    known = list(dict.fromkeys(t for tasks in families.values() for t in tasks))
    tasks = () if tuple(request.tasks) == ALL else dict.fromkeys(request.tasks)
    lines += [f"--tasks: {_unknown(t, 'tasks', known)}" for t in tasks if t not in known]
    if request.tasks and not lines:
        without = [
            p for p, has in families.items() if not (has if not tasks else {*has} & {*tasks})
        ]
        lines += [f"--tasks: {path} has none of these tasks" for path in without]
    if not lines:
        return methods
    hints = ["`gist list methods` shows all methods."] if lines[0].startswith("--methods") else []
    if request.tasks:
        hints.append(f"Tasks: {', '.join(known)}." if known else "No recipe here has tasks.")
    head = "1 problem" if len(lines) == 1 else f"{len(lines)} problems"
    raise UnknownName("\n  ".join([f"{head} with the names:", *lines]), " ".join(hints))


def _unknown_method(name: str) -> str | None:
    if name in registry.table("methods"):
        return None
    if registry.split_file(name) is None:
        return _unknown(name, "methods", registry.names("methods"))
    try:
        registry.resolve("methods", name)
    except GistError as error:
        return error.message
    return None


def _unknown(name: str, kind: str, known: Sequence[str]) -> str:
    guess = did_you_mean(name, known).partition("Known: ")[0].rstrip()
    return f"{name!r} is not among the {kind}. {guess}".rstrip()


def chosen_tasks(request: SweepRequest, known: Sequence[str]) -> Sequence[str | None]:
    """Those tasks of a recipe that the sweep is over; one None for a recipe of one task."""
    if not known:
        return [None]
    if not request.tasks or tuple(request.tasks) == ALL:
        return known
    return [t for t in known if t in request.tasks]
