"""`gist visualize`: heatmaps of a method's clusters, and of where CLS and GIST look."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gistcli.commands.options import AsJson, Backbone, Device, Run, examples, numbers

EXAMPLES = examples(
    "gist visualize runs/flowers photo.jpg -o maps",
    "gist visualize runs/flowers flowers/test/tulip -o maps --layers 4-8",
    "gist visualize runs/flowers photo.jpg -o maps --layers 6 --clusters 0,3,7",
    "gist visualize runs/with-gist photo.jpg -o maps --tokens",
)


def visualize(
    target: Run,
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Images, or folders of images.")
    ],
    output: Annotated[
        Path,
        typer.Option("-o", "--output-dir", help="Where page, sheets and maps go.", metavar="DIR"),
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
    tokens: Annotated[
        bool, typer.Option("--tokens", help="Instead: where CLS and the gist token look.")
    ] = False,
    heads: Annotated[
        bool, typer.Option("--heads", help="With --tokens: every attention head.")
    ] = False,
    model: Backbone = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> object:
    """Draw where in an image the clusters of a method respond."""  # fmt: skip
    asked = {"layers": numbers(layers), "clusters": numbers(clusters), "show_all": show_all}
    chosen = _options(asked, tokens=tokens, heads=heads)
    from gistcli import console

    with console.working("visualize") as reporter:
        from gistcli import run

        draw = run.visualize_tokens if tokens else run.visualize
        value = draw(
            target, images, output, **chosen, model=model, device=device, reporter=reporter
        )
        return console.Result("tokens" if tokens else "clusters", value)


def _options(of_clusters: dict[str, Any], *, tokens: bool, heads: bool) -> dict[str, Any]:
    """What the asked kind of picture takes.

    Raises:
        typer.BadParameter: an option of the other kind.
    """
    if not tokens:
        if heads:
            raise typer.BadParameter("--heads goes with --tokens")
        return of_clusters
    if of_clusters["clusters"] is not None or of_clusters["show_all"]:
        raise typer.BadParameter("--tokens shows no clusters: leave --clusters and --all out")
    return {"layers": of_clusters["layers"], "heads": heads}
