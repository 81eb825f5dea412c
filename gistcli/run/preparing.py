"""From a recipe to everything that its run needs, checked before anything is written."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from gistcli.backbones import Backbone
from gistcli.backbones.images import require_images
from gistcli.data import Catalog, ImageSplit, Preprocess
from gistcli.recipe import Recipe
from gistcli.reporting import Reporter
from gistcli.run.assembling import Assembly, assemble, say_parameters
from gistcli.run.features import Split, with_features
from gistcli.run.placing import Place
from gistcli.run.settings import say_defaults, training_plan
from gistcli.run.shelf import Shelf
from gistcli.train.checkpoint import newest_checkpoint
from gistcli.train.engine import require_trackers
from gistcli.train.plan import Plan
from gistcli.train.precision import choose_device, choose_precision


@dataclass
class Job:
    """Everything a run needs, built and checked before anything is written."""

    recipe: Recipe
    place: Place
    catalog: Catalog
    assembly: Assembly
    preprocess: Preprocess
    plan: Plan
    device: torch.device
    precision: str
    splits: Mapping[str, Split]

    @property
    def eval_batch_size(self) -> int:
        """Examples per forward pass outside training."""
        return self.recipe.eval.batch_size or self.plan.micro_batch_size or self.plan.batch_size


def prepare(recipe: Recipe, place: Place, reporter: Reporter, shelf: Shelf | None = None) -> Job:
    """Find the data, build the model, decode the pictures; write nothing.

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
    catalog = shelf.catalog(recipe.data, pinned if use_pinned else None)
    say_catalog(catalog, reporter)
    backbone = shelf.backbone(recipe.model)
    assembly = assemble(recipe, catalog.classes, fresh=not _goes_on(place), backbone=backbone)
    with ExitStack() as undo:
        undo.callback(assembly.tuner.detach)  # the backbone may be another run's, too
        say_parameters(assembly, reporter)
        say_defaults(recipe, reporter)
        preprocess = _preprocess(recipe, backbone)
        plan = training_plan(recipe)
        plan.require_evaluation("val" in catalog.splits)
        images = {
            split: shelf.split(recipe.data, catalog, split, preprocess, device, reporter)
            for split in catalog.splits
            if split != "test" or recipe.eval.test
        }
        job = Job(recipe, place, catalog, assembly, preprocess, plan, device, precision, images)
        _say_plan(job, images, reporter)
        job.splits = with_features(
            images,
            assembly.tuner,
            recipe,
            plan,
            batch_size=job.eval_batch_size,
            precision=precision,
            reporter=reporter,
        )
        undo.pop_all()
    return job


def _preprocess(recipe: Recipe, backbone: Backbone) -> Preprocess:
    """The model's own preparation of pictures, with what the recipe replaces in it."""
    given = recipe.data.preprocess.model_dump(exclude_none=True)
    network = require_images(backbone, "An image set")
    return Preprocess.from_config({**network.data_config(), **given})


def _goes_on(place: Place) -> bool:
    """Whether there is a checkpoint to go on from, by the rule of the training loop."""
    if not place.resume:
        return False
    return newest_checkpoint(place.run.checkpoints, lambda _: None) is not None


def say_catalog(catalog: Catalog, reporter: Reporter) -> None:
    """Classes by split, and what is odd about the data."""
    columns, rows = catalog.table()
    shown = rows[:40]
    if len(rows) > len(shown):
        shown = [*shown, [f"and {len(rows) - len(shown)} more", *[""] * (len(columns) - 1)]]
    totals = [len(records) for records in catalog.splits.values()]
    reporter.table(f"{catalog.name}: {len(rows)} classes", columns, [*shown, ["all", *totals]])
    for note in catalog.notes:
        reporter.say(note)
    for warning in catalog.warnings:
        reporter.warn(warning)


def _say_plan(job: Job, images: Mapping[str, ImageSplit], reporter: Reporter) -> None:
    per_epoch = images["train"].batches_per_epoch(job.plan.batch_size)
    weights = sum(p.numel() * p.element_size() for p in job.assembly.backbone.model.parameters())
    pixels = sum(s.nbytes for s in images.values() if s.resident)
    reporter.say(
        f"{job.plan.total_steps(per_epoch)} steps ({per_epoch} an epoch) of "
        f"{job.plan.batch_size} examples on {job.device}, {job.precision}; "
        f"memory: weights {weights / 1e6:,.0f} MB, images {pixels / 1e6:,.0f} MB"
    )
