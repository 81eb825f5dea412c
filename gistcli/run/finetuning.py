"""`gist finetune`: from a recipe to a finished run directory."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from gistcli.artifacts.tuner_file import BackboneInfo, TunerInfo
from gistcli.errors import Diverged, Interrupted
from gistcli.figures import lower_is_better
from gistcli.methods.base import Method
from gistcli.recipe import Recipe
from gistcli.reporting import SILENT, Reporter
from gistcli.run.kinds import kind_of
from gistcli.run.memory_advice import explained
from gistcli.run.methods import method_info
from gistcli.run.placing import Place, settle
from gistcli.run.preparing import Job, prepare
from gistcli.run.settings import resolved
from gistcli.run.shelf import Shelf
from gistcli.run.workload import Measured, Workload
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
        method, run = recipe.build_method(), str(place.run.path)
        refusal = place.done.get("merge", method.capabilities().merge)
        pointers = _pointers(place, kind_of(recipe), method, refusal, place.done)
        return {**place.done, "run": run, **pointers}
    job = prepare(recipe, place, reporter, shelf)
    try:
        _begin(job)
        with explained(job.estimator):
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
    place.run.write_environment(sys.argv, str(job.setting.device))
    job.workload.begin(place.run)


def _accelerator(job: Job) -> Accelerator:
    return open_accelerator(
        job.setting.device,
        job.setting.precision,
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
    objective = job.workload.objective(job.assembly.tuner, job.setting)
    if job.recipe.train.compile:
        job.assembly.backbone.compile()

    def scalars(split: str) -> dict[str, float]:
        tuner, setting = job.assembly.tuner, job.setting
        return job.workload.scalars(job.workload.measure(tuner, split, setting, reporter))

    def evaluate() -> Mapping[str, float]:
        figures = scalars("val") if "val" in job.splits else {}
        if job.recipe.eval.best_test and "test" in job.splits:
            figures |= {f"test/{name}": value for name, value in scalars("test").items()}
        return figures

    return fit(
        objective,
        job.splits["train"],
        job.setting.plan,
        accelerator,
        evaluate=evaluate if "val" in job.splits or job.recipe.eval.best_test else None,
        checkpoints=job.place.run.checkpoints,
        resume=job.place.resume,
        recorder=recorder,
        reporter=reporter,
    )


def _conclude(job: Job, fitted: FitResult, reporter: Reporter) -> dict[str, Any]:
    """Evaluate the chosen weights, test once, and write everything down."""
    run, workload = job.place.run, job.workload
    refusal = job.assembly.tuner.merge_refusal()
    measured = _measure_all(job, reporter)
    write_curves(run.plots, fitted.history)
    info = run.write_tuner(job.assembly.tuner.state(), _tuner_info(job))
    result = {
        "metrics": {
            f"{s}/{k}": v for s, m in measured.items() for k, v in workload.scalars(m).items()
        },
        "examples": {s: len(split) for s, split in job.splits.items()},
        "method": job.assembly.method.label(),
        "parameters": info.parameters,
        "merge": refusal,
        "seconds": round(fitted.seconds, 3),
        "samples_per_second": round(fitted.samples_per_second, 3),
        "peak_memory_bytes": fitted.peak_memory_bytes,
        "estimated_memory": job.estimate.as_dict(),
        "micro_batch_size": job.setting.plan.micro_batch_size or job.setting.plan.batch_size,
        "steps": fitted.steps,
        "weights": fitted.weights,
        "selected_on": "val" if fitted.weights == "best" or fitted.stopped == "patience" else None,
        "best": fitted.best,
        "metric": job.setting.plan.metric,
        "figure": workload.figure,
        "stopped": fitted.stopped,
        **workload.result(measured),
        "extras": _extras(fitted, workload.figure),
    }
    run.write_result(result)
    pointers = _pointers(job.place, type(workload), job.assembly.method, refusal, result)
    return {"run": str(run.path), **result, **pointers}


def _extras(fitted: FitResult, figure: str) -> dict[str, float]:
    """The best of the figures on test that `eval.best_test` asked for: chosen on test itself."""
    seen = [r[f"test/{figure}"] for r in fitted.history if f"test/{figure}" in r]
    best = min if lower_is_better(figure) else max
    return {f"best_test/{figure}": best(seen)} if seen else {}


def _measure_all(job: Job, reporter: Reporter) -> dict[str, Measured]:
    """Figures of val and test; what they rest on is kept in the run.

    Raises:
        Diverged: the last update left weights that give no finite loss.
    """
    workload, tuner = job.workload, job.assembly.tuner
    found: dict[str, Measured] = {}
    for split in ("val", "test"):
        if split in job.splits:
            found[split] = workload.conclude(tuner, split, job.setting, reporter)
            loss = found[split].figures["loss"]
            if not math.isfinite(loss):  # only the last update can do that
                raise Diverged(
                    f"The loss on {split} is {loss} with the trained weights.",
                    "Try to lower optim.lr and optim.head_lr.",
                )
            workload.keep(job.place.run, split, found[split])
    return found


def _tuner_info(job: Job) -> TunerInfo:
    backbone, recipe = job.assembly.backbone, job.recipe
    folder = backbone.origin.config.get("folder")
    described = job.workload.describe()
    return TunerInfo(
        method=method_info(job.assembly.method, recipe.method["name"]),
        backbone=BackboneInfo(
            name=recipe.model.name,
            path=str(Path(folder).resolve()) if folder else None,
            architecture=backbone.architecture,
            fingerprint=backbone.fingerprint,
            img_size=described.pop("img_size", None),
        ),
        task=job.workload.task,
        parameters=job.assembly.parameters(),
        **described,
    )


def _pointers(
    place: Place,
    kind: type[Workload],
    method: Method,
    refusal: str | None,
    result: Mapping[str, Any],
) -> dict[str, Any]:
    """Where things are, and the commands that a user is likely to want next.

    Args:
        place: of the run.
        kind: of its task.
        method: that it trained.
        refusal: why it cannot become plain weights; None where it can.
        result: of the run; without a figure there is no split to evaluate on.
    """
    run = str(place.run.path)
    further = [*kind.exports(run, method, refusal), *kind.commands(run, method)]
    evaluate = [["gist", "eval", run]] if result.get("metrics") else []
    commands = [*evaluate, *further]
    return {"files": place.run.files(), "next": [shlex.join(c) for c in commands]}
