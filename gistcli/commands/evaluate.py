"""`gist eval`: metrics of a run or of a merged folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gistcli.commands.options import AsJson, Backbone, Device, RunOrFolder, examples

EXAMPLES = examples(
    "gist eval runs/flowers",
    "gist eval runs/flowers --data other-flowers/ --split test",
    "gist eval flowers-merged --data flowers/ --json",
    "gist eval runs/boolq --protocol commonsense --data boolq/test.json -o answers.jsonl",
    "gist eval runs/boolq --baseline",
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
    protocol: Annotated[
        str | None,
        typer.Option(
            help="How a language model is measured: perplexity, commonsense, gsm8k, math, rank or "
            "rouge. Without, by the run's recipe.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(help="Answer the first so many examples only.", min=1, show_default=False),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            help="Of a written answer; without, those of the protocol.", min=1, show_default=False
        ),
    ] = None,
    baseline: Annotated[
        bool,
        typer.Option("--baseline", help="Measure the untuned language model under the run."),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Outputs of every example: CSV, of answers JSON lines.",
            metavar="FILE",
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
            protocol=protocol,
            limit=limit,
            max_new_tokens=max_new_tokens,
            untuned=baseline,
            output=output,
            reporter=reporter,
        )
        return console.Result("eval", value)
