"""`gist hyperpretrain`: a hypernetwork learns to compress documents, before it learns tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gistcli.errors import RecipeError
from gistcli.recipe import Recipe
from gistcli.reporting import SILENT, Reporter
from gistcli.run.episode_options import episodic_task
from gistcli.run.finetuning import finetune

TASK = "compression"


def hyperpretrain(
    recipe: Recipe,
    *,
    output: Path | None = None,
    resume: str = "auto",
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> dict[str, Any]:
    """Compression pretraining; arguments, result and errors as of `finetune`.

    Raises:
        RecipeError: the recipe has another task, or no hypernetwork.
    """
    recipe = of_documents(recipe)
    return finetune(recipe, output=output, resume=resume, overwrite=overwrite, reporter=reporter)


def of_documents(recipe: Recipe) -> Recipe:
    """The recipe with the task compression, where it names none.

    Raises:
        RecipeError: it names another, or has no hypernetwork.
    """
    asked = recipe.task.type
    if asked not in ("auto", TASK):
        raise RecipeError(
            f"task.type: hyperpretraining is {TASK}, and the recipe says {asked}.",
            "Use `gist finetune`, or leave task.type out.",
        )
    task = recipe.task.model_copy(update={"type": TASK})
    recipe = recipe.model_copy(update={"task": task})
    episodic_task(recipe)
    return recipe
