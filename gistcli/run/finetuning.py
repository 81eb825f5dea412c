"""`gist finetune`: from a recipe to a finished run directory."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from gistcli import registry
from gistcli.artifacts.predictions import write_predictions
from gistcli.artifacts.tuner_file import BackboneInfo, TunerInfo
from gistcli.data import Catalog, ImageSplit, Preprocess, load_split, open_catalog
from gistcli.errors import Interrupted
from gistcli.evaluate.classify import Predictions, predict, scalars, score
from gistcli.evaluate.plots import write_classification_plots
from gistcli.methods.base import Method
from gistcli.recipe import Recipe
from gistcli.reporting import SILENT, Reporter
from gistcli.run.assembling import Assembly, assemble, say_parameters
from gistcli.run.features import Split, with_features
from gistcli.run.methods import method_info
from gistcli.run.placing import Place, settle
from gistcli.run.settings import resolved, say_defaults, training_plan
from gistcli.train.checkpoint import newest_checkpoint
from gistcli.train.curves import write_curves
from gistcli.train.engine import open_accelerator, require_trackers
from gistcli.train.loop import FitResult, fit
from gistcli.train.plan import Plan
from gistcli.train.precision import choose_device, choose_precision
from gistcli.train.recorder import LogRecorder, Recorder, Recorders, TrackerRecorder


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


def finetune(
    recipe: Recipe,
    *,
    output: Path | None = None,
    resume: str = "auto",
    overwrite: bool = False,
    reporter: Reporter = SILENT,
) -> dict[str, Any]:
    """Train, evaluate and keep a run; run again, it goes on or repeats what is there.

    Args:
        recipe: validated.
        output: the run directory; None for the recipe's.
        resume: auto, never, or the directory of the run to go on with.
        overwrite: replace what is in the directory.
        reporter: gets all talk.

    Returns:
        The JSON object of `gist finetune`.

    Raises:
        GistError: see `gistcli.errors`; what an earlier run left is only replaced by a run that
            could start.
    """
    recipe = resolved(recipe)
    place = settle(recipe, output, resume, overwrite)
    if place.done is not None:
        reporter.say(f"{place.run.path} holds this run, complete.")
        method = recipe.build_method()
        refusal = place.done.get("merge", method.capabilities().merge)
        return {**place.done, "run": str(place.run.path), **_pointers(place, method, refusal)}
    job = prepare(recipe, place, reporter)
    _begin(job)
    recorders: list[Recorder] = [LogRecorder(job.place.run.log)]
    accelerator = _accelerator(job)
    if recipe.output.report_to:
        recorders.append(TrackerRecorder(accelerator))
    recorder = Recorders(recorders)
    try:
        fitted = _fit(job, accelerator, recorder, reporter)
    except Interrupted as error:
        # the same command again would begin anew where the folder was numbered automatically
        raise Interrupted(
            error.message, f"Go on with `{job.place.run.resume_command()}`."
        ) from error
    finally:
        recorder.close()
    return _conclude(job, fitted, reporter)


def prepare(recipe: Recipe, place: Place, reporter: Reporter) -> Job:
    """Find the data, build the model, decode the pictures; write nothing."""
    require_trackers(recipe.output.report_to)
    device = choose_device(recipe.train.device)
    precision = choose_precision(recipe.train.precision, device, reporter)
    pinned = place.run.splits_path
    use_pinned = place.resume and pinned.is_file()
    catalog = open_catalog(recipe.data, base=Path.cwd(), pinned=pinned if use_pinned else None)
    say_catalog(catalog, reporter)
    assembly = assemble(recipe, catalog.classes, fresh=not _goes_on(place))
    say_parameters(assembly, reporter)
    say_defaults(recipe, reporter)
    preprocess = Preprocess.from_config(assembly.backbone.data_config())
    plan = training_plan(recipe)
    plan.require_evaluation("val" in catalog.splits)
    images = {
        split: load_split(
            catalog,
            split,
            preprocess,
            train=split == "train",
            augment=recipe.data.augment,
            on_error=recipe.data.on_error,
            device=device,
            reporter=reporter,
        )
        for split in catalog.splits
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
    return job


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


def _begin(job: Job) -> None:
    """The first writes: everything that can be wrong with the input has been looked at."""
    place = job.place
    if place.clear:
        place.run.clear()
    place.run = type(place.run).create(place.run.path)
    place.run.write_recipe(job.recipe.as_dict())
    place.run.write_environment(sys.argv, str(job.device))
    job.catalog.write_splits(place.run.splits_path)


def _accelerator(job: Job) -> Accelerator:
    return open_accelerator(
        job.device,
        job.precision,
        trackers=job.recipe.output.report_to,
        folder=job.place.run.path / "trackers" if job.recipe.output.report_to else None,
        name=job.place.run.path.name,
        config=job.recipe.as_dict(),
    )


def _fit(job: Job, accelerator: Accelerator, recorder: Recorder, reporter: Reporter) -> FitResult:
    tuner = job.assembly.tuner
    kind = registry.resolve("objectives", "classification")
    objective = kind(tuner, label_smoothing=job.recipe.optim.label_smoothing)
    if job.recipe.train.compile:
        job.assembly.backbone.compile()

    def validate() -> Mapping[str, float]:
        found = predict(
            tuner,
            job.splits["val"],
            job.eval_batch_size,
            precision=job.precision,
            reporter=reporter,
            phase="validate",
        )
        return scalars(score(found, job.catalog.classes))

    return fit(
        objective,
        job.splits["train"],
        job.plan,
        accelerator,
        evaluate=validate if "val" in job.splits else None,
        checkpoints=job.place.run.checkpoints,
        resume=job.place.resume,
        recorder=recorder,
        reporter=reporter,
    )


def _conclude(job: Job, fitted: FitResult, reporter: Reporter) -> dict[str, Any]:
    """Evaluate the chosen weights, test once, and write everything down."""
    run = job.place.run
    refusal = job.assembly.tuner.merge_refusal()
    figures = _figures(job, reporter)
    write_curves(run.plots, fitted.history)
    info = run.write_tuner(job.assembly.tuner.state(), _tuner_info(job))
    result = {
        "metrics": {f"{s}/{k}": v for s, f in figures.items() for k, v in scalars(f).items()},
        "intervals": {f"{s}/accuracy": f["interval"] for s, f in figures.items()},
        "examples": {s: len(split) for s, split in job.splits.items()},
        "method": job.assembly.method.label(),
        "parameters": info.parameters,
        "merge": refusal,
        "seconds": round(fitted.seconds, 3),
        "samples_per_second": round(fitted.samples_per_second, 3),
        "peak_memory_bytes": fitted.peak_memory_bytes,
        "steps": fitted.steps,
        "weights": fitted.weights,
        "best": fitted.best,
        "stopped": fitted.stopped,
        "per_class": {s: f["per_class"] for s, f in figures.items()},
        "data_fingerprint": job.catalog.fingerprint(),
    }
    run.write_result(result)
    pointers = _pointers(job.place, job.assembly.method, refusal)
    return {"run": str(run.path), **result, **pointers}


def _figures(job: Job, reporter: Reporter) -> dict[str, dict[str, Any]]:
    """Figures of val and test; what they rest on is kept in the run."""
    figures: dict[str, dict[str, Any]] = {}
    for split in ("val", "test"):
        if split in job.splits:
            outputs = predict(
                job.assembly.tuner,
                job.splits[split],
                job.eval_batch_size,
                precision=job.precision,
                reporter=reporter,
                phase=split,
            )
            figures[split] = score(outputs, job.catalog.classes)
            _keep_outputs(job, split, outputs, figures[split])
    return figures


def _keep_outputs(job: Job, split: str, outputs: Predictions, figures: Mapping[str, Any]) -> None:
    run, classes = job.place.run, job.catalog.classes
    path = run.predictions_path(split)
    write_predictions(path, outputs.names, outputs.labels, outputs.probabilities, classes)
    write_classification_plots(run.plots, split, figures, classes)


def _tuner_info(job: Job) -> TunerInfo:
    backbone, recipe = job.assembly.backbone, job.recipe
    size = job.preprocess.size
    folder = backbone.origin.config.get("folder")
    return TunerInfo(
        method=method_info(job.assembly.method, recipe.method["name"]),
        backbone=BackboneInfo(
            name=recipe.model.name,
            path=str(Path(folder).resolve()) if folder else None,
            architecture=backbone.architecture,
            fingerprint=backbone.fingerprint,
            img_size=size if recipe.model.img_size is not None else None,
        ),
        classes=job.catalog.classes,
        preprocessing=job.preprocess.to_config(),
        parameters=job.assembly.parameters(),
    )


def _pointers(place: Place, method: Method, refusal: str | None) -> dict[str, Any]:
    """Where things are, and the commands that a user is likely to want next.

    Args:
        place: of the run.
        method: that it was trained with.
        refusal: why it cannot become plain weights; None where it can.
    """
    run = str(place.run.path)
    export = [f"{run}-merged"] if refusal is None else [f"{run}-onnx", "--format", "onnx"]
    commands = [
        ["gist", "eval", run],
        ["gist", "merge", run, "-o", *export],
        ["gist", "predict", run, "PHOTO", "-o", "predictions.csv"],
    ]
    if method.capabilities().clusters:
        commands.append(["gist", "visualize", run, "PHOTO", "-o", f"{run}-maps"])
    return {"files": place.run.files(), "next": [shlex.join(c) for c in commands]}
