"""fit: the only training loop. It knows neither methods, nor modalities, nor the console."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from gistcli import atomic
from gistcli.errors import DataError
from gistcli.objectives.base import Objective
from gistcli.reporting import SILENT, Reporter
from gistcli.train.interrupt import Stopper
from gistcli.train.memory import peak_memory, reset_peak_memory
from gistcli.train.plan import Plan
from gistcli.train.recorder import Recorder, Recorders
from gistcli.train.seeds import deterministic, preserved_generators
from gistcli.train.session import Evaluate, Session
from gistcli.train.source import Source


@dataclass(frozen=True)
class FitResult:
    """What training came to.

    Attributes:
        steps: optimiser steps taken, over all sessions.
        seconds: time spent in all, over all sessions.
        samples_per_second: examples over the time spent in steps.
        history: the records, as the recorder got them.
        best: step, value and all figures of the best evaluation; empty without evaluations.
        stopped: why training ended before its last step (`patience`), or None.
        peak_memory_bytes: of the accelerator, or of the process on a CPU; this session only.
        weights: which weights the tuner holds now: `last` or `best`.
    """

    steps: int
    seconds: float
    samples_per_second: float
    history: list[dict[str, Any]]
    best: dict[str, Any]
    stopped: str | None
    peak_memory_bytes: int
    weights: str


def fit(
    objective: Objective,
    split: Source,
    plan: Plan,
    accelerator: Accelerator,
    *,
    evaluate: Evaluate | None = None,
    checkpoints: Path | None = None,
    resume: bool = True,
    recorder: Recorder | None = None,
    reporter: Reporter = SILENT,
) -> FitResult:
    """Trains what `objective.tuner.trainable()` names, in place.

    Each optimiser step sees one batch of `plan.batch_size` examples, in micro-batches that share
    one denominator; generators are set from (seed, step) before it. With `checkpoints`, training
    goes on from the newest whole one there: on a CPU with the same number of threads the result is
    the same bit for bit as without the interruption.

    Args:
        objective: the loss around an attached tuner; it is moved to the accelerator's device, and
            left in evaluation mode.
        split: the training data.
        plan: numbers, all filled in.
        accelerator: see `engine.open_accelerator`.
        evaluate: figures on validation data; called as the plan says, with the network in
            whatever mode; must leave it as it was.
        checkpoints: folder for them; None keeps none.
        resume: go on from a checkpoint, if there is one; else they are removed first.
        recorder: gets one record a step and one an evaluation; is rewound on resume, not closed.
        reporter: gets progress, warnings and one line an evaluation.

    Raises:
        Interrupted: on SIGINT, SIGTERM or `max_time`, after saving.
        Diverged: loss or gradient not finite; no step was taken on it, the state before is saved.
        NotSupported: something that should train does not (`guards`).
        DataError: nothing to train on, or other data than those of the checkpoint.
        Refused: a checkpoint of another plan, or a plan that selects without evaluations.
        StorageError: the disk is full; the earlier checkpoint is intact.
    """
    plan.require_evaluation(evaluate is not None)
    if len(split) == 0:
        raise DataError("There is no example to train on.", "Look at the class table (--dry-run).")
    objective.to(accelerator.device)
    reset_peak_memory(accelerator.device)
    if checkpoints is not None and accelerator.is_main_process:
        atomic.clear_leftovers(checkpoints)
        if not resume:
            atomic.discard(checkpoints)
    accelerator.wait_for_everyone()
    with contextlib.ExitStack() as stack:
        stack.enter_context(deterministic(plan.deterministic))
        stack.enter_context(preserved_generators())
        session = Session(
            objective=objective,
            split=split,
            plan=plan,
            accelerator=accelerator,
            stopper=stack.enter_context(Stopper(plan.max_time)),
            evaluate=evaluate,
            checkpoints=checkpoints,
            recorder=recorder or Recorders(),
            reporter=reporter,
        )
        session.run()
    session.require_unstopped()  # no signal is noted any more
    objective.eval()
    return _result(session, accelerator)


def _result(session: Session, accelerator: Accelerator) -> FitResult:
    progress = session.progress
    best = {"step": progress.best_step, "value": progress.best_value, **progress.best_metrics}
    return FitResult(
        steps=progress.step,
        seconds=progress.seconds,
        samples_per_second=progress.examples / max(progress.train_seconds, 1e-9),
        history=session.history,
        best={} if progress.best_step is None else best,
        stopped=progress.stopped,
        peak_memory_bytes=peak_memory(accelerator.device),
        weights=session.plan.select,
    )
