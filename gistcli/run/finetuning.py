"""`gist finetune`: from a recipe to a finished run directory."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from gistcli import registry
from gistcli.artifacts.predictions import write_predictions
from gistcli.artifacts.tuner_file import BackboneInfo, TunerInfo
from gistcli.errors import Diverged, Interrupted
from gistcli.evaluate.classify import Predictions, predict, scalars, score
from gistcli.evaluate.plots import write_classification_plots
from gistcli.methods.base import Method
from gistcli.methods.gist import WithGist
from gistcli.recipe import Recipe
from gistcli.reporting import SILENT, Reporter
from gistcli.run.methods import method_info
from gistcli.run.placing import Place, settle
from gistcli.run.preparing import Job, prepare
from gistcli.run.settings import resolved
from gistcli.run.shelf import Shelf
from gistcli.train.curves import write_curves
from gistcli.train.engine import open_accelerator
from gistcli.train.loop import FitResult, fit
from gistcli.train.recorder import LogRecorder, Recorder, Recorders, TrackerRecorder


def finetune(
    recipe: Recipe,
    *,
    output: Path | None = None,
    resume: str = "auto",
    overwrite: bool = False,
    reporter: Reporter = SILENT,
    shelf: Shelf | None = None,
) -> dict[str, Any]:
    """Train, evaluate and keep a run; run again, it goes on or repeats what is there.

    Args:
        recipe: validated.
        output: the run directory; None for the recipe's.
        resume: auto, never, or the directory of the run to go on with.
        overwrite: replace what is in the directory.
        reporter: gets all talk.
        shelf: what other runs of this process have read already; the result is the same.

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
    job = prepare(recipe, place, reporter, shelf)
    try:
        _begin(job)
        return _conclude(job, _train(job, reporter), reporter)
    finally:
        job.assembly.tuner.detach()  # the backbone may be the next run's, too


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


def _train(job: Job, reporter: Reporter) -> FitResult:
    """Train with everything that listens open, and closed again."""
    recorders: list[Recorder] = [LogRecorder(job.place.run.log)]
    accelerator = _accelerator(job)
    if job.recipe.output.report_to:
        recorders.append(TrackerRecorder(accelerator))
    recorder = Recorders(recorders)
    try:
        return _fit(job, accelerator, recorder, reporter)
    except Interrupted as error:
        # the same command again would begin anew where the folder was numbered automatically
        raise Interrupted(
            error.message, f"Go on with `{job.place.run.resume_command()}`."
        ) from error
    finally:
        recorder.close()


def _fit(job: Job, accelerator: Accelerator, recorder: Recorder, reporter: Reporter) -> FitResult:
    kind = registry.resolve("objectives", "classification")
    objective = kind(job.assembly.tuner, label_smoothing=job.recipe.optim.label_smoothing)
    if job.recipe.train.compile:
        job.assembly.backbone.compile()

    def evaluate() -> Mapping[str, float]:
        figures = scalars(_score(job, "val", reporter)) if "val" in job.splits else {}
        if job.recipe.eval.best_test and "test" in job.splits:
            test = scalars(_score(job, "test", reporter))
            figures |= {f"test/{name}": value for name, value in test.items()}
        return figures

    return fit(
        objective,
        job.splits["train"],
        job.plan,
        accelerator,
        evaluate=evaluate if "val" in job.splits or job.recipe.eval.best_test else None,
        checkpoints=job.place.run.checkpoints,
        resume=job.place.resume,
        recorder=recorder,
        reporter=reporter,
    )


def _predict(job: Job, split: str, reporter: Reporter) -> Predictions:
    return predict(
        job.assembly.tuner,
        job.splits[split],
        job.eval_batch_size,
        precision=job.precision,
        reporter=reporter,
        phase=split,
    )


def _score(job: Job, split: str, reporter: Reporter) -> dict[str, Any]:
    return score(_predict(job, split, reporter), job.catalog.classes)


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
        "data_fingerprints": {s: job.catalog.fingerprint(s) for s in job.catalog.splits},
        "extras": _extras(fitted),
    }
    run.write_result(result)
    pointers = _pointers(job.place, job.assembly.method, refusal)
    return {"run": str(run.path), **result, **pointers}


def _extras(fitted: FitResult) -> dict[str, float]:
    """The best of the figures on test that `eval.best_test` asked for: chosen on test itself."""
    seen = [r["test/accuracy"] for r in fitted.history if "test/accuracy" in r]
    return {"best_test/accuracy": max(seen)} if seen else {}


def _figures(job: Job, reporter: Reporter) -> dict[str, dict[str, Any]]:
    """Figures of val and test; what they rest on is kept in the run.

    Raises:
        Diverged: the last update left weights that give no finite loss.
    """
    figures: dict[str, dict[str, Any]] = {}
    for split in ("val", "test"):
        if split in job.splits:
            outputs = _predict(job, split, reporter)
            figures[split] = score(outputs, job.catalog.classes)
            if not math.isfinite(figures[split]["loss"]):  # only the last update can do that
                raise Diverged(
                    f"The loss on {split} is {figures[split]['loss']} with the trained weights.",
                    "Try to lower optim.lr and optim.head_lr.",
                )
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
    draw = ["gist", "visualize", run, "PHOTO", "-o", f"{run}-maps"]
    if method.capabilities().clusters:
        commands.append(draw)
    if isinstance(
        method, WithGist
    ):  # every network that holds the token lets its attention be read
        commands.append([*draw, "--tokens"])
    return {"files": place.run.files(), "next": [shlex.join(c) for c in commands]}
