"""`gist hyperpretrain`: a hypernetwork that learns to compress documents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gistcli.commands.finetune import (
    BatchSize,
    Data,
    Device,
    DryRun,
    Epochs,
    Lr,
    MaxSteps,
    Method,
    Model,
    OutputDir,
    Overwrite,
    Precision,
    Rank,
    ReportTo,
    Resume,
    Seed,
    Set,
)
from gistcli.commands.options import AsJson, examples

EXAMPLES = examples(
    "gist hyperpretrain recipes/hyper/hyperpretrain.yaml -o runs/compressor",
    "gist hyperpretrain recipes/hyper/quickstart.yaml --max-steps 400 --dry-run",
    "gist finetune recipes/hyper/hypertune.yaml --set hyper.init=runs/compressor",
)


def hyperpretrain(
    recipe: Annotated[
        Path,
        typer.Argument(
            metavar="RECIPE", help="A YAML file with a section hyper.", show_default=False
        ),
    ],
    method: Method = None,
    model: Model = None,
    data: Data = None,
    rank: Rank = None,
    epochs: Epochs = None,
    max_steps: MaxSteps = None,
    batch_size: BatchSize = None,
    lr: Lr = None,
    seed: Seed = None,
    device: Device = None,
    precision: Precision = None,
    set_: Set = None,
    output_dir: OutputDir = None,
    resume: Resume = "auto",
    overwrite: Overwrite = False,
    report_to: ReportTo = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> object:
    """Teach a hypernetwork to compress documents, before it learns tasks.

    Parts of a document become gist tokens, and what stands between them is told from these.
    """  # fmt: skip
    flags = {
        "--method": ("method.name", method),
        "--model": ("model.name", model),
        "--data": ("data.path", data),
        "--rank": ("method.rank", rank),
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

    with console.working("hyperpretrain") as reporter:
        from gistcli.recipe import Override, load_recipe

        given = [Override(key, v, flag) for flag, (key, v) in flags.items() if v is not None]
        loaded = load_recipe(recipe, overrides=given, sets=set_ or ())
        from gistcli import run

        if dry_run:
            value = run.dry_run(run.of_documents(loaded), reporter=reporter)
            return console.Result("dry-run", value)
        value = run.hyperpretrain(
            loaded, output=output_dir, resume=resume, overwrite=overwrite, reporter=reporter
        )
        return console.Result("finetune", value)
