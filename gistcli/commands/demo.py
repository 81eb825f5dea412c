"""`gist demo`: a recipe beside a linear probe, merged, verified and drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gistcli.commands.options import AsJson, examples

EXAMPLES = examples(
    "gist demo recipes/quickstart.yaml -o runs/demo",
    "gist demo recipes/hyper/quickstart.yaml -o runs/prefixes",
)


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
    """Show all that follows from a recipe: its run beside a linear probe, weights, pictures.

    Of a hypernetwork: its prefixes on held-out tasks, beside everything they are compared with.
    """
    from gistcli import console

    with console.working("demo") as reporter:
        from gistcli import run
        from gistcli.recipe import load_recipe

        value = run.demo(load_recipe(recipe), output, reporter=reporter)
        return console.Result("orderings" if "orderings" in value else "demo", value, "demo")
