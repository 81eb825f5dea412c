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
    "gist predict runs/hyper questions.jsonl --prefix reviews-prefix -o answers.jsonl",
    "gist predict runs/chats alpaca_eval.json --alpaca-eval -o outputs.json --generator gift",
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
    prefix: Annotated[
        Path | None,
        typer.Option(
            help="What `gist compress` wrote, for in front of every prompt.",
            metavar="DIR|FILE",
            show_default=False,
        ),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Of each answer, at most; without, 256.", min=1, show_default=False),
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="0: the likeliest token each time; above: drawn.", min=0)
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Of the draws.", min=0)] = 0,
    alpaca_eval: Annotated[
        bool,
        typer.Option(
            "--alpaca-eval",
            help="Answer AlpacaEval's instructions as published (2,048 tokens, no 5 twice, "
            "penalty 1.1); -o becomes the list that `alpaca_eval` judges.",
        ),
    ] = False,
    generator: Annotated[
        str | None,
        typer.Option(
            help="What the model is called in AlpacaEval's list; without, the folder's name.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    model: Backbone = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> object:
    """Name the classes of images or texts without labels, or answer prompts."""  # fmt: skip
    if generator is not None and not alpaca_eval:
        raise typer.BadParameter("--generator is for --alpaca-eval.")
    from gistcli import console

    with console.working("predict") as reporter:
        from gistcli import run

        value = run.predict(
            target,
            inputs or (),
            output=output,
            top_k=top_k,
            prompts=prompt or (),
            prefix=prefix,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            alpaca_eval=alpaca_eval,
            generator=generator,
            model=model,
            device=device,
            reporter=reporter,
        )
        return console.Result("predict", value)
