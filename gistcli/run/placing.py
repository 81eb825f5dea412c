"""Where a run goes, and whether there is one already: start, go on, or report what is there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gistcli.artifacts.rundir import RunDirectory, free_path
from gistcli.atomic import require_writable
from gistcli.errors import NotFound, Refused
from gistcli.recipe import Recipe, differences


@dataclass
class Place:
    """A run directory and what is to happen in it.

    Attributes:
        run: the directory; nothing was written to it yet.
        resume: go on from its checkpoints, with its splits.
        clear: remove what an earlier run left there, when the new one is ready to start.
        done: the result of a complete run of the same recipe.
    """

    run: RunDirectory
    resume: bool = False
    clear: bool = False
    done: dict[str, Any] | None = None


def settle(recipe: Recipe, output: Path | None, resume: str, overwrite: bool) -> Place:
    """Look at the output folder and decide; nothing is written.

    Args:
        recipe: what is asked for.
        output: from the command line; None for the recipe's `output.dir`.
        resume: auto, never, or the folder of the run to go on with.
        overwrite: replace a run of another recipe, or a complete one.

    Raises:
        Refused: another recipe's run is there, or something that is no run.
        NotFound: `resume` names a folder without a run.
        StorageError: the place may not be written to.
    """
    if resume not in ("auto", "never"):
        return _resume(recipe, RunDirectory(Path(resume)))
    run = RunDirectory(output or _folder(recipe))
    require_writable(run.path.parent, folder=True)
    state = run.state
    if state == "absent":
        return Place(run)
    if state == "foreign":
        raise Refused(f"{run.path} exists and is no run.", "Choose another folder with -o.")
    if overwrite:
        return Place(run, clear=True)
    if not run.recipe_path.is_file():
        return Place(run, clear=True)
    changed = differences(run.load_recipe(), recipe)
    if changed:
        raise Refused(
            f"{run.path} holds the run of another recipe: {'; '.join(changed)}.",
            "Choose another folder with -o, or replace that run with --overwrite.",
        )
    if resume == "never":
        if state == "complete":
            raise Refused(
                f"{run.path} holds this run, complete.",
                "Choose another folder with -o, or run it again with --overwrite.",
            )
        return Place(run, clear=True)
    if state == "complete":
        return Place(run, done=run.read_result())
    return Place(run, resume=True)


def _resume(recipe: Recipe, run: RunDirectory) -> Place:
    if not run.recipe_path.is_file():
        raise NotFound(
            f"--resume: {run.path} is no run.", "Give auto, never, or the folder of a run."
        )
    changed = differences(run.load_recipe(), recipe)
    if changed:
        raise Refused(
            f"--resume: {run.path} was started with another recipe: {'; '.join(changed)}.",
            f"Go on with `{run.resume_command()}`.",
        )
    done = run.read_result() if run.state == "complete" else None
    return Place(run, resume=True, done=done)


def _folder(recipe: Recipe) -> Path:
    if recipe.output.dir != "auto":
        return Path(recipe.output.dir)
    data = recipe.data.subset or recipe.data.path
    gist = [] if recipe.gist is None else ["gist"]
    hyper = [] if recipe.hyper is None else ["hyper"]
    names = (recipe.method["name"], *gist, *hyper, recipe.model.name, data)
    stem = "-".join(Path(n.rpartition(":")[2]).stem if ":" in n else Path(n).name for n in names)
    return free_path(Path("runs"), stem)
