"""`gist predict`: classes of unlabelled images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gistcli.commands.options import AsJson, Backbone, Device, RunOrFolder, examples

EXAMPLES = examples(
    "gist predict runs/flowers photo.jpg",
    "gist predict runs/flowers holiday/ -o holiday.csv",
    "gist predict flowers-merged *.jpg -o classes.csv --top-k 5",
)


def predict(
    target: RunOrFolder,
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT...", help="Images, or folders of images.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="CSV: file, class, probability and the next classes.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Classes per image in the CSV.", min=1)] = 5,
    model: Backbone = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> object:
    """Name the classes of images without labels."""  # fmt: skip
    from gistcli import console

    with console.working("predict") as reporter:
        from gistcli import run

        value = run.predict(
            target,
            inputs,
            output=output,
            top_k=top_k,
            model=model,
            device=device,
            reporter=reporter,
        )
        return console.Result("predict", value)
