"""`gist finetune --smoke`: two steps of everything, in a folder that is removed again."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from gistcli.errors import Interrupted, NotMergeable
from gistcli.recipe import Recipe
from gistcli.reporting import SILENT, Reporter
from gistcli.run.evaluation import evaluate
from gistcli.run.exporting import merge
from gistcli.run.finetuning import finetune


def smoke(recipe: Recipe, *, reporter: Reporter = SILENT) -> dict[str, Any]:
    """Train a step, stop, resume for the second, evaluate and merge.

    Raises:
        GistError: whatever would stop the real run.
    """
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="gist-smoke-") as folder:
        run = Path(folder) / "run"
        short = _changed(recipe, max_time=1e-6)
        try:
            finetune(short, output=run, reporter=reporter)
        except Interrupted:
            reporter.say("smoke: stopped after one step, now going on")
        result = finetune(_changed(recipe, max_time=None), output=run, reporter=reporter)
        evaluated = evaluate(run, device=recipe.train.device, reporter=reporter)
        merged: dict[str, Any] | str
        try:
            merged = merge(run, Path(folder) / "merged", reporter=reporter)
        except NotMergeable as error:
            merged = error.message
    return {
        "smoke": "passed",
        "parameters": result["parameters"],
        "metrics": result["metrics"],
        "evaluated": evaluated["metrics"],
        "merged": merged if isinstance(merged, str) else merged["verified"],
        "seconds": round(time.perf_counter() - start, 3),
    }


def _changed(recipe: Recipe, *, max_time: float | None) -> Recipe:
    train = recipe.train.model_copy(update={"max_steps": 2, "max_time": max_time})
    output = recipe.output.model_copy(update={"report_to": []})
    return recipe.model_copy(update={"train": train, "output": output})
