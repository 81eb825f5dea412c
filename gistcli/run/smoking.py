"""`gist finetune --smoke`: two steps of everything, in a folder that is removed again."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from gistcli.artifacts.rundir import RunDirectory
from gistcli.data import open_catalog, read_image
from gistcli.errors import Interrupted, NotMergeable, NotSupported
from gistcli.recipe import Recipe
from gistcli.reporting import SILENT, Reporter
from gistcli.run.evaluation import evaluate
from gistcli.run.exporting import merge
from gistcli.run.finetuning import finetune
from gistcli.run.picturing import visualize
from gistcli.run.prediction import predict
from gistcli.run.settings import modality_of
from gistcli.run.split_choice import choose_split


def smoke(recipe: Recipe, *, reporter: Reporter = SILENT) -> dict[str, Any]:
    """Train a step, stop, go on for the second, then use the run in every way there is.

    Raises:
        GistError: whatever would stop the real run.
    """
    if modality_of(recipe) == "text":
        raise NotSupported(
            f"{recipe.model.name} reads text, which --smoke cannot do yet.",
            "Try `--dry-run`, or `--max-steps 2`.",
        )
    start = time.perf_counter()
    device = recipe.train.device
    with tempfile.TemporaryDirectory(prefix="gist-smoke-") as name:
        folder = Path(name)
        run = folder / "run"
        stopped_at = _first_step(recipe, run, reporter)
        result = finetune(_two_steps(recipe, None), output=run, reporter=reporter)
        evaluated = evaluate(run, device=device, reporter=reporter)
        picture = _a_picture(recipe, folder)
        predicted = predict(run, [picture], device=device, reporter=reporter)
        shown = None
        if recipe.build_method().capabilities().clusters:
            maps = visualize(run, [picture], folder / "maps", device=device, reporter=reporter)
            shown = maps["clusters"]
        merged: dict[str, Any] | str
        try:
            merged = merge(run, folder / "merged", reporter=reporter)
        except NotMergeable as error:
            merged = error.message
    return {
        "smoke": "passed",
        "parameters": result["parameters"],
        "metrics": result["metrics"],
        "stopped_at": stopped_at,
        "steps": result["steps"],
        "evaluated": evaluated["metrics"],
        "predicted": predicted["predictions"][0]["class"],
        "clusters": shown,
        "merged": merged if isinstance(merged, str) else merged["verified"],
        "seconds": round(time.perf_counter() - start, 3),
    }


def _first_step(recipe: Recipe, run: Path, reporter: Reporter) -> int | None:
    """Trains until a time limit that is over after one step; the step of its checkpoint."""
    try:
        finetune(_two_steps(recipe, 1e-6), output=run, reporter=reporter)
    except Interrupted:
        reporter.say("smoke: stopped after one step, now going on")
    return RunDirectory(run).last_step()


def _two_steps(recipe: Recipe, max_time: float | None) -> Recipe:
    train = recipe.train.model_copy(update={"max_steps": 2, "max_time": max_time})
    output = recipe.output.model_copy(update={"report_to": []})
    return recipe.model_copy(update={"train": train, "output": output})


def _a_picture(recipe: Recipe, folder: Path) -> Path:
    """The first example of the split that is evaluated, as a file of its own."""
    catalog = open_catalog(recipe.data, base=Path.cwd())
    path = folder / "picture.png"
    read_image(catalog.splits[choose_split(catalog, None)][0].source).save(path)
    return path
