"""`gist predict`: classes of images and texts, and answers to prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gistcli.commands.options import AsJson, Backbone, Device, RunOrFolder, examples

EXAMPLES = examples(
    "gist predict runs/flowers photo.jpg",
    "gist predict runs/flowers holiday/ -o holiday.csv",
    "gist predict flowers-merged *.jpg -o classes.csv --top-k 5",
    "gist predict runs/chats questions.jsonl -o answers.jsonl --max-new-tokens 64",
)


def predict(
    target: RunOrFolder,
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="INPUT...",
            help="Images, or folders of images; for text files of prompts, chats or texts.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="CSV: file, class, probability and the next classes; for text JSON lines.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Classes per image or text.", min=1)] = 5,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            help="A text to go on from; may be repeated.", metavar="TEXT", show_default=False
        ),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Of each answer, at most.", min=1)] = 256,
    temperature: Annotated[
        float, typer.Option(help="0: the likeliest token each time; above: drawn.", min=0)
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the draws.", min=0)] = 0,
    model: Backbone = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> object:
    """Name the classes of images or texts without labels, or answer prompts."""  # fmt: skip
    from gistcli import console

    with console.working("predict") as reporter:
        from gistcli import run

        value = run.predict(
            target,
            inputs or (),
            output=output,
            top_k=top_k,
            prompts=prompt or (),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            model=model,
            device=device,
            reporter=reporter,
        )
        return console.Result("predict", value)
