"""`gist visualize`: heatmaps of a method's clusters."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gistcli.commands.options import AsJson, Backbone, Device, Run, examples, numbers

EXAMPLES = examples(
    "gist visualize runs/flowers photo.jpg -o maps",
    "gist visualize runs/flowers flowers/test/tulip -o maps --layers 4-8",
    "gist visualize runs/flowers photo.jpg -o maps --layers 6 --clusters 0,3,7",
)


def visualize(
    target: Run,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Images, or folders of images.")
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output-dir", help="Where the sheets and maps go.", metavar="DIR"),
    ],
    layers: Annotated[
        str | None,
        typer.Option(
            help="Blocks from 0, such as 3,5-8; without, they are picked.",
            metavar="N,N-N",
            show_default=False,
        ),
    ] = None,
    clusters: Annotated[
        str | None,
        typer.Option(
            help="Clusters from 0; without, they are picked.", metavar="N,N-N", show_default=False
        ),
    ] = None,
    show_all: Annotated[bool, typer.Option("--all", help="Every layer and every cluster.")] = False,
    model: Backbone = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> object:
    """Draw where in an image the clusters of a method respond."""  # fmt: skip
    chosen = numbers(layers), numbers(clusters)
    from gistcli import console

    with console.working("visualize") as reporter:
        from gistcli import run

        value = run.visualize(
            target,
            images,
            output,
            layers=chosen[0],
            clusters=chosen[1],
            show_all=show_all,
            model=model,
            device=device,
            reporter=reporter,
        )
        return console.Result("visualize", value, "heatmaps")
