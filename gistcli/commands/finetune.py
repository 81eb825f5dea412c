"""`gist finetune`: adapt a model with one method."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gistcli import registry
from gistcli.commands.options import AsJson, complete_from, examples

if TYPE_CHECKING:
    from gistcli.console import Result
    from gistcli.recipe import Override, Recipe
    from gistcli.reporting import Reporter

EXAMPLES = examples(
    "gist finetune recipes/quickstart.yaml",
    "gist finetune --model vit_small_patch16_224 --data flowers/ -o runs/flowers",
    "gist finetune recipes/quickstart.yaml --rank 4 --set optim.lr=3e-3 --dry-run",
)


def _flags(panel: str) -> Callable[..., Any]:
    """Options of one panel of the help, without a default that the help would show."""

    def flag(help: str, metavar: str | None = None, *names: str, **more: Any) -> Any:
        return typer.Option(
            *names, help=help, metavar=metavar, show_default=False, rich_help_panel=panel, **more
        )

    return flag


_what, _how = _flags("What is tuned"), _flags("How long and how fast")
_run = _flags("The run")

RecipeFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="RECIPE", help="A YAML file; without one --model and --data do.", show_default=False
    ),
]
Method = Annotated[
    str | None,
    _what(
        "Name of a method, or FILE.py:Class. Without one: gift.",
        "NAME",
        autocompletion=complete_from(lambda: registry.names("methods")),
    ),
]
Gist = Annotated[
    bool | None,
    _what("A gist token over the method: one more vector, and a loss on it.", None,
          "--gist/--no-gist"),
]  # fmt: skip
Model = Annotated[str | None, _what("A folder, gist_vit_nano, a timm name or OWNER/NAME.", "NAME")]
Data = Annotated[
    str | None, _what("A folder of class folders, a list, a parquet file or a source name.", "PATH")
]
Task = Annotated[str | None, _what("One of the tasks of a family file.", "NAME")]
Rank = Annotated[int | None, _what("Rank of the method.")]
ImgSize = Annotated[int | None, _what("Side of the images in pixels.")]
Epochs = Annotated[int | None, _how("Passes over the training examples.")]
MaxSteps = Annotated[int | None, _how("Optimiser steps; wins over --epochs.")]
BatchSize = Annotated[int | None, _how("Examples per optimiser step.")]
Lr = Annotated[float | None, _how("Peak learning rate. Without one: the method's.")]
Seed = Annotated[int | None, _how("Seed of the run.")]
Device = Annotated[str | None, _how("auto, cpu, mps, cuda or cuda:N.", "NAME")]
Precision = Annotated[str | None, _how("auto, fp32 or bf16.", "NAME")]
Set = Annotated[
    list[str] | None,
    _how("Any other key of the recipe; may be repeated.", "SECTION.KEY=VALUE", "--set"),
]
OutputDir = Annotated[
    Path | None,
    _run(
        "The run directory; without one runs/METHOD[-gist]-MODEL-DATA-N.",
        "DIR",
        "-o",
        "--output-dir",
    ),
]
Resume = Annotated[
    str,
    _run("auto goes on with an unfinished run in that directory, DIR with another.",
         "auto|never|DIR"),
]  # fmt: skip
Overwrite = Annotated[bool, _run("Replace what is in the run directory.", None, "--overwrite")]
ReportTo = Annotated[
    list[str] | None, _run("tensorboard, wandb, trackio or mlflow; may be repeated.", "NAME")
]
DryRun = Annotated[bool, _run("Count and show everything, write nothing.", None, "--dry-run")]
Smoke = Annotated[bool, _run("Two steps of everything in a temporary folder.", None, "--smoke")]


def finetune(
    recipe: RecipeFile = None,
    method: Method = None,
    gist: Gist = None,
    model: Model = None,
    data: Data = None,
    task: Task = None,
    rank: Rank = None,
    img_size: ImgSize = None,
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
    smoke: Smoke = False,
    as_json: AsJson = False,
) -> object:
    """Adapt a pretrained model to labelled data with few trained parameters.

    Every flag writes one key of the recipe, and wins over the file.
    Run again, an unfinished run goes on, and a finished one shows its result.
    """
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

        given = [Override(key, v, flag) for flag, (key, v) in flags.items() if v is not None]
        loaded = load_recipe(recipe, overrides=[*given, *gist_override(gist)], sets=set_ or ())
        if dry_run or smoke:
            return _try(loaded, reporter, smoke)
        from gistcli import run

        value = run.finetune(
            loaded, output=output_dir, resume=resume, overwrite=overwrite, reporter=reporter
        )
        return console.Result("finetune", value)


def gist_override(gist: bool | None) -> list[Override]:
    """What `--gist` and `--no-gist` write into a recipe."""
    from gistcli.recipe import Override

    if gist is None:
        return []
    return [Override("gist", {} if gist else None, "--gist" if gist else "--no-gist")]


def _try(recipe: Recipe, reporter: Reporter, smoke: bool) -> Result:
    """`--dry-run` and `--smoke`."""
    from gistcli import console, run

    if smoke:
        return console.Result("smoke", run.smoke(recipe, reporter=reporter), "smoke test")
    return console.Result("dry-run", run.dry_run(recipe, reporter=reporter))
