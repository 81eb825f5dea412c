"""`gist finetune --dry-run`: what a run would be, without weights and without writing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gistcli.data import Catalog, open_catalog
from gistcli.errors import GistError, Refused
from gistcli.methods.base import Method
from gistcli.recipe import Recipe
from gistcli.reporting import SILENT, Reporter
from gistcli.run.assembling import assemble, say_parameters, site_rows
from gistcli.run.preparing import say_catalog
from gistcli.run.settings import resolved, say_defaults, training_plan


def dry_run(recipe: Recipe, *, reporter: Reporter = SILENT) -> dict[str, Any]:
    """Parameters, sites and steps, with the model on the meta device.

    What cannot be looked at (data that are not there) is named, and left out.

    Raises:
        GistError: recipe, model or method are wrong.
    """
    recipe = resolved(recipe)
    catalog = _catalog(recipe, reporter)
    classes = len(catalog.classes) if catalog else 1
    assembly = assemble(recipe, classes, meta=True)
    parameters: dict[str, int | None] = dict(assembly.parameters())
    if catalog:
        say_catalog(catalog, reporter)
    else:
        head = parameters["head"] or 0
        parameters["trainable"] = (parameters["trainable"] or 0) - head
        parameters["total"] = (parameters["total"] or 0) - head
        parameters["head"] = None
        reporter.warn("Without data the classes are unknown: counts are without the head.")
    say_parameters(assembly, reporter)
    _warn_of_files(assembly.method, reporter)
    say_defaults(recipe, reporter)
    plan = training_plan(recipe)
    steps = None
    if catalog:
        per_epoch = -(-len(catalog.splits["train"]) // plan.batch_size)
        steps = plan.total_steps(per_epoch)
        reporter.say(f"{steps} steps ({per_epoch} an epoch) of {plan.batch_size} examples")
    return {
        "parameters": parameters,
        "steps": steps if steps is not None else plan.max_steps,
        "merge": assembly.tuner.merge_refusal(),
        "sites": site_rows(assembly.tuner.sites),
        "classes": catalog.classes if catalog else None,
        "examples": catalog.counts() if catalog else None,
    }


def _warn_of_files(method: Method, reporter: Reporter) -> None:
    """Names the files that the method's options point at and that are not there."""
    for option, value in method:
        if isinstance(value, Path) and not value.exists():
            reporter.warn(f"not looked at: method.{option} ({value} does not exist)")


def _catalog(recipe: Recipe, reporter: Reporter) -> Catalog | None:
    try:
        catalog = open_catalog(recipe.data, base=Path.cwd())
    except Refused as error:  # not there; data that are there and bad are an error here, too
        reporter.warn(f"not looked at: data ({error.message})")
        return None
    except GistError:
        raise
    return catalog
