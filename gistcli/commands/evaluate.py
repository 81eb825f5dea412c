"""`gist eval`: metrics of a run or of a merged folder."""

from __future__ import annotations

from typing import Annotated

import typer

from gistcli.commands.options import AsJson, Backbone, Device, RunOrFolder, examples

EXAMPLES = examples(
    "gist eval runs/flowers",
    "gist eval runs/flowers --data other-flowers/ --split test",
    "gist eval flowers-merged --data flowers/ --json",
)


def evaluate(
    target: RunOrFolder,
    data: Annotated[
        str | None,
        typer.Option(help="Other data than the run's.", metavar="PATH", show_default=False),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(
            help="train, val or test; without one test, else val.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    model: Backbone = None,
    device: Device = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(help="Examples per forward pass.", min=1, show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> object:
    """Measure a run, or a merged folder, on labelled data."""  # fmt: skip
    from gistcli import console

    with console.working("eval") as reporter:
        from gistcli import run

        value = run.evaluate(
            target,
            data=data,
            split=split,
            model=model,
            device=device,
            batch_size=batch_size,
            reporter=reporter,
        )
        return console.Result("eval", value)
