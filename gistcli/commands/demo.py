"""`gist demo`: a recipe beside a linear probe, merged, verified and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gistcli.commands.options import AsJson, examples

EXAMPLES = examples("gist demo recipes/quickstart.yaml -o runs/demo")


def demo(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A YAML file.", show_default=False)
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output-dir", help="Receives runs, weights and maps.", metavar="DIR"),
    ],
    as_json: AsJson = False,
) -> object:
    """Show all that follows from a recipe: its run beside a linear probe, weights, pictures."""
    from gistcli import console

    with console.working("demo") as reporter:
        from gistcli import run
        from gistcli.recipe import load_recipe

        value = run.demo(load_recipe(recipe), output, reporter=reporter)
        return console.Result("demo", value, "demo")
