"""`gist sweep`: many runs in one resumable ledger."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gistcli import registry
from gistcli.commands.finetune import (
    BatchSize,
    Data,
    Device,
    Epochs,
    Gist,
    ImgSize,
    MaxSteps,
    Model,
    Set,
    gist_override,
)
from gistcli.commands.options import AsJson, complete_from, examples, numbers

if TYPE_CHECKING:
    from gistcli.console import Result

EXAMPLES = examples(
    "gist sweep recipes/quickstart.yaml --methods gift,lora,linear --seeds 0,1,2",
    "gist sweep recipes/vtab/gift.yaml --tasks cifar,dtd --grid optim.lr=x0.3,x1,x3 --refit -o s",
    "gist sweep recipes/quickstart.yaml --methods all --grid optim.lr=1e-4..1e-2 --random 8 "
    "--dry-run",
)


def _option(help: str, metavar: str | None = None, *names: str, panel: str, **more: Any) -> Any:
    return typer.Option(
        *names, help=help, metavar=metavar, show_default=False, rich_help_panel=panel, **more
    )


_RUNS, _SEARCH, _WORK = "Which runs", "Choosing by validation", "The work"

Recipes = Annotated[
    list[Path],
    typer.Argument(metavar="RECIPE|FAMILY...", help="YAML files.", show_default=False),
]
Methods = Annotated[
    str | None,
    _option(
        "Names, or all. Without any: that of each recipe.",
        "NAME,NAME|all",
        panel=_RUNS,
        autocompletion=complete_from(lambda: registry.names("methods")),
    ),
]
Tasks = Annotated[
    str | None, _option("Of family files; without any: all.", "NAME,NAME|all", panel=_RUNS)
]
Seeds = Annotated[
    str | None, _option("Such as 0,1,2 or 0-4. Without any: the recipe's.", "N,N", panel=_RUNS)
]
DrawShots = Annotated[
    bool, _option("Each seed draws its own data.shots.", None, "--draw-shots", panel=_RUNS)
]
Grid = Annotated[
    list[str] | None,
    _option(
        "Values to choose from; x0.3 multiplies the recipe's own; KEY+KEY go together. May be "
        "repeated.",
        "[METHOD,...:]KEY=V,V",
        panel=_SEARCH,
    ),
]
Random = Annotated[
    int | None,
    _option("Draw so many configurations; 1e-4..1e-2 is a range.", "N", panel=_SEARCH, min=1),
]
Folds = Annotated[
    int | None, _option("Validate on each of so many parts.", "K", panel=_SEARCH, min=2)
]
SearchSeeds = Annotated[
    str | None, _option("Seeds of the search. Without any: the first.", "N,N", panel=_SEARCH)
]
Refit = Annotated[
    bool,
    _option("Train what was chosen on train + val, and test.", None, "--refit", panel=_SEARCH),
]
RefitOn = Annotated[
    str, typer.Option(help="What --refit trains on: few-shot sets on train alone.",
                      metavar="train+val|train", rich_help_panel=_SEARCH)
]  # fmt: skip
Ablate = Annotated[
    str | None,
    _option(
        "gist: every method with the gist token and without.",
        "NAME",
        panel=_RUNS,
        autocompletion=complete_from(lambda: ["gist"]),
    ),
]
OutputDir = Annotated[
    Path | None,
    _option("The ledger; without one runs/sweep-NAME-N.", "DIR", "-o", "--output-dir", panel=_WORK),
]
Shard = Annotated[
    str | None, _option("The i-th of n equal parts, for job arrays.", "i/n", panel=_WORK)
]
RetryFailed = Annotated[
    bool, _option("Try failed runs again.", None, "--retry-failed", panel=_WORK)
]
DryRun = Annotated[
    bool, _option("Show runs and estimated hours, write nothing.", None, "--dry-run", panel=_WORK)
]


def sweep(
    recipes: Recipes,
    methods: Methods = None,
    tasks: Tasks = None,
    seeds: Seeds = None,
    draw_shots: DrawShots = False,
    gist: Gist = None,
    ablate: Ablate = None,
    grid: Grid = None,
    random: Random = None,
    folds: Folds = None,
    search_seeds: SearchSeeds = None,
    refit: Refit = False,
    refit_on: RefitOn = "train+val",
    model: Model = None,
    data: Data = None,
    img_size: ImgSize = None,
    epochs: Epochs = None,
    max_steps: MaxSteps = None,
    batch_size: BatchSize = None,
    device: Device = None,
    set_: Set = None,
    output_dir: OutputDir = None,
    shard: Shard = None,
    retry_failed: RetryFailed = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
) -> object:
    """Run recipes over tasks, methods, seeds and values, each run once.

    Without --grid every run reads test once, at its end. With it, configurations are compared on
    validation alone, and --refit runs the chosen ones to the end.
    Run again, it goes on; several may work on one ledger at once.
    """
    part = _shard(shard, output_dir, dry_run)
    flags = {
        "--model": ("model.name", model),
        "--data": ("data.path", data),
        "--img-size": ("model.img_size", img_size),
        "--epochs": ("train.epochs", epochs),
        "--max-steps": ("train.max_steps", max_steps),
        "--batch-size": ("train.batch_size", batch_size),
        "--device": ("train.device", device),
    }
    named = _names("--methods", methods), _names("--tasks", tasks), _names("--ablate", ablate)
    counted = _seeds("--seeds", seeds), _seeds("--search-seeds", search_seeds)
    from gistcli import console

    with console.working("sweep") as reporter:
        from gistcli import run
        from gistcli.recipe import Override
        from gistcli.run.sweep_request import SweepRequest

        request = SweepRequest(
            recipes,
            methods=named[0],
            tasks=named[1],
            seeds=counted[0],
            search_seeds=counted[1],
            draw_shots=draw_shots,
            grid=grid or (),
            random=random,
            folds=folds,
            refit=refit,
            refit_on=refit_on,
            ablate=named[2],
            overrides=[
                *(Override(k, v, flag) for flag, (k, v) in flags.items() if v is not None),
                *gist_override(gist),
            ],
            sets=set_ or (),
        )
        if dry_run:
            found = run.sweep_dry_run(request, output=output_dir, reporter=reporter)
            return console.Result("sweep-dry-run", found)
        found = run.sweep(
            request, output=output_dir, shard=part, retry_failed=retry_failed, reporter=reporter
        )
        return _result(found)


def _result(found: dict[str, Any]) -> Result:
    """Exit code 1 where runs failed: what was found is bad, not what was asked."""
    from gistcli import console

    return console.Result("sweep", found, exit_code=1 if found["failed"] else 0)


def _names(flag: str, text: str | None) -> list[str]:
    """`a,b` as a list; none where nothing was given."""
    if text is None:
        return []
    found = [name for part in text.split(",") if (name := part.strip())]
    if not found:
        raise typer.BadParameter(f"{flag} names nothing.")
    return found


def _seeds(flag: str, text: str | None) -> list[int]:
    """`0,2-4` as a list; none where nothing was given."""
    found = numbers(text)
    if found == []:
        raise typer.BadParameter(f"{flag}: {text} names nothing.")
    return found or []


def _shard(text: str | None, output_dir: Path | None, dry_run: bool) -> tuple[int, int] | None:
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise typer.BadParameter(f"--shard: found {text!r}, expected i/n with i from 1 to n")
    if output_dir is None and not dry_run:
        raise typer.BadParameter("--shard needs -o: all shards share one ledger.")
    return int(match[1]), int(match[2])
