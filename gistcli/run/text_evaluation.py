"""`gist eval` on text: the figures that a run would have on a split, or on other data."""

from __future__ import annotations

from typing import Any

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
        loaded: a run whose network reads text.
        data: None for the run's own, divided as they were.
        split: None for test, else val.
        batch_size: examples per forward pass.
        reporter: gets all talk.

    Raises:
        DataError, NotFound: what is there cannot be used, or has classes unknown to the model.
    """
    run, info, recipe = loaded.require_run("eval")
    if data is not None:
        section = recipe.data.model_copy(update={"path": data, "shots": None})
        recipe = recipe.model_copy(update={"data": section})
    pinned = run.splits_path if data is None else None
    name = loaded.backbone.name
    workload = open_text(recipe, pinned, model=name, whole=data is not None)
    if info.classes:
        workload.catalog = workload.catalog.with_classes(info.classes)
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
