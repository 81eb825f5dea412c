"""`gist list`: what there is, read from the code and the recipes themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from gistcli.commands.options import AsJson, examples

EXAMPLES = examples(
    "gist list methods",
    "gist list models --json",
    "gist list recipes",
)


def listing(
    kind: Annotated[
        Literal["methods", "models", "sources", "tasks", "recipes"],
        typer.Argument(show_default=False),
    ],
    as_json: AsJson = False,
) -> object:
    """List methods with their options, models, sources of data, tasks or recipes."""
    from gistcli import console

    if kind in ("recipes", "tasks"):
        from gistcli.recipe import list_recipes, list_tasks

        found = (list_recipes if kind == "recipes" else list_tasks)(_folders())
        return console.Result("list", found, kind)
    with console.working(f"list {kind}"):
        from gistcli import run

        return console.Result("list", run.listing(kind), kind)


def _folders() -> list[Path]:
    """The `recipes` folders: here, and in the checkout that this program runs from."""
    checkout = Path(__file__).resolve().parents[2] / "recipes"
    here = Path("recipes")
    same = here.is_dir() and here.resolve() == checkout
    return [f for f in (here, *(() if same else (checkout,))) if f.is_dir()]
