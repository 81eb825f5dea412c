"""`gist eval` on text: the figures that a run would have on a split, or on other data."""

from __future__ import annotations

from typing import Any

from gistcli.errors import Refused
from gistcli.recipe import Recipe
from gistcli.reporting import Reporter
from gistcli.run.loading import Loaded
from gistcli.run.settings import training_plan
from gistcli.run.split_choice import choose_split
from gistcli.run.texts import open_text
from gistcli.run.workload import Setting


def evaluate_text(
    loaded: Loaded, data: str | None, split: str | None, batch_size: int | None, reporter: Reporter
) -> dict[str, Any]:
    """Metrics on the run's own split, or on other data of the same task.

    Args:
        loaded: a run whose network reads text, or a merged folder.
        data: None for the run's own, divided as they were.
        split: None for test, else val.
        batch_size: examples per forward pass.
        reporter: gets all talk.

    Raises:
        Refused: a merged folder knows no data of its own.
        DataError, NotFound: what is there cannot be used, or has classes unknown to the model.
    """
    recipe = _recipe(loaded, data)
    pinned = loaded.run.splits_path if loaded.run is not None and data is None else None
    name = loaded.backbone.name
    workload = open_text(recipe, pinned, model=name, whole=data is not None)
    if loaded.classes:
        workload.catalog = workload.catalog.with_classes(loaded.classes)
    chosen = choose_split(workload.catalog, split)
    workload.encode(loaded.backbone, [chosen], loaded.device, reporter)
    plan = training_plan(recipe, workload.metric)
    at_once = batch_size or loaded.batch_size
    setting = Setting(plan, loaded.device, loaded.precision(), at_once)
    measured = workload.measure(loaded.tuner, chosen, setting, reporter)
    kept = workload.result({chosen: measured})
    return {
        "data": recipe.data.path,
        "metrics": {f"{chosen}/{k}": v for k, v in workload.scalars(measured).items()},
        "intervals": kept["intervals"],
        "examples": len(workload.splits[chosen]),
        "per_class": kept.get("per_class", {}).get(chosen),
    }


def _recipe(loaded: Loaded, data: str | None) -> Recipe:
    """The run's, with other data where these are asked for; of a merged folder all defaults."""
    if loaded.recipe is None:
        if data is None:
            raise Refused(
                f"{loaded.name} is a merged folder and knows no data.",
                f"Say on what: `gist eval {loaded.name} --data PATH`.",
            )
        tree = {
            "task": {"type": loaded.task},
            "model": {"name": loaded.name},
            "data": {"path": data},
        }
        return Recipe.model_validate(tree)
    if data is None:
        return loaded.recipe
    section = loaded.recipe.data.model_copy(update={"path": data, "shots": None})
    return loaded.recipe.model_copy(update={"data": section})
