"""`gist merge`: plain weights that other tools load."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from gistcli.commands.options import AsJson, Backbone, Run, examples

EXAMPLES = examples(
    "gist merge runs/flowers -o flowers-merged",
    "gist merge runs/flowers -o flowers-bf16 --dtype bfloat16 --max-drift 0.05",
    "gist merge runs/flowers -o flowers-lora --format peft",
    "gist merge runs/chat -o chat-merged --max-shard-size 2GB",
    "gist merge runs/chat -o chat-lora --format peft --base-name meta-llama/Llama-3.1-8B",
)


def merge(
    target: Run,
    output: Annotated[
        Path, typer.Option("-o", "--output-dir", help="The new folder.", metavar="DIR")
    ],
    format_: Annotated[
        Literal["timm", "transformers", "peft", "prefix", "onnx"] | None,
        typer.Option(
            "--format",
            help="timm (transformers loads it, too), transformers, peft, prefix (its keys and "
            "values) or onnx. Without one: timm or transformers, whichever the model is from.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Of the written tensors; without one the base's.", show_default=False),
    ] = None,
    scale: Annotated[
        float, typer.Option(help="0 is the base, 1 the tuned model; between is a mixture.")
    ] = 1.0,
    max_drift: Annotated[
        float | None,
        typer.Option(
            help="Largest difference of a logit that counts as verified.", min=0, show_default=False
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Reload and compare, on real inputs.")
    ] = True,
    max_shard_size: Annotated[
        str | None,
        typer.Option(
            help="Of a file of weights, such as 2GB; without one the files of the base.",
            metavar="SIZE",
            show_default=False,
        ),
    ] = None,
    base_name: Annotated[
        str | None,
        typer.Option(
            help="What others call the base (a hub name): for the card, adapter_config.json and "
            "the command that serves it.",
            metavar="NAME",
            show_default=False,
        ),
    ] = None,
    model: Backbone = None,
    as_json: AsJson = False,
) -> object:
    """Write a run as plain weights and verify that they do the same."""  # fmt: skip
    from gistcli import console

    with console.working("merge") as reporter:
        from gistcli import run

        value = run.merge(
            target,
            output,
            format=format_,
            dtype=dtype,
            scale=scale,
            max_drift=max_drift,
            verify=verify,
            model=model,
            max_shard_size=max_shard_size,
            base_name=base_name,
            reporter=reporter,
        )
        return console.Result("merge", value, "merged")
