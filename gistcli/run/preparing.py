"""From a recipe to everything that its run needs, checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch

from gistcli.recipe import Recipe
from gistcli.reporting import Reporter
from gistcli.run.assembling import Assembly, assemble, say_parameters
from gistcli.run.kinds import open_workload
from gistcli.run.memory import (
    Estimate,
    Estimator,
    by_trial,
    largest_that_fits,
    reserved_beside,
    say_estimate,
)
from gistcli.run.placing import Place
from gistcli.run.prefix_start import prefix_to_start_from
from gistcli.run.settings import say_defaults, training_plan
from gistcli.run.shelf import Shelf
from gistcli.run.workload import Setting, Split, Workload
from gistcli.train.checkpoint import newest_checkpoint, read_checkpoint
from gistcli.train.engine import require_trackers
from gistcli.train.plan import Plan
from gistcli.train.precision import choose_device, choose_precision


@dataclass
class Job:
    """Everything a run needs, built and checked before anything is written."""

    recipe: Recipe
    place: Place
    workload: Workload
    assembly: Assembly
    setting: Setting
    estimator: Estimator
    estimate: Estimate

    @property
    def splits(self) -> Mapping[str, Split]:
        """The examples that it trains on, selects by and is tested on."""
        return self.workload.splits


def prepare(recipe: Recipe, place: Place, reporter: Reporter, shelf: Shelf | None = None) -> Job:
    """Find the data, build the model, read the examples; write nothing.

    Args:
        recipe: resolved.
        place: where the run goes.
        reporter: gets all talk.
        shelf: what other runs of this process have read already.

    Raises:
        GistError: whatever keeps the run from starting.
    """
    shelf = shelf or Shelf()
    require_trackers(recipe.output.report_to)
    device = choose_device(recipe.train.device)
    precision = choose_precision(recipe.train.precision, device, reporter)
    pinned = place.run.splits_path
    use_pinned = place.resume and pinned.is_file()
    workload = open_workload(recipe, shelf, pinned if use_pinned else None)
    workload.say(reporter)
    outputs = workload.classes or 1  # one value, of a regression
    plan = training_plan(recipe, workload.metric)
    plan.require_evaluation("val" in workload.names)
    held = shelf.holds(recipe.model, workload.task)
    setting = _setting(recipe, plan, device, precision)
    estimator = Estimator(recipe, workload, setting, task=workload.task, classes=outputs, held=held)
    say_parameters(estimator.planned, reporter)
    say_defaults(recipe, reporter)
    estimator.require_weights_fit()
    workload.load(estimator.planned.tuner, setting, shelf, reporter)
    size = _micro_batch(recipe, place, estimator)
    estimate = estimator.estimate(size)
    say_estimate(estimate, reporter)
    backbone = shelf.backbone(recipe.model, workload.task)
    workload.fit_to(backbone)
    fresh = not _goes_on(place)
    prefix = prefix_to_start_from(recipe, workload, backbone, reporter) if fresh else None
    assembly = assemble(recipe, outputs, fresh=fresh, backbone=backbone, prefix=prefix)
    with ExitStack() as undo:
        undo.callback(assembly.tuner.detach)  # the backbone may be another run's, too
        setting = _setting(recipe, replace(plan, micro_batch_size=size), device, precision)
        setting = replace(setting, reserved=reserved_beside(estimate))
        if recipe.train.micro_batch_size == "auto" and not _goes_on(place):
            size = by_trial(workload, assembly.tuner, setting, recipe.optim.name)
            setting = _setting(recipe, replace(plan, micro_batch_size=size), device, precision)
            reporter.say(f"train.micro_batch_size: {size or plan.batch_size} (auto)")
        estimator.setting = setting
        job = Job(recipe, place, workload, assembly, setting, estimator, estimate)
        _say_plan(job, reporter)
        workload.compute_once(assembly.tuner, job.setting, reporter)
        undo.pop_all()
    return job


def _micro_batch(recipe: Recipe, place: Place, estimator: Estimator) -> int | None:
    """That of the recipe; `auto` is that of the checkpoint to go on from, else what fits."""
    asked = recipe.train.micro_batch_size
    if asked != "auto":
        return asked
    path = newest_checkpoint(place.run.checkpoints, lambda _: None) if place.resume else None
    if path is not None:
        found: int | None = read_checkpoint(path).identity.get("micro_batch_size")
        return found
    size = largest_that_fits(estimator)
    return None if size == recipe.train.batch_size else size


def _setting(recipe: Recipe, plan: Plan, device: torch.device, precision: str) -> Setting:
    at_once = recipe.eval.batch_size or plan.micro_batch_size or plan.batch_size
    return Setting(plan, device, precision, at_once)


def _goes_on(place: Place) -> bool:
    """Whether there is a checkpoint to go on from, by the rule of the training loop."""
    if not place.resume:
        return False
    return newest_checkpoint(place.run.checkpoints, lambda _: None) is not None


def _say_plan(job: Job, reporter: Reporter) -> None:
    setting = job.setting
    per_epoch = job.splits["train"].batches_per_epoch(setting.plan.batch_size)
    held = job.workload.memory
    reporter.say(
        f"{setting.plan.total_steps(per_epoch)} steps ({per_epoch} an epoch) of "
        f"{setting.plan.batch_size} examples on {setting.device}, {setting.precision}"
        + (f"; {held}" if held else "")
    )
