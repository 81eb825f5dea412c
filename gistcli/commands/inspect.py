"""`gist inspect`: a model's tree of sites, or a run's figures and files."""

from __future__ import annotations

from typing import Annotated

import typer

from gistcli.commands.options import AsJson, examples

EXAMPLES = examples(
    "gist inspect vit_small_patch16_224",
    "gist inspect runs/flowers",
    "gist inspect flowers-merged --json",
)


def inspect(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODEL|RUN|DIR", help="A model's name, a run or a folder.", show_default=False
        ),
    ],
    as_json: AsJson = False,
) -> object:
    """Show what a model is made of, or what a run did."""  # fmt: skip
    from gistcli import console

    with console.working("inspect") as reporter:
        from gistcli import run

        return console.Result("inspect", run.inspect(target, reporter=reporter), target)
