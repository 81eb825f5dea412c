"""`gist finetune`: adapt a model with one method."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from gistcli import registry
from gistcli.commands.options import AsJson, complete_from, examples

EXAMPLES = examples(
    "gist finetune recipes/quickstart.yaml",
    "gist finetune --model vit_small_patch16_224 --data flowers/ -o runs/flowers",
    "gist finetune recipes/quickstart.yaml --rank 4 --set optim.lr=3e-3 --dry-run",
)
_WHAT, _HOW, _RUN = "What is tuned", "How long and how fast", "The run"


def finetune(
    recipe: Annotated[
        Path | None,
        typer.Argument(
            metavar="RECIPE",
            help="A YAML file; without one --model and --data do.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="Name of a method, or FILE.py:Class. Without one: gift.",
            metavar="NAME",
            show_default=False,
            rich_help_panel=_WHAT,
            autocompletion=complete_from(lambda: registry.names("methods")),
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="A folder, gist_vit_nano, a timm name or OWNER/NAME.",
            metavar="NAME",
            show_default=False,
            rich_help_panel=_WHAT,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="A folder of class folders, a list, a parquet file or a source name.",
            metavar="PATH",
            show_default=False,
            rich_help_panel=_WHAT,
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="One of the tasks of a family file.",
            metavar="NAME",
            show_default=False,
            rich_help_panel=_WHAT,
        ),
    ] = None,
    rank: Annotated[
        int | None,
        typer.Option(help="Rank of the method.", show_default=False, rich_help_panel=_WHAT),
    ] = None,
    img_size: Annotated[
        int | None,
        typer.Option(
            help="Side of the images in pixels.", show_default=False, rich_help_panel=_WHAT
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Passes over the training examples.", show_default=False, rich_help_panel=_HOW
        ),
    ] = None,
    max_steps: Annotated[
        int | None,
        typer.Option(
            help="Optimiser steps; wins over --epochs.", show_default=False, rich_help_panel=_HOW
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(help="Examples per optimiser step.", show_default=False, rich_help_panel=_HOW),
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            help="Peak learning rate. Without one: the method's.",
            show_default=False,
            rich_help_panel=_HOW,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of the run.", show_default=False, rich_help_panel=_HOW)
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(
            help="auto, cpu, mps, cuda or cuda:N.",
            metavar="NAME",
            show_default=False,
            rich_help_panel=_HOW,
        ),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(
            help="auto, fp32 or bf16.", metavar="NAME", show_default=False, rich_help_panel=_HOW
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="Any other key of the recipe; may be repeated.",
            metavar="SECTION.KEY=VALUE",
            show_default=False,
            rich_help_panel=_HOW,
        ),
    ] = None,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output-dir",
            help="The run directory, runs/METHOD-MODEL-DATA-N "
            "without. An unfinished run there goes on.",
            metavar="DIR",
            show_default=False,
            rich_help_panel=_RUN,
        ),
    ] = None,
    resume: Annotated[
        str,
        typer.Option(
            help="auto, never, or the directory of the run to go on with.",
            metavar="auto|never|DIR",
            rich_help_panel=_RUN,
        ),
    ] = "auto",
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite", help="Replace what is in the run directory.", rich_help_panel=_RUN
        ),
    ] = False,
    report_to: Annotated[
        list[str] | None,
        typer.Option(
            help="tensorboard, wandb, trackio or mlflow; may be repeated.",
            metavar="NAME",
            show_default=False,
            rich_help_panel=_RUN,
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Count and show everything, write nothing.", rich_help_panel=_RUN
        ),
    ] = False,
    smoke: Annotated[
        bool,
        typer.Option(
            "--smoke", help="Two steps of everything in a temporary folder.", rich_help_panel=_RUN
        ),
    ] = False,
    as_json: AsJson = False,
) -> object:
    """Adapt a pretrained model to labelled data with few trained parameters.

    Every flag writes one key of the recipe, and wins over the file.
    Run again, an unfinished run goes on, and a finished one shows its result.
    """  # fmt: skip
    if dry_run and smoke:
        raise typer.BadParameter("--dry-run and --smoke exclude each other.")
    flags = {
        "--method": ("method.name", method),
        "--model": ("model.name", model),
        "--data": ("data.path", data),
        "--task": ("task.name", task),
        "--rank": ("method.rank", rank),
        "--img-size": ("model.img_size", img_size),
        "--epochs": ("train.epochs", epochs),
        "--max-steps": ("train.max_steps", max_steps),
        "--batch-size": ("train.batch_size", batch_size),
        "--lr": ("optim.lr", lr),
        "--seed": ("seed", seed),
        "--device": ("train.device", device),
        "--precision": ("train.precision", precision),
        "--output-dir": ("output.dir", None if output_dir is None else str(output_dir)),
        "--report-to": ("output.report_to", report_to or None),
    }
    from gistcli import console

    with console.working("finetune") as reporter:
        from gistcli.recipe import Override, load_recipe

        overrides = [Override(key, v, flag) for flag, (key, v) in flags.items() if v is not None]
        loaded = load_recipe(recipe, overrides=overrides, sets=set_ or ())
        return _run(loaded, reporter, output_dir, resume, overwrite, dry_run, smoke)


def _run(
    recipe: Any,
    reporter: Any,
    output: Path | None,
    resume: str,
    overwrite: bool,
    dry_run: bool,
    smoke: bool,
) -> object:
    from gistcli import console, run

    if dry_run:
        return console.Result("dry-run", run.dry_run(recipe, reporter=reporter))
    if smoke:
        return console.Result("smoke", run.smoke(recipe, reporter=reporter), "smoke test")
    value = run.finetune(
        recipe, output=output, resume=resume, overwrite=overwrite, reporter=reporter
    )
    return console.Result("finetune", value)
