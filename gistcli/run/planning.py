"""`gist finetune --dry-run`: what a run would be, without weights and without writing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gistcli.data import Catalog, expected_counts, open_catalog
from gistcli.errors import NotFound
from gistcli.methods.base import Method
from gistcli.methods.gist import WithGist
from gistcli.recipe import Recipe
from gistcli.reporting import SILENT, Reporter
from gistcli.run.assembling import say_parameters, site_rows
from gistcli.run.memory import Estimator, estimate_of_dry_run, planned_setting
from gistcli.run.settings import modality_of, resolved, say_defaults
from gistcli.run.text_planning import dry_run_text
from gistcli.run.workload import say_catalog


def dry_run(recipe: Recipe, *, reporter: Reporter = SILENT) -> dict[str, Any]:
    """Parameters, sites and steps, with the model on the meta device.

    What cannot be looked at (data that are not there) is named; the head is then counted by
    `data.classes`, and the steps by the published size of a benchmark's set, or else left out. In
    the result `classes` is null without data; `examples` are then the published ones, or null.

    Raises:
        GistError: recipe, model, method or data are wrong.
    """
    recipe = resolved(recipe)
    if modality_of(recipe) == "text":
        return dry_run_text(recipe, reporter)
    catalog = _catalog(recipe, reporter)
    counts = catalog.counts() if catalog else expected_counts(recipe.data)
    classes = len(catalog.classes) if catalog else recipe.data.classes
    setting = planned_setting(recipe)
    estimator = Estimator(recipe, None, setting, task=None, classes=classes or 1)
    assembly = estimator.planned
    parameters: dict[str, int | None] = dict(assembly.parameters())
    if catalog:
        say_catalog(catalog, reporter)
    elif classes is None:
        parameters = _without_head(assembly.parameters())
        reporter.warn("Without data the classes are unknown: counts are without the head.")
    else:
        reporter.say(f"counted without the data: a head of {classes} classes (data.classes)")
    say_parameters(assembly, reporter, head=classes is not None)
    _warn_of_files(assembly.method, reporter)
    say_defaults(recipe, reporter)
    plan = setting.plan
    steps = None
    if counts:
        per_epoch = -(-counts["train"] // plan.batch_size)
        steps = plan.total_steps(per_epoch)
        source = "" if catalog else f", by the published {counts['train']:,} training pictures"
        reporter.say(f"{steps} steps ({per_epoch} an epoch) of {plan.batch_size} examples{source}")
    return {
        "parameters": parameters,
        "steps": steps if steps is not None else plan.max_steps,
        "merge": assembly.tuner.merge_refusal(),
        "sites": site_rows(assembly.tuner.sites),
        "memory": estimate_of_dry_run(estimator, reporter),
        "classes": catalog.classes if catalog else None,
        "examples": counts,
    }


def _without_head(counts: Mapping[str, int]) -> dict[str, int | None]:
    less = {k: counts[k] - counts["head"] for k in ("trainable", "total")}
    return {**counts, **less, "head": None}


def _warn_of_files(method: Method, reporter: Reporter) -> None:
    """Names the files that the method's options point at and that are not there."""
    for option, value in method.inner if isinstance(method, WithGist) else method:
        if isinstance(value, Path) and not value.exists():
            reporter.warn(f"not looked at: method.{option} ({value} does not exist)")


def _catalog(recipe: Recipe, reporter: Reporter) -> Catalog | None:
    try:
        return open_catalog(recipe.data, base=Path.cwd())
    except NotFound as error:  # data that are there and bad, or asked for wrongly, are an error
        reporter.warn(f"not looked at: data ({error.message})")
        return None
