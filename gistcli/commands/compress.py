"""`gist compress`: few-shot examples to a soft prefix."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from gistcli.commands.options import AsJson, Backbone, Device, Run, examples

EXAMPLES = examples(
    "gist compress runs/hyper reviews.jsonl -o reviews-prefix",
    "gist compress runs/hyper reviews.jsonl -o reviews-prefix --eval more-reviews.jsonl",
    "gist compress runs/hyper reviews.jsonl -o reviews-peft --format peft",
)


def compress(
    target: Run,
    examples_: Annotated[
        Path,
        typer.Argument(
            metavar="EXAMPLES",
            help="A file of a task's pairs: {prompt, completion} or {text, label} a line.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output-dir", help="The new folder.", metavar="DIR")
    ],
    format_: Annotated[
        Literal["safetensors", "peft"],
        typer.Option(
            "--format",
            help="safetensors: keys and values for generate(past_key_values=...); peft: a folder "
            "of PEFT's prefix tuning.",
        ),
    ] = "safetensors",
    eval_: Annotated[
        Path | None,
        typer.Option(
            "--eval",
            help="Further pairs of the task: what the prefix is worth, against nothing, all "
            "examples in sight, and another task's prefix.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Of the written tensors; without one float32.", show_default=False),
    ] = None,
    base_name: Annotated[
        str | None,
        typer.Option(
            help="What others call the model (a hub name).", metavar="NAME", show_default=False
        ),
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Texts at a time, for --eval.", min=1, show_default=False)
    ] = None,
    model: Backbone = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> object:
    """Turn few-shot examples into a soft prefix, in one pass of a hypernetwork."""  # fmt: skip
    if batch_size is not None and eval_ is None:
        raise typer.BadParameter("--batch-size is for --eval.")
    from gistcli import console

    with console.working("compress") as reporter:
        from gistcli import run

        value = run.compress(
            target,
            examples_,
            output,
            format=format_,
            evaluate=eval_,
            dtype=dtype,
            base_name=base_name,
            model=model,
            device=device,
            batch_size=batch_size,
            reporter=reporter,
        )
        return console.Result("compress", value, "compressed")
