"""Which workload a recipe is: by what its model reads, and by its data."""

from __future__ import annotations

from pathlib import Path

from gistcli.errors import RecipeError
from gistcli.recipe import Recipe
from gistcli.recipe.model import flatten
from gistcli.run.episodic import kind_of_episodes
from gistcli.run.image_classification import ImageClassification
from gistcli.run.settings import OF_PICTURES, OF_TEXT, modality_of
from gistcli.run.shelf import Shelf
from gistcli.run.texts import TextTask, open_text
from gistcli.run.workload import Workload


def open_workload(recipe: Recipe, shelf: Shelf, pinned: Path | None) -> Workload:
    """The data of a recipe, found.

    Args:
        recipe: resolved.
        shelf: what other runs of this process have read already.
        pinned: a `splits.csv` whose splits must be reproduced.

    Raises:
        RecipeError: keys that model or task have no use for.
        GistError: data or tokenizer that are not there or cannot be used.
    """
    workload = _open(recipe, shelf, pinned)
    workload.require_sense()
    return workload


def _open(recipe: Recipe, shelf: Shelf, pinned: Path | None) -> Workload:
    if modality_of(recipe) == "text":
        _refuse(recipe, OF_PICTURES, "text")
        return open_text(recipe, pinned)
    _refuse(recipe, OF_TEXT, "pictures")
    if recipe.task.type not in ("auto", ImageClassification.task):
        raise RecipeError(
            f"task.type: {recipe.model.name} reads pictures, which have classes here and no "
            f"{recipe.task.type}.",
            "Leave it out, or choose a model that reads text.",
        )
    return ImageClassification(recipe, shelf, pinned)


def kind_of(recipe: Recipe) -> type[Workload]:
    """What `commands` can be asked of without any data."""
    if modality_of(recipe) != "text":
        return ImageClassification
    return kind_of_episodes(recipe) or TextTask


def _refuse(recipe: Recipe, keys: tuple[str, ...], reads: str) -> None:
    model = {"name": recipe.model.name}
    default = Recipe.model_validate({"model": model, "data": {"path": recipe.data.path}})
    own, usual = flatten(recipe.as_dict()), flatten(default.as_dict())
    given = [key for key in own if key.startswith(keys) and own[key] != usual.get(key)]
    if given:
        raise RecipeError(
            f"{', '.join(given)}: the model reads {reads}, so that nothing comes of it.",
            "Leave it out, or choose another model.",
        )
